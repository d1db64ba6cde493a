from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sr_runner.data.images import decode_image, read_image
from sr_runner.errors import RequestError

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (21, 34, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (21, 34, 3), dtype=np.uint16)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def scaled(samples: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    return np.floor(samples.astype(np.float64) * 255 / 65535 + 0.5).astype(np.uint8)


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_come_back_exactly(form: str, options: dict[str, Any]) -> None:
    assert np.array_equal(decode_image(encoded(Image.fromarray(RGB), form, **options), "x"), RGB)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_as_pillow_reads_them(form: str) -> None:
    data = encoded(Image.fromarray(RGB), form)
    assert np.array_equal(decode_image(data, "x"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_grey_becomes_three_equal_channels() -> None:
    grey = decode_image(encoded(Image.fromarray(RGB[..., 0]), "PNG"), "x")
    assert np.array_equal(grey, np.repeat(RGB[..., :1], 3, axis=2))


def test_alpha_is_dropped_not_blended() -> None:
    alpha = RNG.integers(0, 256, RGB.shape[:2], dtype=np.uint8)
    assert np.array_equal(decode_image(encoded(Image.fromarray(np.dstack([RGB, alpha])), "PNG"), "x"), RGB)
    grey = decode_image(encoded(Image.fromarray(np.dstack([RGB[..., 0], alpha]), "LA"), "PNG"), "x")
    assert np.array_equal(grey[..., 2], RGB[..., 0])


def test_a_palette_becomes_its_colours() -> None:
    image = Image.fromarray(RGB).quantize(17)
    assert np.array_equal(decode_image(encoded(image, "PNG", transparency=3), "x"), np.asarray(image.convert("RGB")))
    assert decode_image(encoded(Image.fromarray(RGB[..., 0] > 99), "PNG"), "x").max() == 255


def test_cmyk_becomes_rgb() -> None:
    assert decode_image(encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "x").shape == RGB.shape


@pytest.mark.parametrize("form", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_scaled_and_rounded(form: str, channels: int) -> None:
    samples = RNG.integers(0, 65536, (21, 34, channels), dtype=np.uint16)
    data = cv2.imencode(form, samples)[1].tobytes()
    expected = scaled(np.repeat(samples, 3, axis=2) if channels == 1 else samples[..., 2::-1])
    assert np.array_equal(decode_image(data, "x"), expected)


def test_16_bit_scaling_is_right_for_every_value() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(decode_image(cv2.imencode(".png", every)[1].tobytes(), "x")[..., 0], scaled(every))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(RGB), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    assert np.array_equal(decode_image(data, "x"), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def test_exif_orientation_is_applied_to_16_bit_colour() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = cv2.imencode(".png", DEEP[..., ::-1])[1].tobytes()
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    body = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = plain[:33] + body + plain[33:]  # after the signature and IHDR
    assert np.array_equal(decode_image(data, "x"), np.rot90(scaled(DEEP), -1))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.98])
def test_a_truncated_file_is_an_error_that_names_it(form: str, share: float, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RGB), form)
    path = tmp_path / "cut.bin"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(RequestError, match=r"cut\.bin"):
        read_image(path)


def test_a_flipped_bit_in_a_png_is_an_error() -> None:
    data = bytearray(encoded(Image.fromarray(RGB), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(RequestError, match="damaged"):
        decode_image(bytes(data), "x")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_wrong_with_a_file_it_gives_an_image_or_a_request_error(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]))
    good = bytearray(encoded(Image.fromarray(RGB), form))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, min(len(good) - 1, 300)))] = data.draw(st.integers(0, 255))
    try:
        assert decode_image(bytes(good), "x").shape[2] == 3
    except RequestError as error:
        assert "x: " in str(error)


def test_a_text_file_is_not_an_image() -> None:
    with pytest.raises(RequestError, match="not an image"):
        decode_image(b"once upon a time", "x")


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"gone\.png.*No such file"):
        read_image(tmp_path / "gone.png")


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(RequestError, match="floating-point"):
        decode_image(encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), "x")


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    row = zlib.compress(bytes(1 + 30_000) * 3000, 9)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 30_000, 3000, 8, 0, 0, 0, 0)), (b"IDAT", row), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    with pytest.raises(RequestError, match="decompression bomb"):
        decode_image(b"\x89PNG\r\n\x1a\n" + b"".join(chunks), "x")


def test_a_photograph_above_pillows_own_limit_is_read_without_a_warning() -> None:
    noise = RNG.integers(0, 256, (950, 950), dtype=np.uint8)
    data = encoded(Image.fromarray(np.tile(noise, (10, 10))), "JPEG", quality=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(data, "x").shape == (9500, 9500, 3)
