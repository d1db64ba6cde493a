"""Counter-based randomness: a random number is a pure function of (seed, stream, n), without generator state.

Sample `n` of a run draws its image, crop and flips from here, so the position in the data is one integer, and how
many threads or processes draw the samples cannot matter.

The function is SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014; the constants are Stafford's variant 13) in two keyed rounds. It is written out in numpy's uint64
arithmetic, not taken from a library whose next version might draw something else: the numbers decide a run's weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
Counter = int | npt.NDArray[np.uint64] | npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STREAM = np.uint64(0xD1342543DE82EF95)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32, _11 = (np.uint64(shift) for shift in (30, 27, 31, 32, 11))


def bits(seed: Counter, stream: int, n: Counter) -> UInt64:
    """64 random bits for each counter in `n`.

    `stream` names what the bits are for, so that one sample's draws are independent of each other. `seed` and `n` are
    broadcast against each other: an array of seeds (drawn by another call) keys a tree of draws. The result is an
    array of at least one dimension.
    """
    key = _mix(_uint64(seed) * _GOLDEN + _uint64(stream) * _STREAM + _GOLDEN)
    return _mix(_mix(_uint64(n) * _GOLDEN + key) ^ _mix(key + _STREAM))


def below(random: UInt64, bound: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Integers in [0, bound) from 64 random bits each; `bound` below 2**31. Biased by less than bound / 2**32."""
    scaled = (random >> _32) * np.asarray(bound).astype(np.uint64)
    return (scaled >> _32).astype(np.int64)


def uniform(random: UInt64) -> npt.NDArray[np.float64]:
    """float64 in [0, 1) from 64 random bits each."""
    return (random >> _11).astype(np.float64) * 2.0**-53


def _uint64(value: Counter) -> UInt64:
    """As uint64 modulo 2**64, in an array: numpy warns where scalars wrap around, and not where arrays do."""
    if isinstance(value, int):
        return np.array([value & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)
    return np.atleast_1d(value).astype(np.uint64, copy=False)


def _mix(z: UInt64) -> UInt64:
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)
