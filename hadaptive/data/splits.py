"""Divide a data set as run folders of version 1 did, without a manifest; to go when nothing asks for it."""

from dataclasses import dataclass, field
from pathlib import Path

from hadaptive.data.config import DataConfig
from hadaptive.data.dataset import draw, limit
from hadaptive.data.listing import Listing
from hadaptive.data.places import find
from hadaptive.data.sources import Source


@dataclass
class Splits:
    """The parts of a data set, and what its classes are called. `test` is None where there is none."""

    train: Source
    validation: Source
    test: Source | None
    classes: list[str]
    in_memory: bool = False
    notes: list[str] = field(default_factory=list)


def open_splits(
    name: str,
    root: Path | None = None,
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    train_size: int | None = None,
    split_names: tuple[str, str | None, str | None] = ("train", None, "test"),
    seed: int = 0,
) -> Splits:
    """Open a data set and divide it; nothing but `seed` decides which images go where."""
    train, validation, test = split_names
    config = DataConfig(
        name,
        None if root is None else Path(root),
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        train_size=train_size,
        train_split=train,
        val_split=validation,
        test_split=test,
        data_seed=seed,
    )
    opened = find(config).opened
    listing = Listing(opened)
    division, notes = draw(listing, config, as_before=True)
    if train_size is not None:
        limit(division, listing, config)
    parts = {part: listing.select(images) for part, images in division.items()}
    return Splits(
        parts["train"],
        parts["validation"],
        parts.get("test"),
        opened.classes,
        opened.in_memory,
        [*opened.notes, *notes],
    )
