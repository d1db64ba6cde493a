"""Image files to uint8 RGB arrays, strictly: a damaged file is an error, never a picture with a grey lower half."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from sr_runner.errors import RequestError

Pixels = npt.NDArray[np.uint8]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""What counts as an image in a folder, in lower or upper case."""

MAX_PIXELS = 1_000_000_000
"""The largest image that is decoded at all (3 GB of pixels)."""

_BOMB_PIXELS = 50_000_000
_BOMB_PIXELS_PER_BYTE = 200
"""A larger image from fewer bytes than this is a decompression bomb: photographs compress to 0.1 byte a pixel."""

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
"""What Pillow raises for damaged files, depending on the format and on the place of the damage."""

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258


def read_image(path: Path) -> Pixels:
    """The image at `path` as H x W x 3 uint8 RGB; see `decode_image`. `RequestError` where it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise RequestError(f"{path}: not a file.")
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}).") from error
    return decode_image(data, str(path))


def image_area(file: Path | BinaryIO) -> int:
    """Number of pixels of an encoded image, from its header; 0 where that cannot be read."""
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(file) as image:
            return image.width * image.height
    except _DAMAGE:
        return 0


def decode_image(data: bytes, name: str) -> Pixels:
    """The encoded image `data` as H x W x 3 uint8 RGB.

    Grey and palette images become RGB, alpha is dropped (not blended), 16-bit samples become round(v * 255 / 65535),
    the EXIF orientation is applied, colour profiles are ignored as the field does. Raises `RequestError`, which names
    `name`, where the data is damaged, truncated, no image, a decompression bomb, or of a kind with no place in
    [0, 255] (floating point, 32-bit integers).
    """
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit refuses large photographs; _refuse_bomb stands in for it
    try:
        pixels, orientation = _decode(data, name)
    except RequestError:
        raise
    except UnidentifiedImageError as error:
        raise RequestError(f"{name}: not an image, or its beginning is damaged ({len(data)} bytes).") from error
    except MemoryError as error:
        raise RequestError(f"{name}: too large to be decoded in the memory of this machine.") from error
    except _DAMAGE as error:
        raise RequestError(f"{name}: damaged image ({error}).") from error
    return np.ascontiguousarray(_upright(pixels, orientation))


def _decode(data: bytes, name: str) -> tuple[Pixels, int]:
    with Image.open(BytesIO(data)) as image:
        _refuse_bomb(image, len(data), name)
        deep = _is_16_bit_colour(image, data)
        if image.format == "PNG":
            with Image.open(BytesIO(data)) as again:
                again.verify()  # load() does not compare the checksums of the pixel data
        image.load()
        orientation = int(image.getexif().get(_ORIENTATION, 1))
        if deep:
            return _decode_16_bit_colour(data, name), orientation
        if image.mode.startswith("I;16") or image.mode == "I":
            return _grey_16_bit(image, name), orientation
        if image.mode == "F":
            raise RequestError(f"{name}: floating-point pixels have no defined range; convert it to 8 or 16 bits.")
        # Pillow converts premultiplied alpha no further in one go.
        plain = image.convert("RGBA") if image.mode == "RGBa" else image
        return np.asarray(plain.convert("RGB")), orientation


def _refuse_bomb(image: Image.Image, size: int, name: str) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS or (pixels > _BOMB_PIXELS and pixels > _BOMB_PIXELS_PER_BYTE * size):
        raise RequestError(
            f"{name}: {image.width} x {image.height} pixels from {size} bytes look like a decompression bomb; "
            f"at most {MAX_PIXELS // 1_000_000} Mpx are read, and not from so few bytes. Crop or re-encode it."
        )


def _is_16_bit_colour(image: Image.Image, data: bytes) -> bool:
    """Whether Pillow would cut 16-bit samples down to their high byte: any 16-bit image that is not plain grey."""
    if image.mode.startswith("I"):
        return False
    if image.format == "PNG":
        return data[24] == 16  # the bit depth in IHDR, which comes first in every PNG
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
        return 16 in (bits if isinstance(bits, tuple) else (bits,))
    return False


def _decode_16_bit_colour(data: bytes, name: str) -> Pixels:
    import cv2

    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise RequestError(f"{name}: 16-bit image of a kind that cannot be read; save it as 16-bit RGB PNG or TIFF.")
    samples = np.asarray(decoded)
    if samples.ndim == 2:
        samples = np.repeat(samples[..., None], 3, axis=2)
    return _to_8_bit(samples[..., 2::-1])  # OpenCV's BGR or BGRA to RGB


def _grey_16_bit(image: Image.Image, name: str) -> Pixels:
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise RequestError(f"{name}: 32-bit integer pixels have no defined range; convert it to 8 or 16 bits.")
    return np.repeat(_to_8_bit(grey)[..., None], 3, axis=2)


def _to_8_bit(samples: npt.NDArray[np.generic]) -> Pixels:
    """round(v * 255 / 65535), which is (v + 128) // 257 in integers: there are no ties, as 257 is odd."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """`pixels` as EXIF orientation 1..8 wants them to be shown; anything else leaves them as they are."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
