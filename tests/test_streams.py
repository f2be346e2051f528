"""Streams: webdataset shards made by hand, runs that are cut, wrong labels, and packages that are missing."""

import gc
import io
import itertools
import json
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_config
from torch import Tensor

from hadaptive.data import (
    Augmentation,
    Preprocessing,
    StreamDataset,
    create_loader,
    eval_transform,
    is_stream,
    open_stream,
    train_transform,
)
from hadaptive.engine.stopping import StopRequest
from hadaptive.errors import UserError
from hadaptive.runs import RunFolder
from hadaptive.train import TrainingInterruptedError, resume, train

PREPROCESSING = Preprocessing(8, fit="crop")
FORK = pytest.param(
    "fork",
    marks=[
        pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork is Linux's way"),
        pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    ],
)


def save_shards(
    root: Path, shards: int = 2, images: int = 10, damaged: bool = False, odd_label: str | None = None
) -> Path:
    """A webdataset of `shards` tar files for train and one for validation, with timm's _info.json.

    No two images of a split are the same. In each shard, the image 3 may be damaged and 5 have an odd label.
    """
    root.mkdir()
    splits = {}
    for split, count in (("train", shards), ("validation", 1)):
        names = [f"d-{split}-{i:04}.tar" for i in range(count)]
        for shard, name in enumerate(names):
            with tarfile.open(root / name, "w") as tar:
                for number in range(images):
                    buffer = io.BytesIO()
                    Image.new("LA", (9, 9), (20 * number + 3 * shard, 255)).save(buffer, "PNG")
                    data = b"damaged" if damaged and number == 3 else buffer.getvalue()
                    label = odd_label if odd_label is not None and number == 5 else str(number % 2)
                    for kind, content in (("png", data), ("cls", label.encode())):
                        info = tarfile.TarInfo(f"{shard:02}{number:04}.{kind}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        splits[split] = {
            "name": split,
            "filenames": names,
            "shard_lengths": [images] * count,
            "num_samples": images * count,
        }
    (root / "_info.json").write_text(json.dumps({"splits": splits}), encoding="utf-8")
    return root


def stream(root: Path | None, split: str = "train", name: str = "wds/d", **changes: Any) -> StreamDataset:
    """One split of the stream, under plain settings."""
    options: dict[str, Any] = {"training": split == "train", "batch_size": 5, "num_samples": None, "seed": 0}
    options |= {"channels": 3, "num_classes": 2}
    transform = changes.pop("transform", eval_transform(PREPROCESSING))
    return open_stream(name, root, split, transform, **{**options, **changes})


@pytest.fixture
def webdataset() -> Iterator[Any]:
    """The webdataset package, which leaves the closing of shards to the garbage collector."""
    yield pytest.importorskip("webdataset")
    gc.collect()


@pytest.mark.parametrize("name", ["wds/x", "WDS/x", "tfds/mnist", "hfids/x"])
def test_is_stream(name: str) -> None:
    assert is_stream(name)
    assert not any(is_stream(other) for other in ("digits", "folder", "hfds/x", "wds", "./wds/x"))


@pytest.mark.parametrize(
    ("name", "modules", "says"),
    [
        ("wds/x", ["webdataset", "webdataset.pipeline"], r'pip install "hadaptive\[wds\]"'),
        ("hfids/x", ["datasets", "datasets.load"], r'pip install "hadaptive\[hfds\]"'),
        ("tfds/x", ["tensorflow_datasets", "tensorflow_datasets.core"], "pip install tensorflow"),
    ],
)
def test_missing_packages(
    name: str, modules: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=says):
        stream(tmp_path, name=name)


LEAKS = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@LEAKS
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=FORK.marks)])
def test_webdataset(tmp_path: Path, webdataset: Any, workers: int) -> None:
    root = save_shards(tmp_path / "shards")
    validation = create_loader(stream(root, "validation"), 5, workers=workers)
    images, targets, unreadable = (torch.cat(column) for column in zip(*validation, strict=True))
    assert images.shape == (10, 3, 8, 8)
    assert targets.tolist() == [0, 1] * 5
    assert unreadable.tolist() == [-1] * 10
    dataset = stream(root)
    loader = create_loader(dataset, 5, workers=workers)
    assert len(dataset) == 20
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        epochs.append(torch.cat([images.mean((1, 2, 3)) for images, _, _ in loader]))
    assert len(epochs[0]) == 20
    assert torch.equal(epochs[0].sort().values, epochs[1].sort().values)
    assert not torch.equal(epochs[0], epochs[1])


@LEAKS
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_webdataset_with_more_workers_than_shards(tmp_path: Path, webdataset: Any) -> None:
    loader = create_loader(stream(save_shards(tmp_path / "shards"), "validation"), 5, workers=3)
    assert loader.num_workers == 1
    assert sum(len(targets) for _, targets, _ in loader) == 10


@LEAKS
def test_webdataset_augmentation_is_seeded(tmp_path: Path, webdataset: Any) -> None:
    root = save_shards(tmp_path / "shards")
    transform = train_transform(PREPROCESSING, Augmentation(erase=1.0))

    def epoch(number: int, seed: int = 0) -> Tensor:
        dataset = stream(root, "validation", transform=transform, seed=seed)
        dataset.set_epoch(number)
        return torch.stack([image for image, _, _ in dataset])

    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate()
    first = epoch(1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    torch.manual_seed(2)
    assert torch.equal(first, epoch(1))
    assert not torch.equal(first, epoch(2))
    assert not torch.equal(first, epoch(1, seed=1))


@LEAKS
def test_webdataset_images_reach_the_transform_as_they_are(tmp_path: Path, webdataset: Any) -> None:
    modes = []
    list(
        stream(
            save_shards(tmp_path / "s"), "validation", transform=lambda i: modes.append(i.mode) or torch.ones(1)
        )
    )
    assert set(modes) == {"LA"}


@LEAKS
def test_webdataset_skips_damaged_images(tmp_path: Path, webdataset: Any) -> None:
    dataset = stream(save_shards(tmp_path / "shards", damaged=True), "validation")
    assert len(list(dataset)) == 9


@LEAKS
def test_webdataset_mistakes(tmp_path: Path, webdataset: Any) -> None:
    root = save_shards(tmp_path / "shards")
    with pytest.raises(ValueError, match="needs --data-dir"):
        stream(None)
    with pytest.raises(ValueError, match="needs --data-dir"):
        stream(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"the split 'test' .* cannot be opened"):
        stream(root, "test")
    assert len(list(stream(root, "d-train-{0000..0001}.tar|20", training=False))) == 20
    assert len(stream(None, "validation", name=f"wds/{root}")) == 10
    (root / "d-train-0001.tar").unlink()
    with pytest.raises(ValueError, match=r"the shard d-train-0001\.tar"):
        stream(root)
    (root / "_info.json").unlink()
    with pytest.raises(ValueError, match=r"has no _info\.json"):
        stream(root)


@LEAKS
def test_webdataset_chooses_its_workers_whatever_the_machine(tmp_path: Path, webdataset: Any) -> None:
    assert stream(save_shards(tmp_path / "few")).limit_workers(-1) == 2
    many = stream(save_shards(tmp_path / "many", shards=9, images=1))
    assert [many.limit_workers(workers) for workers in (-1, 0, 3, 20)] == [4, 0, 3, 9]


# -- the order of an epoch --------------------------------------------------------------------------------------

WORKERS = [0, pytest.param(1, marks=FORK.marks), pytest.param(2, marks=FORK.marks)]


class Epochs:
    """A prepared loader of a new stream, as a process has one, and the batches of the epochs asked of it."""

    def __init__(self, root: Path, workers: int, seed: int = 0) -> None:
        self.accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
        self.order = stream(root, seed=seed, transform=train_transform(PREPROCESSING, Augmentation(erase=1.0)))
        self.loader = self.accelerator.prepare(create_loader(self.order, 5, workers=workers))

    def batches(self, epoch: int, skip: int = 0, stop: int | None = None) -> list[Tensor]:
        """Images of one epoch in batches, without the first `skip`; only `stop` batches are asked for."""
        self.order.set_epoch(epoch)
        self.loader.set_epoch(epoch)
        loader = self.accelerator.skip_first_batches(self.loader, skip) if skip else self.loader
        return [images for images, _, _ in itertools.islice(loader, stop)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether the batches are the same."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@LEAKS
@pytest.mark.parametrize("workers", WORKERS)
def test_an_epoch_does_not_depend_on_those_before_it(tmp_path: Path, webdataset: Any, workers: int) -> None:
    root = save_shards(tmp_path / "shards")
    run = Epochs(root, workers)
    epochs = [run.batches(epoch) for epoch in range(3)]
    assert [len(batches) for batches in epochs] == [4, 4, 4]
    assert not same(epochs[1], epochs[2])
    assert not same(epochs[0], Epochs(root, workers, seed=1).batches(0))
    assert same(epochs[2], Epochs(root, workers).batches(2))
    assert same(epochs[1], run.batches(1))


@LEAKS
@pytest.mark.parametrize("workers", WORKERS)
def test_an_epoch_goes_on_where_it_was_cut(tmp_path: Path, webdataset: Any, workers: int) -> None:
    root = save_shards(tmp_path / "shards", shards=3, images=7)  # of no whole number of batches
    whole = Epochs(root, workers).batches(1)
    assert len(whole) > 4
    cut = Epochs(root, workers)
    cut.batches(0)
    assert same(whole[:2], cut.batches(1, stop=2))
    assert same(whole[2:], Epochs(root, workers).batches(1, skip=2))


@LEAKS
def test_which_streams_are_exact(tmp_path: Path, webdataset: Any) -> None:
    assert stream(save_shards(tmp_path / "shards")).exact
    other = type("Other", (), {"reader": object()})()
    assert not StreamDataset(other, eval_transform(PREPROCESSING), 0, 2, "the split 'train' of tfds/x").exact


@LEAKS
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=FORK.marks)])
def test_a_run_on_a_stream_that_was_cut_ends_with_the_same_weights(
    tmp_path: Path, webdataset: Any, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    settings = {
        "data": "wds/d",
        "data_dir": save_shards(tmp_path / "shards", images=12),
        "val_split": "validation",
        "test_split": None,
        "num_classes": 2,
        "train_size": None,
        "batch_size": 6,
        "epochs": 3,
        "hflip": 0.5,
        "workers": workers,
    }
    train(tiny_config(tmp_path, "whole", **settings), quiet=True)
    whole = load_file(RunFolder(tmp_path / "whole").weights("last"))
    # 4 steps an epoch; a run is asked whether to stop after each, and once more after an epoch's evaluation.
    for name, question, state in (("mid", 8, (1, 3)), ("end", 10, (2, 0))):
        asked = itertools.count(1)
        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "agreed", lambda request, n=question, asked=asked: next(asked) == n)
            with pytest.raises(TrainingInterruptedError):
                train(tiny_config(tmp_path, name, **settings), quiet=True)
        saved = RunFolder(tmp_path / name).load_checkpoint()
        assert (saved["epoch"], saved["step"]) == state
        resume(tmp_path / name, quiet=True)
        cut = load_file(RunFolder(tmp_path / name).weights("last"))
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole)


# -- labels -----------------------------------------------------------------------------------------------------


@LEAKS
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("label", "says", "workers"),
    [
        ("12", "has the label 12, but --num-classes 2 allows 0 to 1 only", 0),
        pytest.param("12", "has the label 12, but --num-classes 2 allows 0 to 1 only", 1, marks=FORK.marks),
        ("2", "has the label 2, but", 0),
        ("-1", "has the label -1, but", 0),
        ("a cat\n", r"has the label 'a cat\\n', which is not the number of a class", 0),
    ],
    ids=["beyond", "beyond, in a worker", "just beyond", "negative", "word"],
)
def test_a_label_that_is_no_class_is_one_sentence(
    tmp_path: Path, webdataset: Any, split: str, label: str, says: str, workers: int
) -> None:
    root = save_shards(tmp_path / "shards", odd_label=label)
    loader = Accelerator(cpu=True).prepare(create_loader(stream(root, split), 5, workers=workers))
    with pytest.raises(UserError, match=says) as caught:
        list(loader)
    assert str(caught.value).startswith(f"the split '{split}' of wds/d, in the shard d-{split}-000")
    assert "\n" not in str(caught.value)


def test_a_label_of_another_reader(tmp_path: Path) -> None:
    class Reader(list):
        reader = object()

    for label in (2, -1, "cat", None):
        bad = Reader([(Image.new("L", (8, 8)), 1), (Image.new("L", (8, 8)), label)])
        items = iter(StreamDataset(bad, eval_transform(PREPROCESSING), 0, 2, "the split 'train' of hfids/x"))
        assert next(items)[1:] == (1, -1)
        with pytest.raises(UserError, match=f"^the split 'train' of hfids/x has the label '?{label}"):
            next(items)


@LEAKS
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=FORK.marks)])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_stream_of_which_nothing_can_be_read(tmp_path: Path, webdataset: Any, workers: int, split: str) -> None:
    root = save_shards(tmp_path / "shards", images=0)
    info = json.loads((root / "_info.json").read_text(encoding="utf-8"))
    info["splits"]["train"]["num_samples"] = 20
    (root / "_info.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(UserError, match=f"^the split '{split}' of wds/d holds no image that can be read"):
        list(create_loader(stream(root, split), 5, workers=workers))
