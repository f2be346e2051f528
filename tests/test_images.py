"""Any image to 8 bits: modes, depths, transparency, rotation, odd sizes, damage."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hadaptive.data import decode, images, to_eight_bit

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


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_one_rule_for_all_images_of_a_kind(dtype: type) -> None:
    """The mode says the depth, not the content: a value becomes the same grey whatever stands beside it."""
    for top in (255, 256, 4095, 65535):
        image = Image.fromarray(np.array([[0, 200, top]], dtype))
        found = np.asarray(to_eight_bit(image, 1, white=4095)).tolist()[0]
        assert found[:2] == [0, 12]
        assert found[2] == round(min(top, 4095) / 4095 * 255)
    if dtype is not np.float32:
        assert np.asarray(to_eight_bit(Image.fromarray(np.array([[255, 256]], dtype)), 1)).tolist() == [[1, 1]]


def test_each_images_own_maximum_is_the_rule_of_older_runs() -> None:
    for values, expected in (([0, 100, 255], [0, 100, 255]), ([0, 100, 256], [0, 0, 1])):
        for dtype in (np.uint16, np.int32):
            image = Image.fromarray(np.array([values], dtype))
            assert np.asarray(to_eight_bit(image, 1, white=0)).tolist() == [expected]


@pytest.mark.parametrize(
    ("name", "options", "mode"),
    [
        ("x.png", {}, "I;16"),
        ("x.tif", {}, "I;16"),
        ("x.tif", {"big": True}, "I;16B"),
        ("x.pgm", {}, "I"),
        ("x.jp2", {"irreversible": False}, "I;16"),
    ],
    ids=["png", "tiff", "big-endian-tiff", "pgm", "jpeg2000"],
)
def test_sixteen_bit_files(name: str, options: dict[str, bool], mode: str, tmp_path: Path) -> None:
    values = np.array([[0, 100, 256, 32896]] * 4, np.uint16)
    image = Image.fromarray(values)
    if options.pop("big", False):
        image = Image.frombytes("I;16B", (4, 4), values.astype(">u2").tobytes())
    image.save(tmp_path / name, **options)
    image = decode((tmp_path / name).read_bytes())
    assert image.mode == mode
    assert np.asarray(to_eight_bit(image, 3))[0, :, 0].tolist() == [0, 0, 1, 128]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([0.0, 0.5, 1.0], [0, 128, 255], id="unit"),
        pytest.param([0.0, 0.5, 2.0], [0, 128, 255], id="more-than-white"),
        pytest.param([-np.inf, 0.5, np.inf], [0, 128, 255], id="infinite"),
    ],
)
def test_floats(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert np.asarray(to_eight_bit(image, 1)).tolist() == [expected]


@pytest.mark.parametrize("white", [None, 255.0])
def test_pixels_that_are_no_numbers_make_an_image_unreadable(white: float | None) -> None:
    image = Image.fromarray(np.array([[0.5, np.nan]], np.float32))
    with pytest.raises(OSError, match="pixels are no numbers"):
        to_eight_bit(image, 1, white)


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
def test_floats_by_the_rule_of_older_runs(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert np.asarray(to_eight_bit(image, 1, white=0)).tolist() == [expected]


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
        pytest.param(bomb(30_000, 30_000), "30,000 x 30,000 pixels, 900 million, and --max-pixels", id="bomb"),
    ],
)
def test_damaged_data(data: bytes, says: str | None) -> None:
    with pytest.raises(OSError, match=says):
        decode(data)


def test_image_that_pillow_only_warns_of_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert decode(PNG).size == (64, 64)  # 4096 pixels: more than the limit, less than twice it


LARGE_PHOTO = encoded(Image.new("L", (13_600, 13_400), 77), "JPEG")  # 182 million pixels


def test_a_large_honest_photo_is_read_and_reduced() -> None:
    before = Image.MAX_IMAGE_PIXELS
    for channels in (1, 3):
        result = to_eight_bit(decode(LARGE_PHOTO), channels)
        assert result.size == (6800, 6700)
        assert result.getpixel((9, 9)) == (77 if channels == 1 else (77, 77, 77))
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(OSError, match="--max-pixels 100000000 allows 100 million"):
        decode(LARGE_PHOTO, max_pixels=100_000_000)


@pytest.mark.parametrize("mode", ["L", "RGBA", "1", "P", "I;16"])
def test_large_images_of_other_kinds_are_halved(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As small as Pillow's own limit leaves alone, so that cutting a part out of them warns of nothing."""
    monkeypatch.setattr(images, "LARGE", 1000)
    data = encoded(Image.new(mode, (64, 60)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 3840 is more than twice as many
    result = to_eight_bit(decode(data), 3)
    assert result.size == (32, 30)
    result.crop((0, 0, 32, 30))
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_ordinary_images_are_read_as_they_always_were() -> None:
    noise = Image.effect_noise((301, 203), 60).convert("RGB")
    for kind in ("JPEG", "PNG"):
        data = encoded(noise, kind)
        assert to_eight_bit(decode(data), 3).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_first_picture_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert to_eight_bit(decode(data), 3).getpixel((3, 3)) == (255, 0, 0)


def test_luma_and_lab_colours() -> None:
    red = Image.new("RGB", (8, 8), "red")
    jpeg = decode(encoded(red.convert("YCbCr"), "JPEG"))
    tiff = decode(encoded(red.convert("YCbCr"), "TIFF"))
    for image in (jpeg, tiff, red.convert("YCbCr")):
        found = np.array(to_eight_bit(image, 3).getpixel((3, 3)))
        assert np.abs(found - [255, 0, 0]).max() <= 3
    lab = decode(encoded(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF"))
    assert lab.mode == "LAB"
    assert min(to_eight_bit(lab, 3).getpixel((3, 3))) > 250


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
