"""Divide a data set as it was divided before, and draw only what is new since."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from hadaptive.data.config import DataConfig
from hadaptive.data.draw import Divided, Sizing, choose_apart
from hadaptive.data.groups import choose_grouped, follow, units
from hadaptive.data.listing import Listing, unchanged
from hadaptive.data.manifest import PARTS, Manifest, some
from hadaptive.data.memory import held_out, remembered
from hadaptive.errors import UserError
from hadaptive.text import spelt

# Where a manifest has the same image in two parts, a copy of it counts as trained on; as unused, and so free to be
# trained on, only where it is nothing else.
PRECEDENCE = [PARTS.index(part) for part in ("train", "validation", "test", "unused")]
TRAIN, VALIDATION, TEST, UNUSED = (PARTS.index(part) for part in ("train", "validation", "test", "unused"))


def extend(listing: Listing, olders: Sequence[Manifest], config: DataConfig) -> Divided | None:
    """Divide a data set as older manifests did; None where no image is here that the first of them knows.

    Images that a manifest knows, for they were here or in the data of runs before it, are in the part that has
    them there, whatever they are called and wherever they lie now, and so are exact copies. The first manifest
    that knows an image decides. A file that keeps its name and was changed keeps its part too. The rest are drawn
    among themselves, or follow the part folder they lie in. The training part gets those left over by train_size,
    but for copies of images that were held out: a published data set alone may bring such.

    Raises:
        UserError: a part would be empty.
    """
    older, manifest = olders[0], remembered(olders)
    entries = named_entries(manifest, listing.names)
    here = np.flatnonzero(entries >= 0)
    for i in here[unchanged(manifest, entries[here], listing.stats(here))].tolist():
        listing.digests[i] = manifest.digests[entries[i]]
    digests = listing.read(np.arange(len(listing)))
    codes = known_parts(manifest, entries, digests)
    own = manifest if len(olders) == 1 else remembered(olders[:1])  # with which `manifest` begins
    if not _knows_one(own, entries, digests):
        return None
    _changed(codes, manifest, entries, digests)
    held = set() if listing.opened.in_memory else held_out(olders)
    codes[[code == UNUSED and digest not in held for code, digest in zip(codes, digests, strict=True)]] = TRAIN
    notes = [f"{(codes >= 0).sum():,} images keep the parts that an older division gave them"]
    if listing.groups is not None and len(followed := follow(codes, listing, manifest, PRECEDENCE, digests)):
        codes[followed[codes[followed] == UNUSED]] = TRAIN
        said = "1 new image goes" if len(followed) == 1 else f"{len(followed):,} new images go"
        notes.append(f"{said} where others of the same group are: {some([listing.names[i] for i in followed])}")
    new = np.flatnonzero(codes < 0)
    notes += _moved_notes(listing, codes)
    drawn = _draw(codes, new, listing, older, config, digests)
    present = {*digests, *listing.names}
    gone = [
        name
        for name, digest in zip(older.names_of_all, older.digests, strict=True)
        if digest not in present and spelt(name) not in present
    ]
    if gone:
        said = (
            "1 image of the older division is"
            if len(gone) == 1
            else f"{len(gone):,} images of the older division are"
        )
        notes.append(f"{said} not here: {some(gone)}")
    if len(new):
        counts = Counter(PARTS[code] for code in codes[new])
        said = "1 image is" if len(new) == 1 else f"{len(new):,} images are"
        into = ", ".join(f"{counts[part]:,} in {part}" for part in PARTS if counts[part])
        notes.append(f"{said} new since: {into}")
    division = {part: np.flatnonzero(codes == PARTS.index(part)) for part in ("train", "validation", "test")}
    for part, images in division.items():
        if not len(images) and (part != "test" or "test" in older.counts):
            raise UserError(
                f"none of the images that the older division has in its {part} part is here, and the new ones are "
                "too few for one: leave out --split, or put them back"
            )
    division["unused"] = np.flatnonzero(codes == UNUSED)
    return Divided({part: images for part, images in division.items() if len(images)}, notes, drawn)


def _knows_one(manifest: Manifest, entries: np.ndarray, digests: list[str]) -> bool:
    """Whether a manifest has one of the images: by its contents, or by its name where these were never read."""
    contents = set(manifest.digests) - {""}
    for entry, digest in zip(entries.tolist(), digests, strict=True):
        named = 0 <= entry < len(manifest)
        if digest in contents or (named and not (digest and manifest.digests[entry])):
            return True
    return False


def named_entries(manifest: Manifest, names: Sequence[str]) -> np.ndarray:
    """int64 (N,): the first entry of a manifest that has each name; -1 where none has."""
    places = {spelt(name): entry for entry, name in reversed([*enumerate(manifest.names_of_all)])}
    return np.array([places.get(name, -1) for name in names], np.int64)


def known_parts(manifest: Manifest, entries: np.ndarray, digests: Sequence[str]) -> np.ndarray:
    """The part of each image that a manifest has, by name and contents or else by contents.

    Args:
        manifest: of the parts.
        entries: int64 (N,), as :func:`named_entries` has them.
        digests: of the images.

    Returns:
        int8 (N,), numbers in PARTS; -1 for images that the manifest does not have.
    """
    owners: dict[str, int] = {}
    for code in reversed(PRECEDENCE):
        for entry in np.flatnonzero(manifest.codes == code).tolist():
            owners[manifest.digests[entry]] = code
    owners.pop("", None)
    codes = np.full(len(digests), -1, np.int8)
    for i, digest in enumerate(digests):
        entry = int(entries[i])
        then = manifest.digests[entry] if entry >= 0 else None
        by_name = then is not None and (digest == then or not digest or (not then and digest not in owners))
        codes[i] = manifest.codes[entry] if by_name else owners.get(digest, -1)
    return codes


def _changed(codes: np.ndarray, manifest: Manifest, entries: np.ndarray, digests: list[str]) -> None:
    """Let files that were changed keep their parts, and new copies of them follow. Changes `codes` in place.

    A name whose old contents lie elsewhere now was given to another image: that one is new.
    """
    present, owners = set(digests), {}
    for i in np.flatnonzero((codes < 0) & (entries >= 0)).tolist():
        if manifest.digests[entries[i]] not in present:
            owners.setdefault(digests[i], manifest.codes[entries[i]])
    for i in np.flatnonzero(codes < 0).tolist():
        codes[i] = owners.get(digests[i], -1)


def _draw(
    codes: np.ndarray,
    new: np.ndarray,
    listing: Listing,
    older: Manifest,
    config: DataConfig,
    digests: list[str],
) -> set[str]:
    """Give each new image a part. Changes `codes` in place; returns the settings that decided about some."""
    brought = np.array([PARTS.index(part) for part in listing.parts], np.int8)
    codes[new] = brought[listing.origins[new]]
    effective = set()
    for code, setting, seed, wanted in (
        (TEST, "test_fraction", config.data_seed, "test" not in listing.parts and "test" in older.counts),
        (VALIDATION, "val_fraction", config.data_seed + 1, "validation" not in listing.parts),
    ):
        rest = new[codes[new] == TRAIN]
        contents = [digests[i] for i in rest]
        if not wanted or len({digest or i for i, digest in enumerate(contents)}) < 2:  # one alone is trained on
            continue
        covered = np.unique(listing.targets[codes == code]).tolist()
        sizing = Sizing(getattr(config, setting))
        if listing.groups is not None:
            unit = units([listing.groups[i] for i in rest], contents)
            if len(np.unique(unit)) < 2:
                continue
            held = choose_grouped(listing.targets[rest], unit, sizing.fraction, seed, setting)
        else:
            held = choose_apart(listing.targets[rest], contents, sizing, seed, covered=covered)
        codes[rest[held]] = code
        effective.add(setting)
    return effective


def _moved_notes(listing: Listing, codes: np.ndarray) -> list[str]:
    """Say which images lie in a part's folder and stay in another part."""
    notes = []
    for number, folder in enumerate(listing.parts):
        lying = (listing.origins == number) & (codes >= 0)
        for part in ("train", "validation", "test"):
            images = np.flatnonzero(lying & (codes == PARTS.index(part)))
            drawn = folder == "train" and part not in listing.parts
            if part == folder or drawn or not len(images):
                continue
            said = "1 image lies" if len(images) == 1 else f"{len(images):,} images lie"
            verb = "stays" if len(images) == 1 else "stay"
            names = some([listing.names[i] for i in images])
            notes.append(f"{said} in {folder} and {verb} in {part}, as in the older division: {names}")
    return notes
