"""What the reference makes of docstrings: an entry for each of `device, dtype:`, and names without their roles."""

import re
from typing import Any

import griffe

# "    a, b: what both are", over as many lines as it takes.
GROUP = re.compile(r"^( +)(\w+(?:,\s+\w+)+):( .*(?:\n\1 +.*)*)", re.MULTILINE)
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=`)")


def as_google(text: str) -> str:
    """A docstring as a reader of Google's style expects it."""

    def each(found: re.Match[str]) -> str:
        return "\n".join(f"{found[1]}{name}:{found[3]}" for name in re.findall(r"\w+", found[2]))

    return GROUP.sub(each, ROLE.sub("", text))


class Docstrings(griffe.Extension):
    """Rewrites every docstring as it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_google(obj.docstring.value)
