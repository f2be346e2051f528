"""A person's own text, as names of files: one spelling to compare, and safe where it is shown or stored."""

import os
import re
import unicodedata
from collections.abc import Iterable

# Control characters, line separators, what turns the direction of a line around, and halves of characters, which
# stand for the bytes of a file name that is no UTF-8.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|$~&]|_(?!\w)|(?<!\w)_")


def shown(text: str, encoding: str = "utf-8") -> str:
    r"""One line for a terminal: what it would obey, or cannot show in its encoding, as an escape like ``\n``."""
    escaped = _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    return escaped.encode(encoding, "backslashreplace").decode(encoding)


def drawn(text: str) -> str:
    """One line for a picture of Matplotlib's, which takes what stands between two dollar signs for a formula."""
    return shown(text).replace("$", r"\$")


def in_markdown(text: str) -> str:
    """One line for a Markdown file: no character of it is markup, nor ends the cell of a table."""
    return _MARKDOWN.sub(r"\\\g<0>", shown(text))


def spelt(name: str) -> str:
    """A name with its letters composed (NFC): names are the same if this is."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def from_disk(name: str) -> str:
    """A name of a file, or a path, as UTF-8 has it whatever the locale; what is none becomes lone surrogates."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "surrogateescape")


def here(path: str) -> str:
    """A path that was written down under another locale, perhaps, as this one has it."""
    if path.isascii() or os.path.lexists(path):
        return path
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def alike(names: Iterable[str], others: Iterable[str]) -> bool:
    """Whether two lists of names are the same, however they are spelt."""
    return [*map(spelt, names)] == [*map(spelt, others)]


def escaped(text: str) -> str:
    r"""Text that UTF-8 can hold, to be stored: lone surrogates as ``\udcff``, a backslash as two."""
    return re.sub(r"[\\\ud800-\udfff]", lambda m: "\\\\" if m[0] == "\\" else f"\\u{ord(m[0]):04x}", text)


def unescaped(text: str) -> str:
    """The inverse of :func:`escaped`."""
    return re.sub(r"\\(?:\\|u([0-9a-f]{4}))", lambda m: chr(int(m[1], 16)) if m[1] else "\\", text)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts "9" before "10"; upper and lower case are the same."""
    steps = re.split(r"([0-9]+)", name.lower())
    return [(len(s := step.lstrip("0")), s) if i % 2 else (0, step) for i, step in enumerate(steps)]
