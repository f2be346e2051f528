"""Any image to 8 bits: modes, depths, transparency, rotation, odd sizes, damage."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hadaptive.data import decode, to_eight_bit

MODES = (
    *("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"),
    *("LA", "La", "PA", "RGBa", "RGBX", "I", "F", "I;16", "I;16B", "I;16L"),
)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@settings(deadline=None, max_examples=120)
@given(
    mode=st.sampled_from(MODES),
    width=st.sampled_from((1, 2, 3, 17)),
    height=st.sampled_from((1, 2, 5, 31)),
    channels=st.sampled_from((1, 3)),
)
def test_every_mode_and_size(mode: str, width: int, height: int, channels: int) -> None:
    image = Image.new(mode, (width, height))
    result = to_eight_bit(image, channels)
    assert result.size == (width, height)
    assert result.mode == ("L" if channels == 1 else "RGB")
    assert image.mode == mode


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)], ids=str)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_odd_sizes_from_files(size: tuple[int, int], kind: str) -> None:
    assert to_eight_bit(decode(encoded(Image.new("RGB", size, "red"), kind)), 3).size == size


@pytest.mark.parametrize("dtype", [">u2", "<u2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_and_not_clipped(dtype: str, channels: int) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype)
    image = Image.frombytes("I;16B" if dtype[0] == ">" else "I;16", (4, 1), values.tobytes())
    grey = np.asarray(to_eight_bit(image, channels)).reshape(4, -1)[:, 0]
    assert grey.tolist() == [0, 1, 128, 255]


def test_sixteen_bit_png_file() -> None:
    values = np.array([[0, 32896, 65535]], np.uint16)
    image = decode(encoded(Image.fromarray(values), "PNG"))
    assert np.asarray(to_eight_bit(image, 1)).tolist() == [[0, 128, 255]]


def test_integers_that_fit_in_eight_bits_are_kept() -> None:
    image = Image.fromarray(np.array([[0, 100, 255]], np.int32))
    assert image.mode == "I"
    assert np.asarray(to_eight_bit(image, 1)).tolist() == [[0, 100, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([0.0, 0.5, 1.0], [0, 128, 255], id="unit"),
        pytest.param([0.0, 100.0, 255.0], [0, 100, 255], id="bytes"),
        pytest.param([0.0, 32896.0, 65535.0], [0, 128, 255], id="words"),
        pytest.param([-1.0, np.nan, 1.0], [0, 0, 255], id="nan"),
        pytest.param([-np.inf, 0.5, np.inf], [0, 128, 255], id="infinite"),
        pytest.param([np.nan] * 3, [0, 0, 0], id="only-nan"),
    ],
)
def test_floats(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert np.asarray(to_eight_bit(image, 1)).tolist() == [expected]


def test_one_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert np.asarray(to_eight_bit(decode(encoded(image, "PNG")), 1)).tolist() == [[0, 255]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "RGBa", "La", "PA", "P-index", "P-bytes", "L-key", "RGB-key"])
def test_transparency_is_laid_over_white(kind: str, channels: int) -> None:
    """Two black pixels, the second one transparent."""
    if kind == "P-index":
        image = Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((1, 0), 1)
        image = decode(encoded(image, "PNG", transparency=1))
    elif kind == "P-bytes":
        image = Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((1, 0), 1)
        image = decode(encoded(image, "PNG", transparency=bytes([255, 0])))
    elif kind.endswith("key"):
        mode = kind.split("-")[0]
        image = Image.new(mode, (2, 1))
        image.putpixel((1, 0), 3 if mode == "L" else (3, 3, 3))
        image = decode(encoded(image, "PNG", transparency=3 if mode == "L" else (3, 3, 3)))
    else:
        image = Image.new("LA", (2, 1), (0, 255))
        image.putpixel((1, 0), (0, 0))
        image = (
            image if kind == "LA" else image.convert("RGBA").convert(kind) if kind != "La" else image.convert("La")
        )
    pixels = np.asarray(to_eight_bit(image, channels)).reshape(2, -1)
    assert pixels.min(1).tolist() == [0, 255]
    assert pixels.max(1).tolist() == [0, 255]


def test_palette_and_cmyk_colours() -> None:
    palette = Image.new("RGB", (2, 2), (255, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert to_eight_bit(decode(encoded(palette, "GIF")), 3).getpixel((0, 0)) == (255, 0, 0)
    cmyk = decode(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert cmyk.mode == "CMYK"
    assert to_eight_bit(cmyk, 3).getpixel((0, 0)) == (255, 255, 255)
    assert to_eight_bit(cmyk, 1).getpixel((0, 0)) == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.new("L", (16, 8))
    upright.paste(255, (0, 0, 8, 4))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    result = to_eight_bit(decode(encoded(stored, "PNG", exif=exif)), 1)
    assert np.array_equal(np.asarray(result), np.asarray(upright))


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    data = encoded(
        Image.new("RGB", (8, 8), "white"), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01"
    )
    assert to_eight_bit(decode(data), 3).size == (8, 8)


def chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is enormous."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = encoded(Image.effect_noise((64, 64), 50), "JPEG")
PNG = encoded(Image.effect_noise((64, 64), 50), "PNG")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"this is a text file", "not an image", id="text"),
        pytest.param(JPEG[: len(JPEG) // 2], "truncated", id="half-jpeg"),
        pytest.param(JPEG[:30], None, id="jpeg-header"),
        pytest.param(PNG[: len(PNG) // 2], "truncated", id="half-png"),
        pytest.param(PNG[:20], None, id="png-header"),
        pytest.param(bomb(30_000, 30_000), "decompression bomb", id="bomb"),
    ],
)
def test_damaged_data(data: bytes, says: str | None) -> None:
    with pytest.raises(OSError, match=says):
        decode(data)


def test_image_that_pillow_only_warns_of_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert decode(PNG).size == (64, 64)  # 4096 pixels: more than the limit, less than twice it


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_garbled_files_give_an_image_or_oserror(data: st.DataObject) -> None:
    original = bytearray(data.draw(st.sampled_from((JPEG, PNG))))
    for _ in range(data.draw(st.integers(1, 8))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = to_eight_bit(decode(bytes(original)), 3)
    except OSError:
        return
    assert image.mode == "RGB"


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_wrong_channels(channels: int) -> None:
    with pytest.raises(ValueError, match="1 or 3"):
        to_eight_bit(Image.new("L", (1, 1)), channels)
