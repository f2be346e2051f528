"""What a choice says of a whole network: how wide it is, and which of each of the alternatives it takes."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hadaptive.errors import UserError
from hadaptive.models.documents import as_list, is_positive_number
from hadaptive.models.spec import NetSpec

# A NetSpec's fields that are of no layer alone, and those of them that may differ within a space.
OF_THE_NETWORK = tuple(
    field.name for field in fields(NetSpec) if field.name not in ("name", "stem", "stage1", "stages")
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
        said = [f"{self.width:g} times as wide"] if self.width != 1 else []
        said += [f"{name} {'none' if value is None else value}" for name, value in self.fields]
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
    for name in data:
        if name not in ALTERNATIVES:
            raise UserError(f"there can be alternatives of {', '.join(ALTERNATIVES)}, not of {name!r}")
    found = {}
    for name in (name for name in ALTERNATIVES if name in data):  # in this order, whatever theirs is
        values = list(as_list(f"alternatives of {name}", data[name]))
        if len(values) < 2 or any(value in values[:n] for n, value in enumerate(values)):
            raise UserError(f"alternatives of {name} must be two or more different values, got {values}")
        if name == "layer_scale" and (len(values) > 2 or None not in values):
            raise UserError("alternatives of layer_scale can only be null and a number, where it begins")
        found[name] = tuple(values)
    return found
