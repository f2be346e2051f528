"""Transforms: shapes and values for every kind of image, what is random, and settings that cannot be."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hadaptive.data import Augmentation, Preprocessing, eval_transform, train_transform
from hadaptive.data.transforms import posterize

ALL = {"hflip": 0.5, "vflip": 0.5, "shift": 3, "color_jitter": 0.4, "erase": 1.0, "scale": 0.3}


def images() -> dict[str, Image.Image]:
    """Images that tend to break things."""
    rgba = Image.new("RGBA", (20, 9), (255, 0, 0, 0))
    return {
        "rgb": Image.effect_noise((33, 21), 60).convert("RGB"),
        "grey": Image.effect_noise((8, 8), 60),
        "rgba": rgba,
        "palette": rgba.convert("P"),
        "cmyk": Image.new("CMYK", (9, 20)),
        "word": Image.fromarray(np.full((5, 6), 40_000, np.uint16)),
        "float": Image.fromarray(np.full((5, 6), np.nan, np.float32)),
        "dot": Image.new("L", (1, 1)),
        "tall": Image.new("RGB", (1, 500)),
        "wide": Image.new("1", (500, 1)),
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("kind", images())
def test_shapes_and_finite_values(kind: str, fit: str, channels: int) -> None:
    preprocessing = Preprocessing(24, in_chans=channels, fit=fit, pad=2)
    for auto_augment in (None, "rand-m7-mstd0.5-inc1"):
        augmentation = Augmentation(**ALL, auto_augment=auto_augment)
        for transform in (eval_transform(preprocessing), train_transform(preprocessing, augmentation)):
            result = transform(images()[kind])
            assert result.shape == preprocessing.input_size == (channels, 24, 24)
            assert result.dtype == torch.float32
            assert torch.isfinite(result).all()


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m9-n4", "original", "augmix-m3-w2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_in_grey_and_colour(policy: str, channels: int) -> None:
    transform = train_transform(
        Preprocessing(16, in_chans=channels, fit="crop"), Augmentation(auto_augment=policy, erase=0.5)
    )
    image = Image.effect_noise((20, 18), 60)
    for _ in range(150):  # enough for the rare strengths, such as a posterisation to no bits
        assert transform(image).shape == (channels, 16, 16)


@pytest.mark.parametrize(("bits", "expected"), [(0, 128), (1, 128), (4, 240), (8, 255)])
def test_posterize(bits: int, expected: int) -> None:
    assert posterize(Image.new("L", (2, 2), 255), bits, fillcolor=0).getpixel((0, 0)) == expected


def test_eval_values_and_normalisation() -> None:
    preprocessing = Preprocessing(4, fit="stretch", pad=0, mean=(0.0, 0.5, 0.25), std=(1.0, 0.5, 0.25))
    result = eval_transform(preprocessing)(Image.new("RGB", (9, 3), (255, 255, 0)))
    assert torch.allclose(result.mean((1, 2)), torch.tensor([1.0, 1.0, -1.0]))


def test_stretch_pads_with_zeros() -> None:
    result = eval_transform(Preprocessing(4, in_chans=1, fit="stretch", pad=1, interpolation="nearest"))(
        Image.new("L", (2, 2), 255)
    )
    assert result[0, 1:3, 1:3].eq(1).all()
    assert result[0, 0].eq(-1).all()
    assert result[0, :, 3].eq(-1).all()


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_eval_is_not_random_and_train_is(fit: str) -> None:
    preprocessing, image = Preprocessing(16, fit=fit), images()["rgb"]
    evaluate, train = eval_transform(preprocessing), train_transform(preprocessing, Augmentation(shift=4))
    assert torch.equal(evaluate(image), evaluate(image))
    assert len({train(image).numpy().tobytes() for _ in range(8)}) > 1
    torch.manual_seed(3)
    state = torch.get_rng_state()
    evaluate(image)
    assert torch.equal(state, torch.get_rng_state())


def test_no_augmentation_is_evaluation() -> None:
    preprocessing, image = Preprocessing(16, fit="stretch", pad=1), images()["rgb"]
    plain = train_transform(preprocessing, Augmentation(hflip=0.0))
    assert torch.equal(plain(image), eval_transform(preprocessing)(image))


def test_a_long_strip_is_not_blown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    original = Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        sizes.append(size)
        return original(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", resize)
    result = eval_transform(Preprocessing(224, fit="crop"))(Image.new("RGB", (1, 50_000)))
    assert result.shape == (3, 224, 224)
    assert max(max(size) for size in sizes) <= 32 * 256


def test_a_strip_keeps_its_centre() -> None:
    strip = Image.new("L", (401, 4))
    strip.paste(255, (198, 0, 203, 4))
    result = eval_transform(Preprocessing(8, in_chans=1, fit="crop", crop_pct=1.0))(strip)
    assert result[0, :, 3:5].gt(0.9).all()


def test_transforms_pickle() -> None:
    for fit in ("crop", "stretch"):
        preprocessing = Preprocessing(8, fit=fit)
        for transform in (eval_transform(preprocessing), train_transform(preprocessing, Augmentation(**ALL))):
            assert pickle.loads(pickle.dumps(transform))(Image.new("L", (9, 9))).shape == (3, 8, 8)


def test_preprocessing_survives_json() -> None:
    preprocessing = Preprocessing(64, in_chans=1, fit="stretch", pad=2, mean=(0.25,), std=(0.5,))
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fit": "squash"}, "fit must be one of"),
        ({"in_chans": 4}, "in_chans"),
        ({"image_size": 0}, "image_size"),
        ({"pad": -1}, "pad"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"mean": (0.5,)}, "mean and std"),
        ({"std": (0.5, 0.5, 0.0)}, "mean and std"),
    ],
    ids=str,
)
def test_wrong_preprocessing(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Preprocessing(**{"image_size": 8, **changes})


@pytest.mark.parametrize(
    "changes",
    [{"hflip": 1.5}, {"vflip": -0.1}, {"erase": 2.0}, {"shift": -1}, {"scale": 0.0}, {"color_jitter": -1.0}],
    ids=str,
)
def test_wrong_augmentation(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Augmentation(**changes)


@pytest.mark.parametrize("policy", ["nonsense", "rand-m3-foo7"])
def test_wrong_policy(policy: str) -> None:
    with pytest.raises(ValueError, match=r"auto_augment .* is not a policy"):
        train_transform(Preprocessing(8, fit="crop"), Augmentation(auto_augment=policy))
