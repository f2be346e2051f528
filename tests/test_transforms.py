"""Transforms: shapes and values for every kind of image, what is random, and settings that cannot be."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms as T

from hadaptive.data import Augmentation, Preprocessing, eval_transform, to_eight_bit, train_transform
from hadaptive.data.loading import seed_generators
from hadaptive.data.transforms import LimitAspect, posterize
from hadaptive.train import TrainConfig

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
        "float": Image.fromarray(np.tile(np.array([-np.inf, 0.25, np.inf], np.float32), (5, 2))),
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


# -- the same values as torchvision's own steps, to the last bit ------------------------------------------------


def reference(p: Preprocessing, a: Augmentation | None) -> Any:
    """The transform as torchvision and timm compose it, for training with an augmentation."""
    decode = T.Lambda(lambda image: to_eight_bit(image, p.in_chans))
    mean, std = p.mean[: p.in_chans], p.std[: p.in_chans]
    if p.fit == "crop":
        options: dict[str, Any] = {"interpolation": p.interpolation, "mean": mean, "std": std}
        if a is None:
            return T.Compose(
                [decode, LimitAspect(), create_transform(p.input_size, crop_pct=p.crop_pct, **options)]
            )
        options |= {"scale": (a.scale, 1.0), "hflip": a.hflip, "vflip": a.vflip, "color_jitter": a.color_jitter}
        options |= {"auto_augment": a.auto_augment, "re_prob": a.erase, "re_mode": "pixel"}
        return T.Compose([decode, create_transform(p.input_size, is_training=True, **options)])
    shift, flips = T.Lambda(lambda image: image), []
    if a is not None:
        if a.shift:
            shift = T.Lambda(lambda image: T.RandomCrop((image.height, image.width), padding=a.shift)(image))
        flips += [T.RandomHorizontalFlip(a.hflip)] if a.hflip else []
        flips += [T.RandomVerticalFlip(a.vflip)] if a.vflip else []
    size = (p.image_size, p.image_size)
    resize = T.Resize(size, T.InterpolationMode(p.interpolation))
    return T.Compose([decode, T.Pad(p.pad), shift, *flips, resize, T.ToTensor(), T.Normalize(mean, std)])


def assert_identical(p: Preprocessing, a: Augmentation | None, pictures: list[Image.Image], draws: int) -> None:
    """Values and the generators' states afterwards are those of the reference."""
    ours, theirs = eval_transform(p) if a is None else train_transform(p, a), reference(p, a)
    out = torch.full((len(pictures), *p.input_size), torch.nan)
    for seed in range(draws):
        for picture, place in zip(pictures, out, strict=True):
            seed_generators(seed)
            expected = theirs(picture)
            states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
            seed_generators(seed)
            assert torch.equal(ours(picture), expected)
            assert torch.equal(states[0], torch.get_rng_state())
            assert states[1] == random.getstate()
            assert states[2] == np.random.get_state()[1].tolist()  # noqa: NPY002
            seed_generators(seed)
            assert ours(picture, place) is place
            assert torch.equal(place, expected)


@pytest.mark.parametrize("recipe", ["quick", "fmnist-small", "fmnist", "paper", "folder", "imagenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_recipes_give_the_values_of_the_reference(recipe: str, channels: int) -> None:
    config = TrainConfig.from_recipe(recipe, in_chans=channels)
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    pictures = [Image.fromarray(noise[0, :32, :32]), Image.fromarray(noise[1, :28, :28, 0])]
    if config.preprocessing.fit == "crop":
        pictures.append(Image.fromarray(noise[0]).resize((150, 100)))
    assert_identical(config.preprocessing, None, pictures, draws=1)
    assert_identical(config.preprocessing, config.augmentation, pictures, draws=4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("pad", [0, 3])
def test_stretch_gives_the_values_of_the_reference(pad: int, interpolation: str, channels: int) -> None:
    pictures = list(images().values())
    for size in (8, 21):  # 8 is the size of one of them
        p = Preprocessing(size, channels, "stretch", pad, interpolation=interpolation)
        assert_identical(p, None, pictures, draws=1)
        assert_identical(p, Augmentation(hflip=0.5, vflip=0.3, shift=3), pictures, draws=3)
        assert_identical(p, Augmentation(hflip=0.0, vflip=1.0), pictures, draws=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_gives_the_values_of_the_reference(channels: int) -> None:
    pictures = list(images().values())
    for size in (8, 33):
        p = Preprocessing(size, channels, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        assert_identical(p, None, pictures, draws=1)
        assert_identical(p, Augmentation(**ALL), pictures, draws=3)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_pixel_value_is_normalised_as_torchvision_does(mode: str) -> None:
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    draw = np.random.default_rng(0)
    settings = [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3)]
    settings += [(tuple(draw.uniform(0, 1, 3)), tuple(draw.uniform(0.01, 1, 3))) for _ in range(200)]
    for mean, std in settings:
        p = Preprocessing(16, fit="stretch", mean=mean, std=std)
        expected = T.Normalize(mean, std)(T.ToTensor()(grey.convert("RGB")))
        assert torch.equal(eval_transform(p)(grey.convert(mode)), expected)
