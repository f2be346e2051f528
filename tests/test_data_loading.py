"""Batches: the same whatever the workers and the order; damaged images."""

import errno
import io
import os
import pickle
import random
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch._utils import ExceptionWrapper
from torch.utils.data import ConcatDataset

from hadaptive.data import (
    ArraySource,
    Augmentation,
    DataConfig,
    EpochSampler,
    ImageDataset,
    LoadingError,
    Preprocessing,
    UnreadableImageError,
    create_loader,
    derive_seed,
    eval_transform,
    open_data,
    train_transform,
    worker_count,
)
from hadaptive.errors import UserError
from hadaptive.metrics import evaluate_model

PREPROCESSING = Preprocessing(8, fit="crop")
FORK = pytest.param(
    "fork",
    marks=[
        pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork is Linux's way"),
        pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    ],
)


def augmented(seed: int = 0, count: int = 24) -> ImageDataset:
    """Noise pictures under every kind of augmentation."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 10, 3), dtype=np.uint8)
    augmentation = Augmentation(auto_augment="rand-m9-n3-mstd0.5", erase=0.5)
    transform = train_transform(PREPROCESSING, augmentation)
    source = ArraySource(pixels, np.arange(count) % 3, "noise")
    return ImageDataset(source, transform, seed=seed, training=True)


def folder_with_damage(root: Path, good: int = 6) -> list[str]:
    """Two classes of `good` pictures each, and in the first one a file for each kind of damage; their names."""
    for target, name in enumerate(("a", "b")):
        (root / name).mkdir(parents=True)
        for number in range(good):
            Image.new("RGB", (9, 9), (target * 200, number, 0)).save(root / name / f"{number}.png")
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    damaged = {
        "cut.jpg": buffer.getvalue()[: len(buffer.getvalue()) // 2],
        "empty.png": b"",
        "text.png": b"hello",
    }
    for name, data in damaged.items():
        (root / "a" / name).write_bytes(data)
    (root.parent / "elsewhere").write_bytes(b"gone when it is read")
    (root / "a" / "gone.png").symlink_to(root.parent / "elsewhere")
    return sorted([*damaged, "gone.png"])


# -- what a sample depends on -----------------------------------------------------------------------------------


def epoch_of(dataset: ImageDataset, epoch: int, workers: int, seed: int = 0, context: str | None = None) -> dict:
    """Images of one epoch by index, through a loader."""
    order = EpochSampler(len(dataset), len(dataset), seed)
    order.set_epoch(epoch)
    loader = create_loader(dataset, 5, sampler=order, workers=workers)
    if context:
        loader.multiprocessing_context = context
    images = torch.cat([batch[0] for batch in loader])
    return {index: image for (index, _), image in zip(order, images, strict=True)}


def equal(a: dict[int, Tensor], b: dict[int, Tensor]) -> bool:
    """Whether all the images are the same."""
    return a.keys() == b.keys() and all(torch.equal(a[i], b[i]) for i in a)


def test_samples_do_not_depend_on_order_or_generators() -> None:
    dataset = augmented()
    first = epoch_of(dataset, 3, workers=0)
    torch.manual_seed(99)
    random.seed(99)
    assert equal(first, epoch_of(dataset, 3, workers=0, seed=17))
    assert equal(first, {i: dataset[i, 3][0] for i in reversed(range(len(dataset)))})
    assert not torch.equal(first[0], epoch_of(dataset, 4, workers=0)[0])
    assert not torch.equal(first[0], epoch_of(augmented(seed=1), 3, workers=0)[0])


@pytest.mark.parametrize("context", [FORK])
def test_samples_do_not_depend_on_workers(context: str) -> None:
    dataset = augmented()
    assert equal(epoch_of(dataset, 3, workers=0), epoch_of(dataset, 3, workers=2, context=context))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=FORK.marks)])
def test_a_batch_is_the_items_put_together(tmp_path: Path, workers: int) -> None:
    """Whether the images were written into the batch, or gathered after a transform that cannot do that."""
    dataset, _ = damaged_dataset(tmp_path)
    random = augmented()
    plain = [ImageDataset(d.source, d.transform.__call__, training=d.training) for d in (dataset, random)]
    plain[0].blank = dataset.blank
    for quick, slow in zip((dataset, random), plain, strict=True):
        expected = [slow[i] for i in range(len(slow))]
        for written in (quick, slow):
            batches = list(create_loader(written, 5, workers=workers))
            assert [len(batch[0]) for batch in batches[:-1]] == [5] * (len(batches) - 1)
            images, targets, unreadable = (torch.cat(column) for column in zip(*batches, strict=True))
            assert torch.equal(images, torch.stack([image for image, _, _ in expected]))
            assert images.dtype == torch.float32
            assert targets.dtype == unreadable.dtype == torch.int64
            assert targets.tolist() == [target for _, target, _ in expected]
            assert unreadable.tolist() == [number for _, _, number in expected]
    assert torch.isfinite(images).all()


def test_evaluation_neither_seeds_nor_draws(tmp_path: Path) -> None:
    dataset, _ = damaged_dataset(tmp_path)
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    next(iter(create_loader(dataset, 5)))
    assert before == np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=FORK.marks)])
def test_global_generators_are_left_alone(workers: int) -> None:
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    epoch_of(augmented(), 0, workers=workers, context="fork" if workers else None)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_generators_are_restored_after_an_error() -> None:
    dataset = ImageDataset(augmented().source, lambda image: 1 // 0)
    state = torch.get_rng_state(), random.getstate()
    with pytest.raises(ZeroDivisionError):
        dataset[0]
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()


def test_derive_seed() -> None:
    seeds = {derive_seed(a, b, c) for a in range(5) for b in range(5) for c in range(20)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2) == derive_seed(1, 2) != derive_seed(2, 1)


@given(
    classes=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    cut=st.integers(0, 39),
    seed=st.integers(0, 2**63 - 1),
)
def test_balanced_epochs(classes: list[int], cut: int, seed: int) -> None:
    targets, length = np.array(classes), max(1, len(classes) - cut)
    sampler = EpochSampler(len(targets), length, seed, targets)
    sampler.set_epoch(3)
    keys = list(sampler)
    assert len(keys) == length == len(set(keys))  # an image that is drawn again is augmented anew
    assert keys == list(sampler)
    drawn = np.bincount([targets[i] for i, _ in keys], minlength=5)[np.unique(targets)]
    assert drawn.max() - drawn.min() <= 1
    for c in np.unique(targets):
        times = [sum(i == image for i, _ in keys) for image in np.flatnonzero(targets == c)]
        assert max(times) - min(times) <= 1
    sampler.set_epoch(4)
    assert set(keys).isdisjoint(list(sampler))


def test_epoch_sampler() -> None:
    sampler = EpochSampler(20, 16, seed=4)
    first = list(sampler)
    assert len(sampler) == len(first) == len({index for index, _ in first}) == 16
    assert {epoch for _, epoch in first} == {0}
    assert first == list(sampler) == list(EpochSampler(20, 16, seed=4))
    sampler.set_epoch(1)
    assert [index for index, _ in sampler] != [index for index, _ in first]
    assert [i for i, _ in EpochSampler(20, 16, seed=5)] != [index for index, _ in first]
    assert sorted(index for index, _ in EpochSampler(20, 20, seed=4)) == list(range(20))


@pytest.mark.parametrize("length", [0, -1, 21])
def test_epoch_sampler_of_an_impossible_length(length: int) -> None:
    with pytest.raises(ValueError, match="images long"):
        EpochSampler(20, length, seed=0)


@pytest.mark.parametrize(
    ("in_memory", "device", "cores", "size", "expected"),
    [
        (False, "cpu", 1, 32, 1),
        (False, "cpu", 4, 32, 3),
        (False, "cuda", 64, 224, 8),
        (True, "cuda", 1, 224, 0),
        (True, "cuda", 2, 8, 1),
        (True, "mps", 8, 32, 7),
        (True, "cuda", 64, 32, 8),
        (True, "cpu", 7, 224, 0),
        (True, "cpu", 8, 224, 1),
        (True, "cpu", 16, 128, 2),
        (True, "cpu", 16, 64, 0),
        (True, "cpu", 256, 224, 8),
    ],
)
def test_worker_count(in_memory: bool, device: str, cores: int, size: int, expected: int) -> None:
    options: dict[str, Any] = {"in_memory": in_memory, "device": device, "batch": (64, 3, size, size)}
    assert worker_count(-1, **options, cores=cores, shared=2**40) == expected
    assert worker_count(3, **options, cores=cores, shared=0) == 3
    assert worker_count(0, **options, cores=cores, shared=0) == 0
    assert 0 <= worker_count(-1, **options) <= 8


def test_worker_count_where_shared_memory_is_small() -> None:
    options: dict[str, Any] = {"in_memory": False, "device": "cuda", "batch": (64, 3, 224, 224), "cores": 16}
    batch = 64 * 3 * 224 * 224 * 4
    assert worker_count(-1, **options, shared=64 * 2**20) == 0  # what a container has unless told otherwise
    assert worker_count(-1, **options, shared=3 * batch) == 1
    assert worker_count(-1, **options, shared=3 * 8 * batch - 1) == 7


@pytest.mark.parametrize("context", [FORK, "spawn"])
def test_every_kind_of_source_through_workers(tmp_path: Path, context: str) -> None:
    """All in one loader, for a spawned worker takes seconds to import everything."""
    folder_with_damage(tmp_path / "d")
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        tar.add(tmp_path / "d", arcname="d")
    parts: list[ImageDataset] = [augmented()]
    for path in (tmp_path / "d", tmp_path / "d.tar"):
        source = open_data(DataConfig(str(path))).train
        parts.append(ImageDataset(source, eval_transform(PREPROCESSING), blank=(3, 8, 8)))
    dataset = ConcatDataset(parts)
    expected = [dataset[i] for i in range(len(dataset))]  # read here first, so that a shared file would show
    loader = create_loader(dataset, 4, workers=2)
    loader.multiprocessing_context = context
    images, targets, unreadable = (torch.cat(column) for column in zip(*loader, strict=True))
    assert torch.equal(images, torch.stack([image for image, _, _ in expected]))
    assert targets.tolist() == [target for _, target, _ in expected]
    assert unreadable.tolist() == [bad for _, _, bad in expected]


# -- images that cannot be read ---------------------------------------------------------------------------------


def damaged_dataset(root: Path, **options: Any) -> tuple[ImageDataset, list[int]]:
    """All the images of a folder with damage, and the indices of the damaged ones."""
    bad = folder_with_damage(root)
    from hadaptive.data.files import open_folder

    source = open_folder(root).parts["train"]
    (root.parent / "elsewhere").unlink()
    indices = [i for i in range(len(source)) if Path(source.name(i)).name in bad]
    assert len(indices) == len(bad)
    return ImageDataset(source, eval_transform(PREPROCESSING), blank=(3, 8, 8), **options), indices


def test_training_takes_the_next_readable_image(tmp_path: Path) -> None:
    dataset, bad = damaged_dataset(tmp_path, training=True)
    for i in range(len(dataset)):
        image, target, unreadable = dataset[i, 0]
        assert unreadable == (i if i in bad else -1)
        assert target in (0, 1)
        following = next(j % len(dataset) for j in range(i, 2 * len(dataset)) if j % len(dataset) not in bad)
        assert torch.equal(image, dataset[following, 0][0])
    images, _, unreadable = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    assert {image.shape for image in images} == {(3, 8, 8)}
    assert sorted(i for i in unreadable if i >= 0) == bad


def test_evaluation_does_not_count_them(tmp_path: Path) -> None:
    dataset, bad = damaged_dataset(tmp_path)
    for i in bad:
        image, target, unreadable = dataset[i]
        assert (target, unreadable) == (-1, i)
        assert image.shape == (3, 8, 8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    evaluation = evaluate_model(model, create_loader(dataset, 5), 2)
    assert evaluation.unreadable == bad
    assert evaluation.total == len(dataset) - len(bad)
    assert evaluation.targets.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("training", [False, True])
def test_strict_names_the_file(tmp_path: Path, training: bool) -> None:
    dataset, bad = damaged_dataset(tmp_path, training=training, strict=True)
    for i in bad:
        with pytest.raises(
            UnreadableImageError, match=r"cannot read .*/a/(cut|empty|text|gone)\.(png|jpg): .*strict"
        ):
            dataset[i]
    readable = next(i for i in range(len(dataset)) if i not in bad)
    assert dataset[readable][2] == -1


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=FORK.marks)])
def test_strict_is_one_sentence_out_of_a_worker_too(tmp_path: Path, workers: int) -> None:
    dataset, _ = damaged_dataset(tmp_path, strict=True)
    loader = Accelerator(cpu=True).prepare(create_loader(dataset, 5, workers=workers))
    with pytest.raises(UnreadableImageError) as caught:
        list(loader)
    assert re.fullmatch(
        r"cannot read \S*/a/cut\.jpg: .*; leave out --strict to skip such images", str(caught.value)
    )


def mistaken(image: Image.Image) -> Tensor:
    raise UserError("a person's mistake: mend it")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=FORK.marks)])
def test_any_user_error_is_one_sentence_out_of_a_worker_too(workers: int) -> None:
    dataset = ImageDataset(augmented().source, mistaken)
    with pytest.raises(LoadingError) as caught:
        list(create_loader(dataset, 5, workers=workers))
    assert str(caught.value) == "a person's mistake: mend it"


@pytest.mark.parametrize(
    "message", ["cannot read a\nb: it is empty", "Caught in the act"], ids=["lines", "caught"]
)
def test_a_loading_error_says_what_it_was_told(message: str) -> None:
    assert str(LoadingError(message)) == str(pickle.loads(pickle.dumps(LoadingError(message)))) == message
    try:
        raise LoadingError(message)
    except LoadingError:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 3")
    with pytest.raises(LoadingError) as caught:
        wrapper.reraise()
    assert str(caught.value) == message


def test_not_one_can_be_read(tmp_path: Path) -> None:
    dataset, _ = damaged_dataset(tmp_path, training=True)
    dataset.source = type(
        "Broken", (), {"__len__": lambda s: 3, "read": lambda s, i: Image.open(tmp_path / "x")}
    )()
    with pytest.raises(UnreadableImageError, match="not one of the training images"):
        dataset[0]


def test_too_many_open_files_is_not_the_images_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, _ = damaged_dataset(tmp_path)

    def read(index: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(dataset.source, "read", read)
    with pytest.raises(OSError, match="Too many open files"):
        dataset[0]


def test_a_mistake_in_a_transform_is_not_hidden() -> None:
    def broken(image: Image.Image) -> Tensor:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        ImageDataset(augmented().source, broken, training=True)[0]


def test_items_and_dataset_pickle(tmp_path: Path) -> None:
    dataset, _ = damaged_dataset(tmp_path)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[0][0], dataset[0][0])
    assert pickle.loads(pickle.dumps(dataset[0]))[1:] == dataset[0][1:]
