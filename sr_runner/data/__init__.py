"""Images in, batches out."""

from sr_runner.data.base import Data, Pair
from sr_runner.data.batches import to_batch
from sr_runner.data.dataset import PairData
from sr_runner.data.div2k import Div2kData
from sr_runner.data.folder import FolderData
from sr_runner.data.loader import Batch, Loader
from sr_runner.data.sample import SampleData

__all__ = ["Batch", "Data", "Div2kData", "FolderData", "Loader", "Pair", "PairData", "SampleData", "to_batch"]
