"""Any image a person may have, as 8-bit grey or RGB."""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hadaptive.data.config import MOST_PIXELS
from hadaptive.data.heif import INSTALL, is_heif, readable
from hadaptive.errors import UserError

ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
LARGE = 2**30 // 12  # pixels: more are halved; Pillow's own limit, beyond which it warns, when it crops too


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn whatever Pillow raises on damaged data into OSError, and keep its warnings to ourselves.

    Its warnings (corrupt EXIF, a large image, palette transparency) concern images that are read all the same.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        try:
            yield
        except UnidentifiedImageError:
            raise OSError("it is not an image of a kind that Pillow reads") from None
        except (OSError, MemoryError):
            raise
        except Exception as error:  # each format's reader has its own: struct.error, SyntaxError, IndexError...
            raise OSError(f"{error or type(error).__name__}") from error


def open_image(data: bytes) -> Image.Image:
    """An image file's bytes as an image of which the header is read: see :func:`load`.

    Raises:
        OSError: the data are damaged or no image.
    """
    if not data:
        raise OSError("the file is empty")
    with _as_os_errors():
        if is_heif(data[:12]) and not readable():
            raise OSError(f"it is a HEIC photo: {INSTALL} to read it")
        try:
            return Image.open(io.BytesIO(data))
        except Image.DecompressionBombError:
            return _open_large(data)


def _open_large(data: bytes) -> Image.Image:
    """An image beyond Pillow's limit, which belongs to the whole process and is left as it is."""
    for factory, accept in Image.OPEN.values():
        accepted = accept is None or accept(data[:16])
        if accepted and not isinstance(accepted, str):  # a text says what is missing to read it
            try:
                return factory(io.BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, struct.error):  # not of this kind, as in Image.open
                continue
    raise UnidentifiedImageError


def load(image: Image.Image, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """Read all of an image that was opened, if it is not too large; give it back.

    A JPEG of more than LARGE pixels is reduced while it is read, which spares the memory.

    Raises:
        OSError: it is damaged, or has more than `max_pixels` pixels.
    """
    check_size(image, max_pixels)
    with _as_os_errors():
        if (factor := _excess(image)) > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        image.load()
        return image


def check_size(image: Image.Image, max_pixels: int) -> None:
    """Raise OSError if an image has more than `max_pixels` pixels."""
    width, height = image.size
    if width * height > max_pixels:
        raise OSError(
            f"it has {width:,} x {height:,} pixels, {width * height / 1e6:,.0f} million, and --max-pixels "
            f"{max_pixels} allows {max_pixels / 1e6:,.0f} million"
        )


def decode(data: bytes, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """An image file's bytes as an image, fully read, in the mode it was saved in.

    Raises:
        OSError: the data are damaged or no image, or it has more than `max_pixels` pixels.
    """
    return load(open_image(data), max_pixels)


def _excess(image: Image.Image) -> int:
    """How many times an image is to be halved in both directions, as a factor: 1 up to LARGE pixels."""
    factor = 1
    while image.width * image.height > LARGE * factor**2:
        factor *= 2
    return factor


def to_eight_bit(image: Image.Image, channels: int, white: float | None = None) -> Image.Image:
    """Decode `image` fully and return it in mode "L" (channels=1) or "RGB" (channels=3).

    EXIF rotation is applied; transparency is laid over white; grey images of more than 8 bits are scaled to 8
    (PIL's own conversion would clip them); one of more than LARGE pixels is halved until it has no more. The image
    itself is not changed.

    Args:
        image: of any mode.
        channels: 1 or 3.
        white: of grey images of more than 8 bits, as in :class:`hadaptive.data.Preprocessing`.

    Raises:
        OSError: the image data are damaged, or some pixels are no numbers.
        UserError: channels is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels here, not {channels}")
    with _as_os_errors():
        image.load()
        image = _upright(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = _scale_to_eight_bit(image, white)
        elif image.mode == "LAB":
            image = _lab_to_rgb(image)
        elif image.mode == "La":
            image = image.convert("LA")
        if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        return image if (factor := _excess(image)) == 1 else image.reduce(factor)


def _upright(image: Image.Image) -> Image.Image:
    """Undo the camera's rotation; damaged EXIF data are no reason to refuse an image."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:
        return image


def _scale_to_eight_bit(image: Image.Image, white: float | None) -> Image.Image:
    pixels: Any = np.asarray(image)
    if white == 0:
        pixels = np.nan_to_num(pixels.astype(np.float64), posinf=np.inf, neginf=0)
        top = pixels.max(initial=0, where=np.isfinite(pixels))
        white = 1.0 if image.mode == "F" and top <= 1 else 255.0 if top <= 255 else 65535.0
    elif white is None:
        white = 1.0 if image.mode == "F" else 65535.0
    if pixels.dtype.itemsize == 2:  # a table of all values takes less memory than floats
        return Image.fromarray(_eight_bit(np.arange(65536), white)[pixels])
    if np.isnan(pixels).any():
        raise OSError("some of its pixels are no numbers (NaN)")
    return Image.fromarray(_eight_bit(pixels, white))


def _eight_bit(values: np.ndarray, white: float) -> np.ndarray:
    return (values.astype(np.float64).clip(0, white) / white * 255).round().astype(np.uint8)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(image, to_rgb)
    assert converted is not None  # it is None only when done in place
    return converted
