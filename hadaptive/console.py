"""Where lines and tables are printed: no text of a person's is taken for markup or for orders to a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from hadaptive.text import shown

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str = "", *, error: bool = False) -> None:
    """Print one line, at once; to the standard error if it is one. What cannot be shown is escaped."""
    stream = sys.stderr if error else sys.stdout
    print(shown(text, getattr(stream, "encoding", None) or "utf-8"), file=stream, flush=True)


class _Encodable:
    """A stream that takes what its encoding lacks as escapes: rich has characters of its own, as the ellipsis."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        return self.stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def console(*, error: bool = False) -> Console:
    """For tables, or progress on the standard error: the terminal as it is, or 120 columns for a file or a pipe.

    Its strings, those in tables too, are lines as :func:`say` prints them.
    """
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, **how: object) -> Text:
            return super().render_str(shown(text, self.encoding), **how)  # pyright: ignore[reportArgumentType]

    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else 120
    file: Any = _Encodable(stream)
    return Plain(file=file, width=width, markup=False, emoji=False, highlight=False)
