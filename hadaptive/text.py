"""A person's own text, as names of files and classes, made safe for where it is shown."""

import re

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
