"""From a PIL image to a normalised tensor: what evaluation does, and what training adds.

Two families. "crop" is timm's: resize the short side, crop the centre; random resized crops, RandAugment and the
rest while training. "stretch" is for small fixed-size images: pad, resize to the square the network takes;
shift by a padded random crop and flip while training.
"""

from copy import copy
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from PIL.Image import Resampling, Transpose
from timm.data import create_transform  # pyright: ignore[reportPrivateImportUsage]
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.transforms import MaybeToTensor
from torch import Tensor
from torchvision import transforms as T

from hadaptive.data.config import Augmentation, Preprocessing
from hadaptive.data.images import load, to_eight_bit
from hadaptive.errors import UserError


class Decode:
    """PIL image, read or only opened -> 8-bit PIL image with the number of channels the network takes.

    With `keep_grey`, a grey image stays one where three channels are due: what treats all channels alike is
    cheaper before they are three.
    """

    def __init__(self, preprocessing: Preprocessing, keep_grey: bool = False) -> None:
        self.channels = preprocessing.in_chans
        self.white = preprocessing.white
        self.max_pixels = preprocessing.max_pixels
        self.keep_grey = keep_grey

    def __call__(self, image: Any) -> Any:
        image = load(image, self.max_pixels)
        grey = self.keep_grey and image.mode == "L" and "transparency" not in image.info
        return to_eight_bit(image, 1 if grey else self.channels, self.white)


class LimitAspect:
    """Cut the ends off an image more than `most` times longer than wide (or the reverse), about its centre.

    The centre crop that follows never sees them, but resizing the short side to hundreds of pixels would first
    blow a strip of 1x5000 up to gigabytes.
    """

    def __init__(self, most: int = 32) -> None:
        self.most = most

    def __call__(self, image: Any) -> Any:
        width, height = image.size
        side = min(width, height) * self.most
        left, top = max(0, (width - side) // 2), max(0, (height - side) // 2)
        if not (left or top):
            return image
        return image.crop((left, top, left + min(width, side), top + min(height, side)))


class Stretch:
    """Pad with zeros, shift and mirror at random, and resize to a square; 8-bit PIL image -> 8-bit PIL image.

    It draws from PyTorch's generator what torchvision's RandomCrop and flips draw, in their order.
    """

    def __init__(self, preprocessing: Preprocessing, augmentation: Augmentation | None = None) -> None:
        self.pad = preprocessing.pad
        self.size = (preprocessing.image_size, preprocessing.image_size)
        self.resample = Resampling[preprocessing.interpolation.upper()]
        self.shift, self.hflip, self.vflip = 0, 0.0, 0.0
        if augmentation is not None:
            self.shift, self.hflip, self.vflip = augmentation.shift, augmentation.hflip, augmentation.vflip

    def __call__(self, image: Any) -> Any:
        left = top = -self.pad
        width, height = image.width + 2 * self.pad, image.height + 2 * self.pad
        if self.shift:
            top += int(torch.randint(0, 2 * self.shift + 1, (1,))) - self.shift
            left += int(torch.randint(0, 2 * self.shift + 1, (1,))) - self.shift
        if left or top or self.pad:
            image = image.crop((left, top, left + width, top + height))  # zeros wherever it has no pixels
        if self.hflip and torch.rand(1) < self.hflip:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        if self.vflip and torch.rand(1) < self.vflip:
            image = image.transpose(Transpose.FLIP_TOP_BOTTOM)
        return image if image.size == self.size else image.resize(self.size, self.resample)


class Normalise:
    """8-bit PIL image -> float32 (C, H, W): to [0, 1], less the mean, over std; grey is repeated.

    The values are those of torchvision's ToTensor and Normalize to the last bit, at half the cost.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        channels = preprocessing.in_chans
        self.mean = np.array(preprocessing.mean[:channels], np.float32).reshape(channels, 1, 1)
        self.std = np.array(preprocessing.std[:channels], np.float32).reshape(channels, 1, 1)

    def __call__(self, image: Any, out: Tensor | None = None) -> Tensor:
        pixels = np.asarray(image)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if out is None:
            out = torch.empty(len(self.mean), *pixels.shape[1:])
        values = out.numpy()
        if len(pixels) == len(values):
            np.divide(pixels, np.float32(255), out=values, dtype=np.float32)
            values -= self.mean
        else:
            np.subtract(np.divide(pixels, np.float32(255), dtype=np.float32), self.mean, out=values)
        values /= self.std
        return out


class ImageTransform:
    """PIL image of any kind -> float32 (C, size, size): steps on the image, normalisation, a step on the tensor.

    Attributes:
        shape: (C, size, size).
        random: whether it draws random numbers.
    """

    def __init__(
        self, preprocessing: Preprocessing, steps: list[Any], *, random: bool = False, last: Any = None
    ) -> None:
        self.shape = preprocessing.input_size
        self.random = random
        self.steps = steps
        self.normalise = Normalise(preprocessing)
        self.last = last

    def after_steps(self) -> "ImageTransform":
        """The transform of an image on which the steps have been done."""
        done = copy(self)
        done.steps = []
        return done

    def __call__(self, image: Any, out: Tensor | None = None) -> Tensor:
        """Transform one image, into `out` (contiguous, of the shape `shape`) where it is given."""
        for step in self.steps:
            image = step(image)
        result = self.normalise(image, out)
        if self.last is not None:
            last = self.last(result)
            result = last if out is None or last is out else out.copy_(last)
        return result


def eval_transform(preprocessing: Preprocessing) -> ImageTransform:
    """PIL image of any kind -> float32 (C, size, size), the same for evaluation, prediction and export."""
    p = preprocessing
    if p.fit == "stretch":
        return ImageTransform(p, [Decode(p, keep_grey=True), Stretch(p)])
    resize_and_crop: Any = create_transform(
        p.input_size,
        interpolation=p.interpolation,
        mean=p.mean[: p.in_chans],
        std=p.std[: p.in_chans],
        crop_pct=p.crop_pct,
    )
    before, last = _around_normalisation(resize_and_crop)
    return ImageTransform(p, [Decode(p), LimitAspect(), *before], last=last)


def train_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> ImageTransform:
    """PIL image of any kind -> float32 (C, size, size), augmented.

    Raises:
        UserError: timm has no such auto_augment policy.
    """
    p, a = preprocessing, augmentation
    if p.fit == "stretch":
        return ImageTransform(p, [Decode(p, keep_grey=True), Stretch(p, a)], random=True)
    before, last = _around_normalisation(_augmented_crop(p, a))
    return ImageTransform(p, [Decode(p), *before], random=True, last=last)


def _around_normalisation(composed: Any) -> tuple[list[Any], Any]:
    """timm's steps before ToTensor and Normalize, and the one after them (random erasing) or None."""
    steps = list(composed.transforms)
    place = next(i for i, step in enumerate(steps) if isinstance(step, T.Normalize))
    assert isinstance(steps[place - 1], T.ToTensor | MaybeToTensor)
    assert len(steps) <= place + 2
    return steps[: place - 1], steps[place + 1] if len(steps) == place + 2 else None


def _augmented_crop(p: Preprocessing, a: Augmentation) -> Any:
    try:
        result: Any = create_transform(
            p.input_size,
            is_training=True,
            scale=(a.scale, 1.0),
            hflip=a.hflip,
            vflip=a.vflip,
            color_jitter=a.color_jitter,
            auto_augment=a.auto_augment,
            interpolation=p.interpolation,
            mean=p.mean[: p.in_chans],
            std=p.std[: p.in_chans],
            re_prob=a.erase,
            re_mode="pixel",
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"auto_augment {a.auto_augment!r} is not a policy of timm's ({error}); try rand-m7-mstd0.5-inc1"
        ) from None
    for step in result.transforms:
        for op in [*getattr(step, "ops", ()), *(op for pair in getattr(step, "policy", ()) for op in pair)]:
            if op.aug_fn is timm_posterize:
                op.aug_fn = posterize
    return result


def posterize(image: Any, bits: int, **_: Any) -> Any:
    """Keep the highest `bits` bits. timm's asks Pillow for 0 bits at times, which its later versions refuse."""
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))
