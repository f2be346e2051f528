"""What a data set holds: sizes, kinds and classes of its images, which cannot be read, and which are alike."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hadaptive.data.alike import INSTALL, Look, alike, look
from hadaptive.data.extend import known_parts, named_entries
from hadaptive.data.label_sets import LabelSets
from hadaptive.data.listing import Listing
from hadaptive.data.manifest import PARTS, Manifest
from hadaptive.errors import UserError

NEW = "new"  # the part of an image that a run does not have
MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey, transparent",
    "P": "palette",
    "PA": "palette",
    "RGBA": "RGB, transparent",
    "I": "32-bit grey",
    "F": "floating-point grey",
}


@dataclass(frozen=True)
class Member:
    """An image of a group.

    Attributes:
        number: in the listing.
        image: its name.
        label: its class.
        part: that it is in; "" where nothing divides the data yet.
        like: name of the image before it that is most like it; "" for the first.
        distance: bits of 64 in which their hashes differ; None for exact copies and the first.
    """

    number: int
    image: str
    label: str
    part: str
    like: str
    distance: int | None


@dataclass(frozen=True)
class Group:
    """Images that look alike.

    Attributes:
        kind: "exact" where all are copies of one file, or "near".
        members: two at least.
        contradicts: whether they have different labels.
        leaks: whether some are trained on and others are held out, or some held out for both other parts.
    """

    kind: str
    members: list[Member]
    contradicts: bool
    leaks: bool


@dataclass
class Survey:
    """A data set as it is.

    Attributes:
        images: how many.
        bytes: of all files.
        parts: images of each; empty where nothing divides the data yet.
        classes: images of each class, by part.
        sizes: least, median and largest width and height in pixels, and aspect (width / height).
        modes: how many are grey, RGB and so on.
        formats: how many are JPEG, PNG and so on.
        unreadable: (image, part, reason).
        groups: of images that look alike; those first that leak, and then those that contradict each other.
        notes: sentences for the person.
        of_run: whether the parts are those of a run.
    """

    images: int
    bytes: int
    parts: dict[str, int]
    classes: dict[str, dict[str, int]]
    sizes: dict[str, tuple[float, float, float]]
    modes: dict[str, int]
    formats: dict[str, int]
    unreadable: list[tuple[str, str, str]]
    groups: list[Group]
    notes: list[str] = field(default_factory=list)
    of_run: bool = False
    several: bool = False

    @property
    def imbalance(self) -> float:
        """How many times as many images the largest class has as the smallest."""
        counts = [sum(parts.values()) for parts in self.classes.values()]
        return max(counts) / max(1, min(counts))

    @property
    def leaks(self) -> list[Group]:
        """Groups that are in more than one part."""
        return [group for group in self.groups if group.leaks]

    @property
    def contradictions(self) -> list[Group]:
        """Groups with more than one label."""
        return [group for group in self.groups if group.contradicts]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        plain = dataclasses.asdict(self)
        plain["imbalance"] = self.imbalance
        plain["classes"] = {
            name: {"images": sum(parts.values()), "parts": {part: n for part, n in parts.items() if part}}
            for name, parts in self.classes.items()
        }
        plain["sizes"] = {
            name: dict(zip(("min", "median", "max"), values, strict=True)) for name, values in self.sizes.items()
        }
        plain["unreadable"] = [dict(zip(("image", "part", "reason"), row, strict=True)) for row in self.unreadable]
        for group in plain["groups"]:
            for member in group["members"]:
                del member["number"]
        return plain


def survey(
    listing: Listing,
    split: Manifest | None = None,
    *,
    seen: Callable[[], object] = lambda: None,
    separator: str | None = None,
) -> Survey:
    """Look at all images of a data set.

    Args:
        listing: of them.
        split: of a run, whose parts count in the place of those that the data bring.
        seen: called after each image.
        separator: what stands between the classes of an image that may have any number of them; None for one.

    Raises:
        UserError: the run has none of them.
    """
    looks = look(listing, seen, needed=False)
    parts = _parts(listing, split, looks)
    labels = [listing.classes[target] for target in listing.targets.tolist()]
    readable = [seen for seen in looks if seen.error is None]
    of_label = {
        label: [label] if separator is None else LabelSets.named(label, separator) for label in listing.classes
    }
    classes: dict[str, dict[str, int]] = {name: {} for names in of_label.values() for name in names}
    for label, part in zip(labels, parts, strict=True):
        for name in of_label[label]:
            classes[name][part] = classes[name].get(part, 0) + 1
    counts = Counter(parts)
    result = Survey(
        images=len(listing),
        bytes=sum(seen.size for seen in looks),
        parts={part: counts[part] for part in (*PARTS, NEW) if counts[part]},
        of_run=split is not None,
        classes=classes,
        several=separator is not None,
        sizes=_sizes(readable),
        modes=dict(Counter(_mode(seen.mode) for seen in readable).most_common()),
        formats=dict(Counter(seen.format or "pixels" for seen in readable).most_common()),
        unreadable=[
            (listing.names[i], parts[i], seen.error) for i, seen in enumerate(looks) if seen.error is not None
        ],
        groups=_groups(listing, looks, labels, parts),
        notes=list(listing.opened.notes),
    )
    if readable and not any(seen.hash is not None for seen in readable):
        result.notes.append(f"only exact copies are looked for: pip install {INSTALL} to find near-duplicates")
    return result


def _parts(listing: Listing, split: Manifest | None, looks: Sequence[Look]) -> list[str]:
    if split is None:
        names = listing.parts if len(listing.parts) > 1 else [""]
        return [names[origin] for origin in listing.origins.tolist()]
    digests = [seen.digest for seen in looks]
    codes = known_parts(split, named_entries(split, listing.names), digests).tolist()
    if all(code < 0 for code in codes):
        raise UserError("not one of these images is in the division of --split: check both")
    return [NEW if code < 0 else PARTS[code] for code in codes]


def _mode(mode: str) -> str:
    return "16-bit grey" if mode.startswith("I;16") else MODES.get(mode, mode)


def _sizes(looks: Sequence[Look]) -> dict[str, tuple[float, float, float]]:
    if not looks:
        return {}
    shapes = np.array([(seen.width, seen.height, seen.width / seen.height) for seen in looks])
    low, middle, high = shapes.min(axis=0), np.median(shapes, axis=0), shapes.max(axis=0)
    columns = zip(("width", "height", "aspect"), low.tolist(), middle.tolist(), high.tolist(), strict=True)
    return {name: (least, median, largest) for name, least, median, largest in columns}


def _groups(listing: Listing, looks: Sequence[Look], labels: Sequence[str], parts: Sequence[str]) -> list[Group]:
    found = alike(looks)
    sizes = np.bincount(found.groups, minlength=len(looks))
    together: dict[int, list[int]] = {}
    for image in np.flatnonzero(sizes[found.groups] > 1).tolist():
        together.setdefault(int(found.groups[image]), []).append(image)
    groups = []
    for images in together.values():
        members = [
            Member(
                image,
                listing.names[image],
                labels[image],
                parts[image],
                "" if found.like[image] < 0 else listing.names[found.like[image]],
                None if found.distance[image] < 0 else int(found.distance[image]),
            )
            for image in images
        ]
        kind = "exact" if len({looks[image].digest for image in images}) == 1 else "near"
        contradicts = len({member.label for member in members}) > 1
        leaks = len({member.part for member in members} & {"train", "validation", "test"}) > 1
        groups.append(Group(kind, members, contradicts, leaks))
    return sorted(groups, key=lambda group: (not group.leaks, not group.contradicts, group.kind == "near"))
