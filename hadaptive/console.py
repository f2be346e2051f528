"""Where tables are printed."""

import sys

from rich.console import Console


def console() -> Console:
    """The terminal as it is, or 120 columns for a file or a pipe, where rich would assume 80 and cut names off."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)
