"""Open a data set: divide it, find it again as a run had it, or take an older division over."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hadaptive.data.config import DataConfig
from hadaptive.data.draw import Divided, Sizing, choose, choose_apart
from hadaptive.data.extend import extend
from hadaptive.data.groups import choose_grouped, doubts, group, units
from hadaptive.data.label_sets import LabelSets
from hadaptive.data.listing import Listing
from hadaptive.data.manifest import PARTS, Manifest, some
from hadaptive.data.memory import carry, learned
from hadaptive.data.places import Place, find
from hadaptive.data.reopen import reopen
from hadaptive.data.sources import Source
from hadaptive.errors import UserError

TRAINED_TO_TESTED = (("train", "validation"), ("train", "test"), ("validation", "test"))


@dataclass
class ImageData:
    """Labelled images in parts.

    Attributes:
        parts: of "train", "validation" and "test" those that there are; of a manifest that was opened again, those
            that were asked for.
        classes: their names; targets are numbers in this list.
        manifest: of all images and parts.
        location: the configuration that finds the data from any folder.
        in_memory: whether reading an image costs no file access.
        notes: sentences for the person: what was held out, what has changed since.
        ignored: fields of the configuration that had no effect, because the data or an older division decide.
    """

    parts: dict[str, Source]
    classes: list[str]
    manifest: Manifest
    location: DataConfig
    in_memory: bool
    notes: list[str] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)

    def label_sets(self, classes: Sequence[str] | None = None) -> LabelSets | None:
        """The classes that each target stands for; None where that is the one of its number.

        Args:
            classes: of a network, which must know them all; None for those that the images have.
        """
        if not self.location.multi_label:
            return None
        return LabelSets.of(self.classes, self.location.label_separator, classes)

    @property
    def train(self) -> Source:
        """The images to learn from."""
        return self.parts["train"]

    @property
    def validation(self) -> Source:
        """The images by which the best weights are chosen."""
        return self.parts["validation"]

    @property
    def test(self) -> Source | None:
        """The images that nothing was decided by."""
        return self.parts.get("test")

    def refuse_ignored(self, given: Iterable[str]) -> None:
        """Raise one clear UserError if a setting was given that these data leave without an effect."""
        for name in sorted(self.ignored & set(given)):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} has no effect here, for {self.location.data} is divided already: leave it out"
            )


def open_data(
    config: DataConfig,
    manifest: Manifest | None = None,
    *,
    exact: bool = False,
    needs: tuple[str, ...] = ("train", "validation", "test"),
    known: Manifest | None = None,
    drawn_before_manifests: bool = False,
) -> ImageData:
    """Open the images that `config` names.

    Args:
        config: where they are and, for a new run, how they are divided.
        manifest: of a run: its parts get the images that they had there, in the same order, and no others.
        exact: with `manifest`, refuse images that are missing, changed or in another class in place of leaving
            them out.
        needs: with `manifest`, the parts to open; the images of the others are not looked into.
        known: of an older run whose weights a new one starts from: its images, and those of runs before it, keep
            their parts, if any is here; a division of config.split decides first.
        drawn_before_manifests: draw as version 1 of the run folders did, which kept no manifest.

    Raises:
        UserError: no such data set, it cannot be divided as asked, or a setting has no effect on such data.
    """
    olders: list[Manifest] = []
    if manifest is None and not drawn_before_manifests:
        split = None if config.split is None else Manifest.load(config.split)
        olders = [older for older in (split, known) if older is not None]
    rule = config.group_by or next((older.group_by for older in olders if older.group_by), None)
    place = find(dataclasses.replace(config, group_by=rule), again=manifest is not None)
    place.location = dataclasses.replace(place.location, group_by=config.group_by)
    if config.group_by is None:
        place.idle.pop("group_by", None)
    if manifest is None and not drawn_before_manifests:
        place.refuse_idle()
    if len(place.opened.classes) < 2:
        raise UserError(f"{config.data} has fewer than two classes, so there is nothing to tell apart")
    listing = Listing(place.opened)
    if manifest is not None:
        parts, notes = reopen(listing, manifest, needs, exact)
        notes = [*place.opened.notes, *notes]
        return ImageData(
            dict(parts), manifest.classes, manifest, place.location, place.opened.in_memory, notes=notes
        )
    if rule is not None and not listing.opened.in_memory and not drawn_before_manifests:
        place.opened.notes += group(listing, rule, asked=config.group_by is not None)
    divided = extend(listing, olders, config) if olders else None
    if divided is None and olders and config.split is not None:
        raise UserError(
            f"not one image of the division {config.split} is in {config.data}: check --data, or leave out --split"
        )
    if divided is None:
        divided = draw(listing, config, as_before=drawn_before_manifests)
    if config.train_size is not None:
        limit(divided.parts, listing, config, as_before=drawn_before_manifests)
    data = _finish(place, listing, divided)
    if olders:
        carry(data.manifest, olders)
    if known is not None and len(olders) > 1:
        _refuse_trained(data.manifest, known)
    return data


def draw(listing: Listing, config: DataConfig, as_before: bool) -> Divided:
    """Hold out the parts that the data do not bring, and say so.

    Exact copies of an image are kept in one part, and a class gives each part an image if it has enough: unless
    the data are a published set in memory, or `as_before` asks for the draws of older versions.

    Raises:
        UserError: a part would be empty.
    """
    division = {part: np.flatnonzero(listing.origins == number) for number, part in enumerate(listing.parts)}
    notes: list[str] = []
    drawn: set[str] = set()

    def hold(setting: str, seed: int) -> np.ndarray:
        rest, sizing = division["train"], Sizing(getattr(config, setting), setting)
        drawn.add(setting)
        targets = listing.targets[rest]
        if listing.groups is not None:
            unit = units([listing.groups[i] for i in rest], listing.read(rest))
            held = choose_grouped(targets, unit, sizing.fraction, seed, setting)
        elif as_before or listing.opened.in_memory:
            held = choose(targets, sizing(len(rest)), seed)
        else:
            held = choose_apart(targets, listing.read(rest), sizing, seed)
        division["train"] = rest[~held]
        return rest[held]

    if "test" not in division and "validation" not in division:
        division["test"] = hold("test_fraction", config.data_seed)
        notes.append(f"no test part: held out {len(division['test'])} images, seed {config.data_seed}")
    if "validation" not in division:
        division["validation"] = hold("val_fraction", config.data_seed + 1)
    return Divided(division, notes, drawn)


def limit(division: dict[str, np.ndarray], listing: Listing, config: DataConfig, as_before: bool) -> None:
    """Leave only train_size images in the training part. Changes `division` in place.

    Copies of images of other parts are the first to be left over, but for a published data set in memory and where
    `as_before` asks for the choice of older versions.

    Raises:
        UserError: there are not so many.
    """
    train, size = division["train"], config.train_size
    assert size is not None
    copies = np.zeros(len(train), dtype=bool)
    if not (as_before or listing.opened.in_memory):
        others = np.concatenate([division[part] for part in ("validation", "test") if part in division])
        held = {*listing.read(others)} - {""}
        copies = np.array([digest in held for digest in listing.read(train)], dtype=bool)
    over, train = train[copies], train[~copies]
    if size > len(train):
        besides = " and copies of theirs" if len(over) else ""
        raise UserError(
            f"train_size is {size}, but only {len(train)} images are left besides the other parts{besides}"
        )
    chosen = choose(listing.targets[train], size, config.data_seed + 2) if size < len(train) else train >= 0
    unused = np.sort(np.concatenate([division.get("unused", train[:0]), over, train[~chosen]]))
    division["train"] = train[chosen]
    if len(unused):
        division["unused"] = unused


def _finish(place: Place, listing: Listing, divided: Divided) -> ImageData:
    manifest = listing.manifest(divided.parts)
    notes = [*place.opened.notes, *divided.notes, *doubts(listing, divided.parts)]
    if not place.opened.in_memory:
        notes += _copies(manifest)
    parts: dict[str, Source] = {
        part: listing.select(divided.parts[part]) for part in PARTS if part in divided.parts and part != "unused"
    }
    ignored = {"val_fraction", "test_fraction"} - divided.drawn
    if not divided.drawn and "unused" not in divided.parts:
        ignored.add("data_seed")
    return ImageData(parts, listing.classes, manifest, place.location, place.opened.in_memory, notes, ignored)


def _copies(manifest: Manifest) -> list[str]:
    """Say which images lie in two parts."""
    first: dict[str, dict[str, str]] = {}
    for part in ("train", "validation", "test"):
        entries = manifest.in_part(part)
        first[part] = {manifest.digests[e]: manifest.names_of_all[e] for e in entries[::-1]}
        first[part].pop("", None)
    notes = []
    for one, other in TRAINED_TO_TESTED:
        shared = [digest for digest in first[one] if digest in first[other]]
        if shared:
            said = "1 image is" if len(shared) == 1 else f"{len(shared):,} images are"
            pair = some([first[one][shared[-1]], first[other][shared[-1]]])
            notes.append(f"{said} both in {one} and in {other}, where your data have them: {pair}")
    return notes


def _refuse_trained(manifest: Manifest, known: Manifest) -> None:
    """Refuse to test by images that the weights of older runs were made or chosen by.

    Those are left that the older run tested by too, for its folders had them in two parts.
    """
    leaking = learned(known) - {known.digests[e] for e in known.in_part("test")}
    tested = manifest.in_part("test").tolist()
    leaked = [manifest.names_of_all[e] for e in tested if manifest.digests[e] in leaking]
    if leaked:
        said = "1 image" if len(leaked) == 1 else f"{len(leaked):,} images"
        raise UserError(
            f"--split puts {said} into the test part that the weights of --init have learned from or were chosen "
            f"by ({some(leaked)}): give --split the run that --init comes from"
        )
