"""Find the images of a manifest again, whatever has become of the folder that they lay in.

An image is known by its contents; its name counts where these tell nothing. No part gets an image that the
manifest has in another part, whatever it is called now and wherever it lies.
"""

from collections import Counter, defaultdict
from functools import cached_property

import numpy as np

from hadaptive.data.listing import Listing, unchanged
from hadaptive.data.manifest import PARTS, Manifest, some
from hadaptive.data.sources import Selection
from hadaptive.errors import UserError
from hadaptive.text import spelt

TRAIN, UNUSED = PARTS.index("train"), PARTS.index("unused")


class Match:
    """Where the entries of a manifest are now.

    Attributes:
        where: int64 (N,), the image of each entry; -1 where there is none, or none that may be used.
        missing: entries whose image is not here.
        changed: entries that are found by their name, with other contents.
        foreign: entries whose file holds an image of another part now; it is not used.
        moved: entries found by their contents under another name.
        proven: entries that are here, and are not just taken to be the same because their part is not needed.
        relabelled: those of them whose image lies in another class now.
        new: images that no entry stands for.
    """

    def __init__(self, listing: Listing, manifest: Manifest, needs: tuple[str, ...]) -> None:
        self.listing = listing
        self.manifest = manifest
        places = {name: i for i, name in enumerate(listing.names)}
        self.where = np.array([places.get(spelt(name), -1) for name in manifest.names_of_all], np.int64)
        self.same = np.zeros(len(manifest), dtype=bool)
        self.moved = np.zeros(0, np.int64)
        unread = self._by_name(needs)
        self._by_content(unread)
        self._settle()
        self._compare_classes(unread)

    def _by_name(self, needs: tuple[str, ...]) -> np.ndarray:
        """Compare the files that have a name of the manifest; return entries taken as the same without a proof."""
        here = np.flatnonzero(self.where >= 0)
        self.same[here] = unchanged(self.manifest, here, self.listing.stats(self.where[here]))
        doubtful = here[~self.same[here]]
        needed = np.isin(self.manifest.codes[doubtful], [PARTS.index(part) for part in needs])
        self.listing.read(self.where[doubtful[needed]])
        self.same[doubtful] = True
        self._withdraw(doubtful)
        return doubtful[~needed]

    def _withdraw(self, entries: np.ndarray) -> bool:
        """Take back that these entries are the same where their file was read and is another; whether one was."""
        before = int(self.same.sum())
        for entry in entries.tolist():
            now, then = self.listing.digests[self.where[entry]], self.manifest.digests[entry]
            # Where an image could not be read, then or now, its name is all there is.
            self.same[entry] = not now or now == then or (not then and now not in self.known)
        return int(self.same.sum()) < before

    @cached_property
    def known(self) -> dict[str, set[int]]:
        """The parts that have or had an image of such contents, by digest; train and unused are one."""
        known: dict[str, set[int]] = defaultdict(set)
        for manifest in filter(None, (self.manifest, self.manifest.earlier)):
            for digest, code in zip(manifest.digests, manifest.codes.tolist(), strict=True):
                if digest:
                    known[digest].add(TRAIN if code == UNUSED else code)
        return known

    def _by_content(self, unread: np.ndarray) -> None:
        """Find images that are not what or where they were among those that no entry is known to stand for."""
        manifest, listing = self.manifest, self.listing
        while True:
            lost = np.flatnonzero(~self.same)
            settled = np.zeros(len(listing), dtype=bool)
            settled[self.where[self.same]] = True
            settled[self.where[unread]] = False
            candidates = np.flatnonzero(~settled)
            if len(lost) and len(candidates):
                sizes = listing.stats(candidates)[:, 0]
                candidates = candidates[np.isin(sizes, manifest.stats[lost, 0]) | (sizes < 0)]
                listing.read(candidates)
            if not len(lost) or not self._withdraw(unread[self.same[unread]]):
                break
        settled[self.where[self.same]] = True
        found: dict[str, list[int]] = defaultdict(list)
        for i in candidates.tolist():
            if not settled[i] and listing.digests[i]:
                found[listing.digests[i] or ""].append(i)
        moved = []
        for entry in np.flatnonzero(~self.same).tolist():
            images = found.get(manifest.digests[entry])
            if not images:
                continue
            label = spelt(manifest.classes[manifest.labels[entry]])
            alike = [i for i in images if spelt(listing.classes[listing.targets[i]]) == label]
            images.remove(image := (alike or images)[0])
            self.where[entry] = image
            self.same[entry] = True
            moved.append(entry)
        self.moved = np.array(moved, np.int64)

    def _settle(self) -> None:
        """Decide about the entries whose own image is nowhere."""
        taken = set(self.where[self.same].tolist())
        missing, changed, foreign = [], [], []
        contents: dict[str, set[int]] = defaultdict(set)
        for entry in np.flatnonzero(~self.same).tolist():
            image, part = int(self.where[entry]), int(self.manifest.codes[entry])
            part = TRAIN if part == UNUSED else part
            if image < 0 or image in taken:
                missing.append(entry)
                continue
            digest = self.listing.digests[image] or ""
            (foreign if part not in self.known.get(digest, {part}) else changed).append(entry)
            contents[digest].add(part)
        # One and the same new image in two parts is used in neither.
        twice = {e for e in changed if len(contents[self.listing.digests[self.where[e]] or ""]) > 1}
        self.changed = np.array([e for e in changed if e not in twice], np.int64)
        self.foreign = np.array(sorted({*foreign, *twice}), np.int64)
        self.missing = np.array(missing, np.int64)
        used = np.zeros(len(self.listing), dtype=bool)
        self.where[self.missing] = -1
        used[self.where[self.where >= 0]] = True
        self.where[self.foreign] = -1
        self.new = np.flatnonzero(~used)

    def _compare_classes(self, unread: np.ndarray) -> None:
        numbers: dict[str, int] = {}
        of_then, of_now = (
            np.array([numbers.setdefault(spelt(name), len(numbers)) for name in classes], np.int64)
            for classes in (self.manifest.classes, self.listing.classes)
        )
        unproven = [e for e in unread.tolist() if self.listing.digests[self.where[e]] is None]
        self.proven = np.setdiff1d(np.flatnonzero(self.where >= 0), unproven)
        then, now = self.manifest.labels[self.proven], self.listing.targets[self.where[self.proven]]
        self.relabelled = self.proven[of_then[then] != of_now[now]]

    def class_now(self, entry: int) -> str:
        """The class in which an entry's image lies now."""
        return self.listing.classes[self.listing.targets[self.where[entry]]]


def reopen(
    listing: Listing, manifest: Manifest, needs: tuple[str, ...], exact: bool
) -> tuple[dict[str, Selection], list[str]]:
    """The parts `needs` of a manifest, of the images that are here now, and what is to be said of the others.

    Raises:
        UserError: a class seems to have another name now; a part has no image left; with `exact`, an image of the
            parts is missing, changed or in another class.
    """
    match = Match(listing, manifest, needs)
    _refuse_renamed_classes(match)
    if exact:
        _refuse_changes(match, needs)
    parts: dict[str, Selection] = {}
    for part in needs:
        entries = manifest.in_part(part)
        if not len(entries):
            continue
        entries = entries[match.where[entries] >= 0]
        if not len(entries):
            raise UserError(
                f"none of the {len(manifest.names(part)):,} images of the {part} part is here: pass --data with "
                "the place they lie in now"
            )
        parts[part] = listing.select(match.where[entries], manifest.labels[entries])
    return parts, _notes(match)


def _refuse_renamed_classes(match: Match) -> None:
    manifest, listing = match.manifest, match.listing
    known, here = ({spelt(name) for name in classes} for classes in (manifest.classes, listing.classes))
    found = Counter(manifest.labels[match.proven].tolist())
    now: dict[int, Counter[str]] = defaultdict(Counter)
    for entry in match.relabelled.tolist():
        now[int(manifest.labels[entry])][match.class_now(entry)] += 1
    for label, classes in now.items():
        old, (new, count) = manifest.classes[label], classes.most_common(1)[0]
        if spelt(old) not in here and spelt(new) not in known and 2 * count > found[label]:
            raise UserError(
                f"the class {old!r} seems to be called {new!r} now: rename it back, or start a new run, which "
                "takes the division over with --split"
            )


def _refuse_changes(match: Match, needs: tuple[str, ...]) -> None:
    codes = [PARTS.index(part) for part in needs if part != "unused"]
    faults = []
    for entries, one, many in (
        (match.missing, "is missing", "are missing"),
        (np.sort(np.concatenate([match.changed, match.foreign])), "has other contents", "have other contents"),
        (match.relabelled, "lies in another class", "lie in another class"),
    ):
        names = [match.manifest.names_of_all[e] for e in entries if match.manifest.codes[e] in codes]
        if names:
            faults.append(f"{len(names):,} {one if len(names) == 1 else many} ({some(names)})")
    if faults:
        raise UserError(
            f"the images are not those that this run began with: {', '.join(faults)}; put them back, or start a "
            "new run with --split and this run's folder"
        )


def _notes(match: Match) -> list[str]:
    manifest, listing = match.manifest, match.listing
    notes: list[str] = []

    def note(entries: np.ndarray, one: str, many: str) -> None:
        if len(entries):
            counts = Counter(PARTS[code] for code in manifest.codes[entries])
            parts = ", ".join(f"{count:,} of {part}" for part, count in counts.items())
            names = some([manifest.names_of_all[e] for e in entries])
            said = f"1 image {one}" if len(entries) == 1 else f"{len(entries):,} images {many}"
            notes.append(f"{said} ({parts}): {names}")

    note(match.missing, "is missing and left out", "are missing and left out")
    note(match.changed, "has other contents than then", "have other contents than then")
    note(
        match.foreign,
        "holds one of another part now and is left out",
        "hold images of another part now and are left out",
    )
    if not listing.positional:
        note(
            match.moved,
            "has another name or place now and keeps its part",
            "have another name or place now and keep their parts",
        )
    note(
        match.relabelled,
        "lies in another class now and keeps its label",
        "lie in another class now and keep their labels",
    )
    if len(match.new):
        places = Counter(listing.parts[origin] for origin in listing.origins[match.new])
        where = ", ".join(f"{count:,} in {part}" for part, count in places.items())
        where = f" ({where})" if len(listing.parts) > 1 else ""
        said = "1 image is" if len(match.new) == 1 else f"{len(match.new):,} images are"
        names = some([listing.names[i] for i in match.new])
        notes.append(f"{said} new since and not used{where}: {names}")
    known = {spelt(name) for name in manifest.classes}
    added = [name for name in listing.classes if spelt(name) not in known]
    if added:
        said = "1 class is" if len(added) == 1 else f"{len(added):,} classes are"
        notes.append(f"{said} new since and not used: {some(added)}")
    return notes
