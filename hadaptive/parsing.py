"""From what a person types to a configuration, by tyro; and back."""

import contextlib
import io
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro

from hadaptive.console import say
from hadaptive.errors import UserError

Config = TypeVar("Config")


def parsed(kind: type[Config], prog: str, arguments: Sequence[str], **how: Any) -> Config:
    """The configuration that flags give; further arguments are ``tyro.cli``'s.

    Raises:
        UserError: a value is out of range: the configuration's own sentence, which tyro would put into a box under
            the name of a part that nobody typed.
        SystemExit: help was asked for, or flags are wrong, which tyro has said.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=arguments, **how)
    except SystemExit as ended:
        cause: BaseException | None = ended
        while (cause := cause.__context__) is not None:
            if isinstance(cause, UserError):
                raise cause from None
        for line in said.getvalue().splitlines():
            say(line, error=True)
        raise


def _flat(value: Any) -> list[str]:
    """A value in words: those of a tuple, and of tuples in it, one after the other."""
    return [word for item in value for word in _flat(item)] if isinstance(value, tuple) else [str(value)]


def command_line(command: str, recipe: str, given: Mapping[str, Any]) -> str:
    """What to type into a shell for a recipe with some settings changed, by their names."""
    words = ["hadaptive", command, "--recipe", recipe]
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *_flat(value)]
    return shlex.join(words)
