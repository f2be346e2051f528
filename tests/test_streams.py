"""Streams: webdataset shards made by hand, and packages that are missing."""

import gc
import io
import json
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from hadaptive.data import (
    Augmentation,
    Preprocessing,
    create_loader,
    eval_transform,
    is_stream,
    open_stream,
    train_transform,
)
from hadaptive.data.loading import StreamDataset

PREPROCESSING = Preprocessing(8, fit="crop")
FORK = pytest.param(
    "fork",
    marks=[
        pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork is Linux's way"),
        pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    ],
)


def save_shards(root: Path, shards: int = 2, images: int = 10, damaged: bool = False) -> Path:
    """A webdataset of `shards` tar files for train and one for validation, with timm's _info.json."""
    root.mkdir()
    splits = {}
    for split, count in (("train", shards), ("validation", 1)):
        names = [f"d-{split}-{i:04}.tar" for i in range(count)]
        for shard, name in enumerate(names):
            with tarfile.open(root / name, "w") as tar:
                for number in range(images):
                    buffer = io.BytesIO()
                    Image.new("LA", (9, 9), (20 * number, 255)).save(buffer, "PNG")
                    data = b"damaged" if damaged and number == 3 else buffer.getvalue()
                    for kind, content in (("png", data), ("cls", str(number % 2).encode())):
                        info = tarfile.TarInfo(f"{shard:02}{number:04}.{kind}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        splits[split] = {
            "name": split,
            "filenames": names,
            "shard_lengths": [images] * count,
            "num_samples": images * count,
        }
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    return root


def stream(root: Path | None, split: str = "train", name: str = "wds/d", **changes: Any) -> StreamDataset:
    """One split of the stream, under plain settings."""
    options = {"training": split == "train", "batch_size": 5, "num_samples": None, "seed": 0, "channels": 3}
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
