"""The formats that a network is written to: their names, the suffixes of their files, the packages they need."""

from pathlib import Path
from typing import Literal

from hadaptive.errors import UserError
from hadaptive.packages import EXTRAS, require

Format = Literal["onnx", "openvino", "executorch", "torch", "safetensors", "timm"]
SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "executorch": ".pte",
    "torch": ".pt2",
    "safetensors": ".safetensors",
    "timm": ".timm",
}
WEIGHTS = ("safetensors", "timm")  # formats that hold a network as it is, where others hold a program
RUNS = {"onnx": ("onnxruntime",), "openvino": ("openvino",), "executorch": EXTRAS["executorch"]}
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


def format_of(path: Path) -> str:
    """The format of an exported file, by its suffix.

    Raises:
        UserError: it is none of ours.
    """
    if is_for_timm(path):
        return "timm"
    for name, suffix in SUFFIXES.items():
        if path.suffix == suffix:
            return name
    raise UserError(f"{path} is no exported network: its name must end in one of {', '.join(SUFFIXES.values())}")


def is_for_timm(path: Path) -> bool:
    """Whether this is a folder as timm and the Hugging Face Hub have it, whatever it is called, and no run."""
    needed = all((path / name).is_file() for name in ("config.json", "model.safetensors"))
    return needed and not any((path / name).exists() for name in OF_RUNS)


def is_exported(path: Path) -> bool:
    """Whether this is a file, or one of the folders that are written as if they were one."""
    return path.is_file() or is_for_timm(path)


OF_RUNS = ("model.json", "space.json")

DEPLOYED = ("frozen", "int8")  # what a network's name may end in, to be measured as it is deployed


def source_of(name: str) -> tuple[str, str]:
    """A network's name without ":frozen" or ":int8", and which of them it had, or ""."""
    source, _, last = name.rpartition(":")
    return (source, last) if last in DEPLOYED else (name, "")
