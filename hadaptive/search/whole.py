"""What a choice says of a whole network: how wide it is, and which of each of the alternatives it takes."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hadaptive.errors import UserError
from hadaptive.models.documents import as_list, is_positive_number

# A NetSpec's fields that are of no layer alone, and those of which networks share weights whatever their value.
OF_THE_NETWORK = (
    "last_channels",
    "head_channels",
    "order",
    "surrogate",
    "selection",
    "noise",
    "temperature",
    "score_kernel",
    "mix",
    "activation",
    "reparam",
    "layer_scale",
)
ALTERNATIVES = ("last_channels", "head_channels", "activation", "reparam", "layer_scale")

Alternatives = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Whole:
    """One width with one of each of the alternatives.

    Attributes:
        width: factor of all widths in the stages.
        fields: names and values of the NetSpec's fields that a space has alternatives of.
    """

    width: float = 1.0
    fields: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        said = [f"{self.width:g} times as wide", *(f"{name} {value}" for name, value in self.fields)]
        return ", ".join(said)


def wholes_of(widths: tuple[float, ...], alternatives: Alternatives) -> tuple[Whole, ...]:
    """Every width with every combination of the alternatives."""
    values = itertools.product(widths, *alternatives.values())
    return tuple(Whole(width, tuple(zip(alternatives, rest, strict=True))) for width, *rest in values)


def check_widths(widths: tuple[float, ...]) -> None:
    """Raise one clear UserError unless these are different factors, of which a single one is 1."""
    if not widths or not all(is_positive_number(w) and w <= 1 for w in widths) or len({*widths}) < len(widths):
        raise UserError(f"widths must be different factors above 0 and at most 1, got {list(widths)}")
    if len(widths) == 1 and widths != (1.0,):
        raise UserError(f"a single width must be 1, got {widths[0]:g}: write the candidates as wide as they are")


def as_alternatives(data: Any) -> dict[str, tuple[Any, ...]]:
    """Alternatives as a space file has them: lists of values by the names of fields.

    Raises:
        UserError: they are something else.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"alternatives must be an object with lists of values, got {data!r}")
    found = {}
    for name, values in data.items():
        if name not in ALTERNATIVES:
            raise UserError(f"there can be alternatives of {', '.join(ALTERNATIVES)}, not of {name!r}")
        found[name] = tuple(as_list(f"alternatives of {name}", values))
        same = len({repr(value) for value in found[name]}) < len(found[name])
        if len(found[name]) < 2 or same:
            raise UserError(
                f"alternatives of {name} must be two or more different values, got {list(found[name])}"
            )
    return found
