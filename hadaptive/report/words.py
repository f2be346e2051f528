"""Figures in words."""

from pathlib import Path
from typing import Any


def network_name(model: str) -> str:
    """What a network is called, where it may be a file of its specification."""
    return Path(model).stem if model.endswith(".json") else model


def duration(seconds: float | None) -> str:
    """A time as a person says it."""
    if seconds is None:
        return "not known"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def where(summary: dict[str, Any]) -> list[str]:
    """Device and versions, as far as a summary says them: older ones do not."""
    found = [str(summary["device"])] if summary.get("device") else []
    threads = summary.get("threads")
    found += [f"{threads} thread{'s' if threads != 1 else ''}"] if threads else []
    found += [f"{name} {summary[name]}" for name in ("torch", "timm", "hadaptive") if summary.get(name)]
    return found or ["not known"]


def sentence(text: str) -> str:
    """What is said in one line of a terminal, as a sentence of a page."""
    return f"{text[:1].upper()}{text[1:]}."
