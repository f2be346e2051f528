"""Images of several classes each: their label is a set of classes, written as one name ("cat|dog").

What divides images, finds them again and keeps copies together takes a set for a class like any other; networks,
losses and measures know the classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hadaptive.data.manifest import some
from hadaptive.errors import UserError
from hadaptive.text import natural_key, spelt


@dataclass(frozen=True, eq=False)
class LabelSets:
    """Which classes the images of each label have.

    Attributes:
        classes: their names.
        members: bool (labels, classes).
    """

    classes: list[str]
    members: np.ndarray

    @staticmethod
    def named(label: str, separator: str) -> list[str]:
        """The classes that a label names, as they stand there."""
        return [part for part in map(str.strip, label.split(separator)) if part]

    @classmethod
    def of(cls, labels: Sequence[str], separator: str, classes: Sequence[str] | None = None) -> "LabelSets":
        """The sets that labels name, of the classes given or else of all that they name, in natural order.

        Raises:
            UserError: they name no class, or one that is not among those given.
        """
        sets = [cls.named(label, separator) for label in labels]
        named = {spelt(name): name for names in sets for name in reversed(names)}
        if classes is None:
            classes = sorted(named.values(), key=natural_key)
        places = {spelt(name): place for place, name in enumerate(classes)}
        missing = [name for key, name in named.items() if key not in places]
        if missing:
            raise UserError(
                f"there are classes that the network does not know ({some(missing)}); "
                f"it knows {some(list(classes), 5)}"
            )
        if not named:
            raise UserError("not one image has a class: check the labels")
        members = np.zeros((len(sets), len(classes)), dtype=bool)
        for row, names in zip(members, sets, strict=True):
            row[[places[spelt(name)] for name in names]] = True
        return cls(list(classes), members)
