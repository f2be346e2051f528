"""Any image a person may have, as 8-bit grey or RGB."""

import numpy as np
from PIL import Image, ImageOps


def to_eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """Decode `image` fully and return it in mode "L" (channels=1) or "RGB" (channels=3).

    EXIF rotation is applied; transparency is laid over white; 16-bit and floating-point images are scaled to
    8 bits (PIL's own conversion would clip them).

    Raises:
        OSError: the image data are damaged.
        ValueError: channels is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels here, not {channels}")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _scale_to_eight_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("L" if channels == 1 else "RGB")


def _scale_to_eight_bit(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float64)
    # A float image is taken to lie in [0, 1] if it does; an integer one is 16-bit unless it fits in 8.
    top = float(pixels.max(initial=0))
    full = 1.0 if image.mode == "F" and top <= 1 else 255.0 if top <= 255 else 65535.0
    return Image.fromarray((pixels.clip(0, full) / full * 255).round().astype(np.uint8))
