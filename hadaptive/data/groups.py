"""Images that belong together, as all of one patient do: they are kept in one part."""

import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from hadaptive.data.listing import Listing
from hadaptive.data.manifest import PARTS, Manifest, some
from hadaptive.errors import UserError
from hadaptive.text import shown, spelt

DUPLICATES = "duplicates"
MOST_FOLDS = 20


def group(listing: Listing, rule: str, asked: bool) -> list[str]:
    """Let a listing know which of its images belong together, and return what is to be said of it.

    Args:
        listing: its `groups` and `group_by` are filled in.
        rule: as --group-by has it.
        asked: for by a person, and not just the rule of an older division, which may fit nothing.

    Raises:
        UserError: the rule is neither a column nor a regular expression, or fits no image.
    """
    notes: list[str] = []
    if listing.opened.groups is not None:
        groups = [name for part in listing.parts for name in listing.opened.groups[part]]
    elif rule == DUPLICATES:
        groups = _alike(listing)
    else:
        try:
            groups = _matched(listing, rule)
        except UserError:  # it was the name of a column, perhaps
            if asked:
                raise
            groups = [""] * len(listing)
    number = len({*groups} - {""})
    if not number and rule != DUPLICATES:
        if not asked:
            return [f"no image fits --group-by {shown(rule)} of the older division: new ones are drawn one by one"]
        columns = listing.opened.columns
        beside = f" (nor is it a column: {', '.join(map(shown, columns))})" if columns else ""
        raise UserError(
            f"--group-by {shown(rule)!r} fits no image's name{beside}; names are such as {some(listing.names)}"
        )
    alone = [name for name, its in zip(listing.names, groups, strict=True) if not its]
    if alone and rule != DUPLICATES:
        said = "1 image has" if len(alone) == 1 else f"{len(alone):,} images have"
        notes.append(f"{said} no group and may be in any part: {some(alone)}")
    grouped = len(groups) - len(alone)
    notes.append(f"{grouped:,} images are in {number:,} groups, each of which is kept in one part")
    listing.groups, listing.group_by = groups, rule
    return notes


def _alike(listing: Listing) -> list[str]:
    """A group of near-duplicates is called by the first of them."""
    from hadaptive.data.alike import alike, look

    first = alike(look(listing)).groups
    sizes = np.bincount(first, minlength=len(first))
    return [listing.names[i] if sizes[i] > 1 else "" for i in first.tolist()]


def _matched(listing: Listing, rule: str) -> list[str]:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise UserError(f"--group-by {shown(rule)!r} is no regular expression: {error}") from None
    if listing.positional:
        raise UserError(
            "--group-by has no effect here: images of this data set have no names of their own; leave it out, or "
            f"pass {DUPLICATES}"
        )
    found = (pattern.search(name) for name in listing.names)
    return ["" if match is None else (match[1] if pattern.groups else match[0]) or "" for match in found]


def units(groups: Sequence[str], digests: Sequence[str]) -> np.ndarray:
    """int64 (N,): numbers that images share which are of one group, or exact copies, or by others in between."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(groups)
    numbers: dict[tuple[str, str], int] = {}
    links = [
        (image, count + numbers.setdefault((kind, name), len(numbers)))
        for kind, names in (("group", groups), ("digest", digests))
        for image, name in enumerate(names)
        if name
    ]
    size = count + len(numbers)
    rows, columns = np.array(links, np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(links), bool), (rows, columns)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:count].astype(np.int64)


def choose_grouped(targets: np.ndarray, unit: np.ndarray, fraction: float, seed: int, label: str) -> np.ndarray:
    """Which images to hold out so that no unit is divided, and classes give their shares as far as units allow.

    Args:
        targets: int64 (N,).
        unit: int64 (N,), as :func:`units` gives them.
        fraction: of the images to hold out, to the nearest 20th.
        seed: of the choice.
        label: what the person calls the fraction.

    Returns:
        bool (N,).

    Raises:
        UserError: there are too few units for both sides.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    # scikit-learn wants one class at least with an image for each fold.
    strata = targets if np.bincount(targets).max(initial=0) > 1 else np.zeros_like(targets)
    most = min(MOST_FOLDS, len(np.unique(unit)), int(np.bincount(strata).max(initial=0)))
    if most < 2:
        raise UserError(
            f"all {len(targets):,} images hang together by --group-by, so that none of them can be held out "
            f"({label} {fraction:g}): group by something else, or gather more"
        )
    share = Fraction(fraction).limit_denominator(most)
    share = min(max(share, Fraction(1, most)), Fraction(most - 1, most))
    splitter = StratifiedGroupKFold(share.denominator, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class has fewer images than there are folds
        folds = [fold for _, fold in splitter.split(strata, strata, unit)]
    choices = []
    for start in range(len(folds)):
        held = np.zeros(len(targets), dtype=bool)
        held[np.concatenate([folds[(start + i) % len(folds)] for i in range(share.numerator)])] = True
        lacking = [len(np.setdiff1d(targets, targets[side])) for side in (~held, held)]
        choices.append((*lacking, abs(int(held.sum()) - fraction * len(held)), start, held))
    return min(choices, key=lambda choice: choice[:4])[4]


def follow(
    codes: np.ndarray, listing: Listing, manifest: Manifest, precedence: Sequence[int], digests: Sequence[str]
) -> np.ndarray:
    """Let new images go where others of their group, or copies of those, are. Changes `codes`; returns which did.

    Args:
        codes: int8 (N,), the part of each image, -1 for new ones.
        listing: with groups.
        manifest: of older divisions, which may know images of a group that are not here any more.
        precedence: parts, the first of which counts where a group is in several.
        digests: of the images' contents; empty where nobody knows.
    """
    assert listing.groups is not None
    # What ties images together: the name of their group, and their contents.
    ties = [
        {*([("group", spelt(name))] if name else []), *([("copy", digest)] if digest else [])}
        for name, digest in zip(listing.groups, digests, strict=True)
    ]
    owners: dict[tuple[str, str], int] = {}

    def own(tie: tuple[str, str], code: int) -> None:
        if tie not in owners or precedence.index(code) < precedence.index(owners[tie]):
            owners[tie] = code

    if manifest.groups is not None and listing.group_by != DUPLICATES:
        for name, code in zip(manifest.groups, manifest.codes.tolist(), strict=True):
            if name:
                own(("group", spelt(name)), code)
    for i in np.flatnonzero(codes >= 0).tolist():
        for tie in ties[i]:
            own(tie, int(codes[i]))
    followed: list[int] = []
    while tied := [i for i in np.flatnonzero(codes < 0).tolist() if ties[i] & owners.keys()]:
        for i in tied:
            codes[i] = min((owners[tie] for tie in ties[i] & owners.keys()), key=precedence.index)
        for i in tied:
            for tie in ties[i]:
                own(tie, int(codes[i]))
        followed += tied
    return np.array(sorted(followed), np.int64)


def doubts(listing: Listing, division: dict[str, np.ndarray]) -> list[str]:
    """Say which groups are in two parts all the same, and which classes are not in all of them."""
    if listing.groups is None:
        return []
    where: dict[str, dict[str, int]] = defaultdict(dict)
    tested = [part for part in PARTS[:3] if part in division]
    for part in tested:
        for image in division[part].tolist():
            if listing.groups[image]:
                where[listing.groups[image]].setdefault(part, image)
    notes = []
    leaks = [(name, parts) for name, parts in where.items() if len(parts) > 1]
    if leaks:
        name, parts = leaks[0]
        said = "1 group is" if len(leaks) == 1 else f"{len(leaks):,} groups are"
        places = " and ".join(f"{shown(listing.names[image])} in {part}" for part, image in parts.items())
        notes.append(
            f"{said} in more than one part, as your data have them, so that figures will be too good: "
            f"{shown(name)} has {places}"
        )
    for number, label in enumerate(listing.classes):
        missing = [part for part in tested if not (listing.targets[division[part]] == number).any()]
        if missing:
            images = np.flatnonzero(listing.targets == number).tolist()
            number = len({listing.groups[image] or image for image in images})
            groups = "1 group" if number == 1 else f"{number:,} groups"
            unlearned = ", so that nothing is learned of it" if "train" in missing else ""
            where_not = " nor in ".join(missing)
            notes.append(f"the class {shown(label)} is not in {where_not}{unlearned}: its images are in {groups}")
    return notes if len(notes) < 6 else [*notes[:5], f"and so it is with {len(notes) - 5:,} more classes"]
