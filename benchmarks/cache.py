"""How fast a folder of mixed pictures, some of them very large, is trained on: with and without --cache."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hadaptive.console import say
from hadaptive.errors import UserError
from hadaptive.files import append_csv, read_csv
from hadaptive.provenance import provenance
from hadaptive.train import TrainConfig, train

# Pictures as people have them: share of each kind, long side in pixels, format and quality.
KINDS = (
    (0.50, 1024, "jpg"),
    (0.20, 640, "png"),
    (0.25, 4000, "jpg"),
    (0.05, 9000, "jpg"),
)
CLASSES = 5


@dataclass(frozen=True)
class CacheConfig:
    """Train on a folder of mixed pictures without a cache, with one that is new, and with one that is there.

    Attributes:
        folder: of the pictures, which are made where there are none, and of the runs and the cache beside them.
        images: pictures to make: half of them with a long side of 1024 pixels, one in twenty with 9000.
        model: network that is trained.
        image_size: side of its input, pixels.
        epochs: of each training; the rates are those of the first and of the others.
        results: CSV file that the rows are appended to.
    """

    folder: Path = Path("runs/cache")
    images: int = 7500
    model: str = "hadaptive_net2_xs"
    image_size: int = 64
    epochs: int = 3
    results: Path = Path("benchmarks/results/cache.csv")

    def __post_init__(self) -> None:
        if self.epochs < 2:
            raise UserError(f"epochs must be at least 2, a first one and another; got {self.epochs}")
        if self.images < 20 * CLASSES:
            raise UserError(f"images must be at least {20 * CLASSES}, got {self.images}")


def make_pictures(folder: Path, images: int) -> None:
    """Write pictures of CLASSES classes, told apart by their colours; what is there already is left."""
    noise = np.random.default_rng(0)
    rough = Image.fromarray(noise.integers(0, 255, (192, 256, 3), dtype=np.uint8))
    texture = rough.resize((3072, 2304), Image.Resampling.BICUBIC)
    fine = Image.fromarray(noise.integers(0, 255, (2304, 3072, 3), dtype=np.uint8))
    texture = Image.blend(texture, fine, 0.1)  # as detailed as a photo: its file has about as many bytes
    shares = np.cumsum([share for share, *_ in KINDS])
    for number in range(images):
        which = int(np.searchsorted(shares, (number * 0.618034) % 1.0))
        _, side, kind = KINDS[min(which, len(KINDS) - 1)]
        target = number % CLASSES
        path = folder / f"class{target}" / f"{number}.{kind}"
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        left, top = (int(n) for n in noise.integers(0, 1024, 2))
        picture = texture.crop((left, top, left + 2048, top + 1280)).resize((side, side * 5 // 8))
        colour = tuple(40 * (target == channel or target == channel + 3) for channel in range(3))
        picture = Image.blend(picture, Image.new("RGB", picture.size, colour), 0.3)
        temporary = path.with_suffix(".part")
        picture.save(temporary, "JPEG" if kind == "jpg" else "PNG", quality=88)
        temporary.rename(path)


def rates(run: Path, images: int) -> tuple[float, float]:
    """Images to learn from in a second, validation's time included: in the first epoch, and in the others."""
    seconds = [float(row["seconds"]) for row in read_csv(run / "metrics.csv")]
    return images / seconds[0], images * (len(seconds) - 1) / (seconds[-1] - seconds[0])


def bench_cache(config: CacheConfig) -> list[dict[str, Any]]:
    """A row for each of three trainings, appended when all are done; returns them."""
    pictures, kept = config.folder / "pictures", config.folder / "kept"
    say(f"making {config.images:,} pictures in {pictures}, if they are not there")
    make_pictures(pictures, config.images)
    shutil.rmtree(kept, ignore_errors=True)
    rows = []
    for name, cache in (("without", None), ("new", kept), ("there", kept)):
        run = config.folder / f"run-{name}"
        shutil.rmtree(run, ignore_errors=True)
        training = TrainConfig.from_recipe(
            "folder",
            data=str(pictures),
            model=config.model,
            image_size=config.image_size,
            epochs=config.epochs,
            cache=cache,
            output=run,
            cpu=True,
        )
        summary = train(training, quiet=True, test=False)
        first, others = rates(run, summary["train_images"])
        size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) if cache else 0
        row = {"cache": name, "first_images_s": first, "later_images_s": others, "cache_bytes": size}
        row |= {"images": config.images, "model": config.model, "image_size": config.image_size}
        rows.append({**row, "epochs": config.epochs, **provenance()})
        say(f"cache {name:8} {first:8.1f} images/s in the first epoch, {others:8.1f} in the others")
    weights = [(config.folder / f"run-{name}/last.safetensors").read_bytes() for name in ("new", "there")]
    if weights[0] != weights[1]:
        raise UserError("the trainings with a new cache and with one that was there differ in their weights")
    config.results.parent.mkdir(parents=True, exist_ok=True)
    append_csv(config.results, rows)
    return rows
