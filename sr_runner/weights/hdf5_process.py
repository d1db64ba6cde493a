"""A program: the arrays that Keras' `save_weights` put into an HDF5 file, to standard output as `.npz`, in its order.

Run by `tensorfile` in a process of its own, and without anything of sr_runner's: it imports in a fraction of a second.
With exit status `REFUSED`, standard error holds a sentence about what is wrong with the file.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REFUSED = 3
_MOST_COMPRESSED = 4
"""Trained weights hardly shrink; what claims to be compressed by more wants to fill the memory."""


class _RefusedError(Exception):
    pass


def main(path: Path) -> int:
    import h5py
    import numpy as np

    try:
        with h5py.File(path, "r") as file:
            arrays = dict(_arrays(file, path.stat().st_size))
    except Exception as error:  # HDF5's own errors come as OSError, KeyError, RuntimeError, ValueError, ...
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        damaged = f"is damaged or no Keras weights file ({type(error).__name__}: {reason})"
        sys.stderr.write(str(error) if isinstance(error, _RefusedError) else damaged)
        return REFUSED
    content = io.BytesIO()
    np.savez(content, **arrays)
    sys.stdout.buffer.write(content.getbuffer())
    return 0


def _arrays(file: Any, size: int) -> Iterator[tuple[str, Any]]:
    import h5py
    import numpy as np

    # A whole saved model has its weights in a group of their own, beside the optimizer's.
    root = _hard_link(file, "model_weights", h5py.Group) if "model_weights" in file else file
    if "layer_names" not in root.attrs and "layer_names0" not in root.attrs:
        if "layers" in root or "_layer_checkpoint_dependencies" in root:
            raise _RefusedError("is in Keras 3's layout: save it in the older one, as model.save_weights('x.h5') did")
        raise _RefusedError("is an HDF5 file, but not one that Keras' save_weights wrote (no 'layer_names')")
    total = 0
    for layer in _names(root, "layer_names", size):
        group = _hard_link(root, layer, h5py.Group)
        for weight in _names(group, "weight_names", size):
            dataset = _hard_link(group, weight, h5py.Dataset)
            total += dataset.size * dataset.dtype.itemsize
            if dataset.external or dataset.is_virtual or dataset.dtype.kind not in "fiub":
                raise _RefusedError(f"holds {layer}/{weight} as something other than plain numbers")
            if total > _MOST_COMPRESSED * size:
                raise _RefusedError(f"claims more numbers ({layer}/{weight}: {dataset.shape}) than its size can hold")
            array = np.asarray(dataset[()])
            name = weight if weight.split("/")[0] == layer else f"{layer}/{weight}"
            yield name, array.astype(array.dtype.newbyteorder("="))


def _names(group: Any, attribute: str, size: int) -> list[str]:
    """A list of names; Keras splits one that is too long for an HDF5 header into `attribute0`, `attribute1`, ..."""
    chunks = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(chunks)}" in group.attrs:
        chunks.append(f"{attribute}{len(chunks)}")
    names: list[str] = []
    for chunk in chunks:
        shape = group.attrs.get_id(chunk).shape
        if shape is None or 0 in shape:
            continue
        if len(shape) != 1 or shape[0] > size:
            raise _RefusedError(f"claims more names ({chunk}: {shape}) than its size can hold")
        names += [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs[chunk]]
    return names


def _hard_link(group: Any, name: str, kind: type) -> Any:
    """`group[name]`, but not where any part of it is a link out of the file, or out of the group."""
    import h5py

    node = group
    for part in name.split("/"):
        if not isinstance(node, h5py.Group) or not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise _RefusedError(f"is damaged: it lists {name} but does not hold it")
        node = node[part]
    if not isinstance(node, kind):
        raise _RefusedError(f"is damaged: {name} is not a {kind.__name__.lower()}")
    return node


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
