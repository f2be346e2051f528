"""Packages that only some data need."""

import importlib
from typing import Any

from hadaptive.errors import UserError


def require(module: str, name: str, extra: str) -> Any:
    """Import an optional module.

    Raises:
        UserError: it is not installed; the message says what to install for `name`.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{name} needs a package that is not installed: pip install {extra}") from None
