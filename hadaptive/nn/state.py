"""States of older versions, under the names of today."""

from typing import Any

from torch import nn


def rename_children(module: nn.Module, state_dict: dict[str, Any], prefix: str, names: dict[str, str]) -> None:
    """Give the entries of `module`'s renamed children their names of today, in place.

    Args:
        module: whose state it is; a child that it has under the old name keeps it.
        state_dict: of the whole network, or the part of it under `prefix`.
        prefix: of the module's own entries, with the dot that ends it.
        names: of the children, new by old.
    """
    for key in [key for key in state_dict if key.startswith(prefix)]:
        child, dot, rest = key[len(prefix) :].partition(".")
        if child in names and child not in module._modules:
            state_dict[f"{prefix}{names[child]}{dot}{rest}"] = state_dict.pop(key)
