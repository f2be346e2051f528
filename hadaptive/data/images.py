"""Any image a person may have, as 8-bit grey or RGB."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hadaptive.data.heif import INSTALL, is_heif, readable
from hadaptive.errors import UserError

ORIENTATION = 0x0112  # the EXIF tag; 1 is upright


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


def decode(data: bytes) -> Image.Image:
    """An image file's bytes as an image, fully read, in the mode it was saved in.

    Raises:
        OSError: the data are damaged, no image, or one so large that Pillow takes it for an attack.
    """
    if not data:
        raise OSError("the file is empty")
    with _as_os_errors():
        if is_heif(data[:12]) and not readable():
            raise OSError(f"it is a HEIC photo: {INSTALL} to read it")
        image = Image.open(io.BytesIO(data))
        image.load()
        return image


def to_eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """Decode `image` fully and return it in mode "L" (channels=1) or "RGB" (channels=3).

    EXIF rotation is applied; transparency is laid over white; 16-bit and floating-point images are scaled to
    8 bits (PIL's own conversion would clip them), with black for NaN. The image itself is not changed.

    Raises:
        OSError: the image data are damaged.
        UserError: channels is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels here, not {channels}")
    with _as_os_errors():
        image.load()
        image = _upright(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = _scale_to_eight_bit(image)
        elif image.mode == "LAB":
            image = _lab_to_rgb(image)
        elif image.mode == "La":
            image = image.convert("LA")
        if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("L" if channels == 1 else "RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Undo the camera's rotation; damaged EXIF data are no reason to refuse an image."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:
        return image


def _scale_to_eight_bit(image: Image.Image) -> Image.Image:
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=np.inf, neginf=0)
    # A float image is taken to lie in [0, 1] if it does; an integer one is 16-bit unless it fits in 8.
    top = pixels.max(initial=0, where=np.isfinite(pixels))
    full = 1.0 if image.mode == "F" and top <= 1 else 255.0 if top <= 255 else 65535.0
    return Image.fromarray((pixels.clip(0, full) / full * 255).round().astype(np.uint8))


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(image, to_rgb)
    assert converted is not None  # it is None only when done in place
    return converted
