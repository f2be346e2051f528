"""The formats that a network is written to: their names, the suffixes of their files, the packages they need."""

import sys
from pathlib import Path
from typing import Literal

from hadaptive.errors import UserError
from hadaptive.packages import EXTRAS, require

Format = Literal["onnx", "openvino", "executorch", "coreml", "ncnn", "torch", "safetensors", "timm"]
SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "executorch": ".pte",
    "coreml": ".mlpackage",
    "ncnn": ".ncnn.param",
    "torch": ".pt2",
    "safetensors": ".safetensors",
    "timm": ".timm",
}
WEIGHTS = ("safetensors", "timm")  # formats that hold a network as it is, where others hold a program
RUNS = {
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
    "executorch": EXTRAS["executorch"],
    "coreml": EXTRAS["coreml"],
    "ncnn": ("ncnn",),
}
ALIGN = 16  # multiple that expanded widths are filled up to, where nothing else is said


def check_format(name: str, *, writing: bool = True, int8: bool = False, what: str = "") -> None:
    """Raise one clear UserError unless this format is known and its packages can be used.

    Args:
        name: of the format.
        writing: what exports needs is asked for, else what running needs.
        int8: so is what quantisation needs.
        what: needs them; by default the format.
    """
    if name not in SUFFIXES:
        raise UserError(f"there is no format {name!r}; choose one of {', '.join(SUFFIXES)}")
    modules = (EXTRAS if writing else RUNS).get(name, ())  # each has an extra of its own name
    needed = tuple(module for module in modules if int8 or module != "nncf")
    require(needed, what or f"format {name}", f'"hadaptive[{name}]"')
    if not writing and (why := cannot_run(name)) is not None:
        raise UserError(f"{what or 'this file'} cannot be run here: {why}")


def cannot_run(name: str) -> str | None:
    """Why a format that can be written here cannot be run, as a clause; None where it can."""
    return "Core ML runs networks on macOS only" if name == "coreml" and sys.platform != "darwin" else None


def format_of(path: Path) -> str:
    """The format of an exported file, by its suffix.

    Raises:
        UserError: it is none of ours.
    """
    found = "timm" if is_for_timm(path) else named_format(path)
    if found is not None:
        return found
    raise UserError(f"{path} is no exported network: its name must end in one of {', '.join(SUFFIXES.values())}")


OF_RUNS = ("model.json", "space.json")  # files that a run or a search has besides


def named_format(path: Path) -> str | None:
    """The format whose files are called so; None for other names."""
    return next((name for name, suffix in SUFFIXES.items() if path.name.endswith(suffix)), None)


def beside(path: Path) -> list[Path]:
    """The files that belong to an exported one: its weights, in some formats."""
    return [path.with_suffix(".bin")] if named_format(path) in ("openvino", "ncnn") else []


def is_for_timm(path: Path) -> bool:
    """Whether this is a folder as timm and the Hugging Face Hub have it, whatever it is called, and no run."""
    needed = all((path / name).is_file() for name in ("config.json", "model.safetensors"))
    return needed and not any((path / name).exists() for name in OF_RUNS)


def is_exported(path: Path) -> bool:
    """Whether this is a file, or one of the folders that are written as if they were one."""
    return path.is_file() or is_for_timm(path) or (path.is_dir() and named_format(path) == "coreml")


DEPLOYED = ("frozen", "int8")  # what a network's name may end in, to be measured as it is deployed


def source_of(name: str) -> tuple[str, str]:
    """A network's name without ":frozen" or ":int8", and which of them it had, or ""."""
    source, _, last = name.rpartition(":")
    return (source, last) if last in DEPLOYED else (name, "")
