"""Settings composed of parts, whose names are flat wherever a person gives them: in flags, recipes and Python.

A configuration is a frozen dataclass; a field that is a dataclass itself is a part. No name stands in two places,
so that ``changed(epochs=3)`` need not say which part has the epochs.
"""

import dataclasses
import functools
import typing
from pathlib import Path
from typing import Any, TypeVar

from hadaptive.errors import UserError

VERSION = 2  # of stored configurations; 1 was flat and had none of this
FOR_TIMM = ("architecture", "model_args", "pretrained_cfg")  # what timm reads in a run's config.json, beside ours
Config = TypeVar("Config", bound="Settings")
Part = TypeVar("Part")


def without_timms(stored: dict[str, Any]) -> dict[str, Any]:
    """A run's stored settings without what timm reads beside them."""
    if not isinstance(stored.get(FOR_TIMM[0]), str):  # a search has a part of that name
        return stored
    return {key: value for key, value in stored.items() if key not in FOR_TIMM}


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def names(kind: type) -> dict[str, tuple[str, ...]]:
    """Every setting of a configuration's class and the parts that lead to it."""
    found: dict[str, tuple[str, ...]] = {}
    for field in dataclasses.fields(kind):
        hint = _hints(kind)[field.name]
        if dataclasses.is_dataclass(hint):
            found |= {name: (field.name, *path) for name, path in names(typing.cast(type, hint)).items()}
        else:
            found[field.name] = ()
    return found


def _replaced(config: Any, changes: dict[str, Any]) -> Any:
    own: dict[str, Any] = {}
    for name in {path[0] for key in changes if (path := names(type(config))[key])}:
        part = getattr(config, name)
        own[name] = _replaced(part, {k: v for k, v in changes.items() if names(type(config))[k][:1] == (name,)})
    own |= {key: value for key, value in changes.items() if not names(type(config))[key]}
    return dataclasses.replace(config, **own)


def _read(kind: type, data: dict[str, Any]) -> Any:
    """A dataclass from the JSON of one, nested alike."""
    unknown = set(data) - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise UserError(f"unknown settings {', '.join(sorted(unknown))}: made by another version?")
    values = dict(getattr(kind, "BEFORE", {}))
    for name, value in data.items():
        hint = _hints(kind)[name]
        values[name] = (
            _read(typing.cast(type, hint), value) if dataclasses.is_dataclass(hint) else _value(hint, value)
        )
    return kind(**values)


def _before(kind: type) -> dict[str, Any]:
    """What was done before there were some settings, flat: parts may say it as BEFORE, for files without them."""
    found = dict(getattr(kind, "BEFORE", {}))
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hint := _hints(kind)[field.name]):
            found |= _before(typing.cast(type, hint))
    return found


def _value(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(None, item) for item in value)
    is_path = hint is Path or Path in typing.get_args(hint)
    return Path(value) if is_path and isinstance(value, str) else value


class Settings:
    """What every composed configuration can do; a base of frozen dataclasses without fields of its own."""

    def flat(self) -> dict[str, Any]:
        """Every setting by its name."""
        return {
            name: functools.reduce(getattr, (*path, name), self)  # type: ignore[arg-type]
            for name, path in names(type(self)).items()
        }

    def changed(self: Config, **changes: Any) -> Config:
        """A copy with some settings changed, whichever parts they are in.

        Raises:
            UserError: there is no such setting, or a value is out of range.
        """
        unknown = set(changes) - set(names(type(self)))
        if unknown:
            raise UserError(f"there is no setting {', '.join(sorted(unknown))}")
        return _replaced(self, changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON, part by part."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, tuple):
                return [plain(item) for item in value]
            return str(value) if isinstance(value, Path) else value

        return {"version": VERSION, **plain(dataclasses.asdict(typing.cast(Any, self)))}

    @classmethod
    def from_dict(cls: type[Config], data: dict[str, Any]) -> Config:
        """The inverse of :meth:`to_dict`; flat settings of version 1 too.

        Raises:
            UserError: a setting is unknown or of the wrong kind, as in a run of another version.
        """
        data = without_timms(data)
        version = data.pop("version", 1)
        try:
            if version == 1:
                return cls._from_version_1(data)
            if version != VERSION:
                raise UserError(f"its settings are of version {version}, newer than {VERSION}: update hadaptive")
            return _read(cls, data)
        except (TypeError, AttributeError) as error:
            raise UserError(f"its settings are damaged: {error}") from None

    @classmethod
    def _from_version_1(cls: type[Config], data: dict[str, Any]) -> Config:
        """From settings that all stood side by side."""
        return cls().changed(**_typed(cls, data))


def _typed(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    """Values of flat JSON as the settings of that name have them."""
    typed = _before(kind)
    for name, value in data.items():
        owner = kind
        for part in names(kind).get(name, ()):
            owner = _hints(owner)[part]
        typed[name] = _value(_hints(owner).get(name), value)
    return typed


def part_of(kind: type[Part], name: str, stored: dict[str, Any]) -> Part:
    """One part of a stored configuration, of this version or of version 1.

    Raises:
        UserError: it is not there, or damaged.
    """
    try:
        if "version" in stored:
            return _read(kind, stored[name])
        return kind(**_typed(kind, {key: value for key, value in stored.items() if key in names(kind)}))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the settings of {name} are damaged: {error}") from None
