"""Plain data with named fields, as JSON has it, checked in sentences: what specs and spaces are read from."""

import dataclasses
import math
import reprlib
from typing import Any

from hadaptive.errors import UserError
from hadaptive.nn.checks import check_choice

LATER = {  # fields that older files do not have, by class
    "NetSpec": (
        "selection",
        "noise",
        "temperature",
        "score_kernel",
        "mix",
        "activation",
        "reparam",
        "layer_scale",
    ),
    "BlockSpec": ("act", "pairing", "width", "after", "groups", "join"),
    "ConvSpec": ("padding",),
}


def check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a positive whole number, got {value!r}")


def check_one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise one clear UserError unless `value` is among `choices`."""
    try:
        check_choice(name, value, choices)
    except ValueError as error:
        raise UserError(str(error)) from None


def is_positive_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def as_list(what: str, data: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise UserError(f"{what} must be a list, got {reprlib.repr(data)}")
    return data


def as_fields(cls: type, what: str, data: Any) -> dict[str, Any]:
    """`data`, if it is a dict that has every field `cls` needs and no other."""
    if not isinstance(data, dict):
        raise UserError(f"{what} must be an object with named fields, got {reprlib.repr(data)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise UserError(f"{what} has an unknown field {reprlib.repr(name)}; it has {', '.join(fields)}")
    for name, field in fields.items():
        if name not in data and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{what} lacks the field {name!r}")
    return data


def contents(cls: type, what: str, data: Any, format: str, version: int) -> dict[str, Any]:
    """The fields of `cls` in a document that names its format and version, as a new dict."""
    if not isinstance(data, dict) or data.get("format") != format:
        raise UserError(f'not a {what}: the field "format" must be "{format}"')
    found = data.get("version")
    if isinstance(found, bool) or found != version:
        raise UserError(f"this {what} has version {found!r}, only {version} is known")
    rest = {key: value for key, value in data.items() if key not in ("format", "version")}
    return dict(as_fields(cls, f"the {what}", rest))


def without_later(cls: type, data: dict[str, Any]) -> dict[str, Any]:
    """`data` without those of LATER that are as in files from before: fingerprints stay what they were."""
    for field in dataclasses.fields(cls):
        if field.name in LATER[cls.__name__] and data.get(field.name) == field.default:
            data.pop(field.name, None)
    return data
