"""From HR to LR pictures: steps with random parameters that are functions of (seed, n), on the device, in batches."""

from sr_runner.data.degradations.blur import Blur, Sinc
from sr_runner.data.degradations.bsrgan import BsrganBlur, BsrganNoise, BsrganShrink
from sr_runner.data.degradations.jpeg import Jpeg
from sr_runner.data.degradations.noise import Noise
from sr_runner.data.degradations.resize import Resize
from sr_runner.data.degradations.steps import Chain, Degradation, Shuffled, Sometimes, Step

__all__ = [
    "Blur",
    "BsrganBlur",
    "BsrganNoise",
    "BsrganShrink",
    "Chain",
    "Degradation",
    "Jpeg",
    "Noise",
    "Resize",
    "Shuffled",
    "Sinc",
    "Sometimes",
    "Step",
]
