"""Pixels that are kept: the same weights whether they are there or not, whatever happens to the folder."""

import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import pack
from PIL import Image
from safetensors.numpy import load_file, save_file
from test_train import assert_same_weights, rows_without_times, run_and_die
from tiny import tiny_config, trainer_of

from hadaptive import cli
from hadaptive.data import Augmentation, FileSource, Preprocessing, open_data
from hadaptive.data import cache as caching
from hadaptive.data.cache import Kept, PixelStore, Reduce
from hadaptive.engine.accelerator import create_accelerator
from hadaptive.engine.batches import Batches, create_batches
from hadaptive.train import TrainConfig, resume, train

CLASSES = ("cat", "dog", "fox")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of several kinds and sizes, one on its side, one with an alpha channel, one that is damaged."""
    folder, noise = tmp_path_factory.mktemp("cache"), np.random.default_rng(0)
    for target, name in enumerate(CLASSES):
        (folder / "pets" / name).mkdir(parents=True)
        for number in range(14):
            size = (30 + 7 * number, 90 - 5 * number, 3)
            pixels = noise.integers(80 * target, 80 * target + 95, size, dtype=np.uint8)
            image = Image.fromarray(pixels if number % 4 else pixels[..., 0])
            exif = Image.Exif()
            exif[0x0112] = 6 if number == 5 else 1
            image = image.convert("RGBA") if number == 6 else image
            image.save(folder / f"pets/{name}/{number}.{'png' if number % 2 == 0 else 'jpg'}", exif=exif)
    (folder / "pets/cat/damaged.jpg").write_bytes((folder / "pets/cat/13.jpg").read_bytes()[:900])
    return folder


def config_of(home: Path, folder: Path, name: str = "run", **changes: Any) -> TrainConfig:
    settings = {"data": str(home / "pets"), "train_size": None, "batch_size": 8, "workers": 0}
    return tiny_config(folder, name, **{**settings, **changes})


@pytest.fixture(scope="module")
def fresh(home: Path) -> Path:
    """A run of two loader processes into a cache that was not there."""
    train(config_of(home, home, "fresh", cache=home / "kept", workers=2), quiet=True)
    return home / "fresh"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_a_warm_cache_gives_the_same_weights_and_decodes_nothing(
    home: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in entries(home / "kept")}
    assert len(before) > 24  # images to learn from and validation
    read, opened = FileSource.read, []
    monkeypatch.setattr(FileSource, "read", lambda self, i: opened.append(self.name(i)) or read(self, i))
    trainer = trainer_of(config_of(home, tmp_path, cache=home / "kept"))
    for loader in (trainer.batches.train.loader, trainer.batches.validation):
        assert all(len(images) for images, *_ in loader)
    assert {Path(name).name for name in opened} <= {"damaged.jpg"}
    train(config_of(home, tmp_path, cache=home / "kept"), quiet=True)
    assert_same_weights(fresh, tmp_path / "run")
    assert_same_weights(fresh, tmp_path / "run", "best")
    assert rows_without_times(fresh) == rows_without_times(tmp_path / "run")
    assert {path: path.read_bytes() for path in entries(home / "kept")} == before


def test_a_tar_file_of_the_same_images_finds_them(home: Path, fresh: Path, tmp_path: Path) -> None:
    pack(home / "pets", tmp_path / "pets.tar")
    before = entries(home / "kept")
    config = config_of(home, tmp_path, data=str(tmp_path / "pets.tar"), cache=home / "kept")
    split = config.changed(split=fresh / "split.csv")
    train(split, quiet=True)
    assert entries(home / "kept") == before
    assert_same_weights(fresh, tmp_path / "run")


def test_damaged_entries_are_made_anew(home: Path, fresh: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(home / "kept", tmp_path / "kept")
    first, second, third, fourth, fifth, *_ = entries(kept)
    whole = {path.relative_to(kept): path.read_bytes() for path in entries(kept)}
    first.write_bytes(first.read_bytes()[:50])
    content = bytearray(second.read_bytes())
    content[-40] ^= 1
    second.write_bytes(content)
    third.write_bytes(b"\x80\x04cposix\nsystem\n.")
    tensors = load_file(fourth)
    save_file({**tensors, "pixels": tensors["pixels"][:1].copy()}, fourth)
    fifth.unlink()
    fifth.mkdir()
    train(config_of(home, tmp_path, cache=kept), quiet=True)
    assert_same_weights(fresh, tmp_path / "run")
    fifth.rmdir()
    again = {path.relative_to(kept): path.read_bytes() for path in entries(kept)}
    assert again == {path: whole[path] for path in again}
    assert len(whole) - len(again) == 1


def test_too_little_room_or_none_gives_the_same_weights(
    home: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "SHARE", 2)
    monkeypatch.setattr(caching, "LOOK_AGAIN", 0.0)
    trainer = trainer_of(config_of(home, tmp_path, cache=tmp_path / "kept", cache_size=2e-5))
    (note,) = [note for note in trainer.batches.notes if "kept in" in note]
    assert re.search(r": 0 of \d+ images are there already, and of the others \d+% may find room", note)
    trainer_of(config_of(home, tmp_path, cache=tmp_path / "kept", cache_size=2e-5))
    train(config_of(home, tmp_path, cache=tmp_path / "kept", cache_size=2e-5), quiet=True)
    assert_same_weights(fresh, tmp_path / "run")
    sizes = [path.stat().st_size for path in entries(tmp_path / "kept")]
    assert 0 < sum(sizes) <= 20_000
    monkeypatch.setattr(caching, "RESERVE", 2**60)
    train(config_of(home, tmp_path, "full", cache=tmp_path / "none"), quiet=True)
    assert entries(tmp_path / "none") == []
    assert_same_weights(fresh, tmp_path / "full")


def test_killed_on_the_way_and_its_cache_lost_it_ends_the_same(home: Path, fresh: Path, tmp_path: Path) -> None:
    where = {"data": str(home / "pets"), "train_size": None, "batch_size": 8, "cache": tmp_path / "kept"}
    status = run_and_die(tmp_path, "run", signal.SIGKILL, at=5, workers=2, **where)
    assert status == -signal.SIGKILL
    for path in entries(tmp_path / "kept")[::2]:
        path.unlink()
    resume(tmp_path / "run", quiet=True)
    assert_same_weights(fresh, tmp_path / "run")


def batches_of(home: Path, cache: Path | None, how: Preprocessing, **options: Any) -> Batches:
    recipe = TrainConfig.from_recipe(
        "quick", data=str(home / "pets"), batch_size=8, workers=0, cache=cache, cpu=True
    )
    config = TrainConfig(
        data=recipe.data,
        preprocessing=how,
        augmentation=Augmentation(),
        optimisation=recipe.optimisation,
        execution=recipe.execution,
    )
    return create_batches(config, create_accelerator(config.execution), open_data(recipe.data), **options)


@pytest.mark.parametrize(
    "how",
    [
        Preprocessing(image_size=16, fit="crop", interpolation="bicubic"),
        Preprocessing(image_size=16, fit="stretch", pad=2),
        Preprocessing(image_size=16, fit="crop", in_chans=1),
    ],
    ids=["crop", "stretch", "grey"],
)
def test_validation_is_what_it_is_without_to_the_last_bit(home: Path, tmp_path: Path, how: Preprocessing) -> None:
    plain, first, again = (batches_of(home, kept, how) for kept in (None, tmp_path / "kept", tmp_path / "kept"))
    for loaders in zip(plain.validation, first.validation, again.validation, strict=True):
        for other in loaders[1:]:
            assert all(torch.equal(a, b) for a, b in zip(loaders[0], other, strict=True))
    for one, other in zip(first.train.loader, again.train.loader, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_each_image_of_a_part_of_a_part_is_itself(home: Path, tmp_path: Path) -> None:
    """A search sets images apart for its architecture; a teacher sees them all as they are."""
    how = Preprocessing(image_size=16)
    batches = batches_of(home, tmp_path / "kept", how, alpha_fraction=0.4)
    assert batches.alpha is not None
    for part, training in (("train", batches.train), ("alpha", batches.alpha)):
        source, raw = training.loader.dataset.source, batches.parts[part]  # pyright: ignore
        assert isinstance(source, Kept)
        for round in range(2):
            for i in range(len(source)):
                if "damaged" not in raw.name(i):
                    image, target = raw.read(i)
                    kept, same = source.read(i)
                    assert (round, kept.tobytes(), same) == (round, Reduce(how)(image).tobytes(), target)
                    assert min(kept.size) <= 32


def test_what_is_reduced_is_upright_and_not_too_large(home: Path) -> None:
    reduce = Reduce(Preprocessing(image_size=8, max_pixels=5000))
    with Image.open(home / "pets/cat/5.jpg") as image:
        assert image.size == (65, 65)
    wide = Image.new("RGB", (90, 40), "red")
    assert reduce(wide).size == (36, 16)
    assert reduce(Image.new("L", (10, 300))).size == (10, 300)  # a short side that is short enough
    with pytest.raises(OSError, match="max-pixels"):
        reduce(Image.new("RGB", (100, 60)))


def test_entries_that_nobody_wants_make_room_the_longest_unused_first(tmp_path: Path) -> None:
    store = PixelStore(tmp_path / "kept", 1e6)
    store.open()
    image = Image.new("RGB", (20, 20))
    for number in range(4):
        store.write("old", f"{number:032x}", image)
        os.utime(store.path("old", f"{number:032x}"), (number, number))
    (size,) = {path.stat().st_size for path in entries(store.folder)}
    store.limit = 4.5 * size
    store.make_room({"old": {f"{0:032x}"}}, needed=1.2 * size)
    assert [path.stem[-1] for path in entries(store.folder)] == ["0", "2", "3"]
    (tmp_path / "kept/old/00/begun.tmp").touch()
    os.utime(tmp_path / "kept/old/00/begun.tmp", (1, 1))
    (tmp_path / "kept/old/00/now.tmp").touch()
    store.open()
    assert [path.name for path in tmp_path.rglob("*.tmp")] == ["now.tmp"]


def test_many_at_once_read_whole_entries_only(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (60 + n, 50), (n, n, n)) for n in range(4)]

    def work() -> None:
        store = PixelStore(tmp_path, 1e9)
        store.open()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            for n, picture in enumerate(pictures):
                store.write("kind", f"{n:032x}", picture)
                found = store.read("kind", f"{n:032x}", lambda image: True)
                wrong.extend([n] * (found is None or found.tobytes() != picture.tobytes()))

    wrong: list[int] = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(entries(tmp_path)) == 4
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "digits", "--cache", "kept"], "the images of digits are in memory"),
        (["--data", "wds/d", "--cache", "kept"], "--cache has no effect here, for --data is a stream"),
        (["--cache-size", "3"], "--cache-size has no effect here, for --cache is not there"),
        (["--cache", "kept", "--cache-size", "0"], "cache_size must be a positive number"),
        (["--cache", "pets/cat/kept"], "lies among the images"),
        (["--cache", "other"], "other holds other files"),
        (["--cache", "foreign"], "is a cache of another program"),
        (["--cache", "file"], "nothing can be kept in --cache"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence(
    flags: list[str], words: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    for name, file in (("other", "mine.txt"), ("foreign", "CACHEDIR.TAG")):
        (home / name).mkdir(exist_ok=True)
        (home / name / file).touch()
    (home / "file").touch()
    line = ["train", "--data", "pets", "--model", "tiny.json", "--image-size", "8", "--batch-size", "8", "--cpu"]
    assert cli.main([*line, "--output", "no", *flags]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert words in said
    assert not (home / "no").exists()
    assert [path.name for path in (home / "other").iterdir()] == ["mine.txt"]


def test_a_run_knows_its_cache_from_any_folder(
    home: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(config_of(home, tmp_path, cache=Path("kept")).execution.cache) == str(tmp_path / "kept")
