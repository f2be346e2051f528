"""Labelled images that were no part of a run's data, such as a test folder of one's own."""

from collections.abc import Sequence

import numpy as np

from hadaptive.data.config import DataConfig
from hadaptive.data.label_sets import LabelSets
from hadaptive.data.listing import Listing
from hadaptive.data.manifest import Manifest, some
from hadaptive.data.memory import learned
from hadaptive.data.places import find
from hadaptive.data.sources import Selection
from hadaptive.errors import UserError
from hadaptive.text import spelt


def open_apart(
    config: DataConfig, classes: Sequence[str], known: Manifest | None
) -> tuple[Selection, LabelSets | None, list[str]]:
    """All images of a data set, or of its test part where it has parts, but those that some weights learned from.

    Args:
        config: where they are; how they would be divided has no meaning.
        classes: of the network, in the order of its outputs.
        known: division of the images that its weights have learned from; None where nobody knows.

    Returns:
        The images with the network's class numbers, or else with numbers of sets of classes and those sets, and
        sentences for the person.

    Raises:
        UserError: there is no such data set, it has a class that the network does not know, or nothing is left.
    """
    place = find(config)
    place.refuse_idle()
    opened = place.opened
    listing, notes = Listing(opened), list(opened.notes)
    images = np.arange(len(listing))
    if len(listing.parts) > 1:
        if "test" not in listing.parts:
            raise UserError(f"{config.data} has the parts {' and '.join(listing.parts)}, and none is for testing")
        images = images[listing.origins == listing.parts.index("test")]
        notes.append(f"{config.data} has parts: its test part is measured, {len(images):,} images")
    if config.multi_label:
        sets = LabelSets.of(listing.classes, config.label_separator, classes)
        images = _new(listing, images, config, known, notes)
        return listing.select(images), sets, notes
    places = {spelt(name): number for number, name in enumerate(classes)}
    missing = [name for name in listing.classes if spelt(name) not in places]
    if missing:
        raise UserError(
            f"{config.data} has classes that the network does not know ({some(missing)}); "
            f"it knows {some(list(classes), 5)}"
        )
    images = _new(listing, images, config, known, notes)
    targets = np.array([places[spelt(name)] for name in listing.classes])[listing.targets[images]]
    return listing.select(images, targets), None, notes


def _new(
    listing: Listing, images: np.ndarray, config: DataConfig, known: Manifest | None, notes: list[str]
) -> np.ndarray:
    """Those of the images that weights have not learned from; says in `notes` what is left out."""
    if known is None:
        notes.append("nobody knows which of these images the network has learned from: none is left out")
    else:
        seen = learned(known)
        new = np.array([digest not in seen for digest in listing.read(images)], dtype=bool)
        if not new.all():
            notes.append(f"{(~new).sum():,} images are left out, for the network has learned from them")
        images = images[new]
    if not len(images):
        raise UserError(f"{config.data} has no image that the network has not learned from")
    return images
