"""The formats that a network is written to: their names, the suffixes of their files, the packages they need."""

from pathlib import Path
from typing import Literal

from hadaptive.errors import UserError
from hadaptive.packages import EXTRAS, require

Format = Literal["onnx", "openvino", "executorch", "torch", "safetensors"]
SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "executorch": ".pte",
    "torch": ".pt2",
    "safetensors": ".safetensors",
}
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
    for name, suffix in SUFFIXES.items():
        if path.suffix == suffix:
            return name
    raise UserError(f"{path} is no exported network: its name must end in one of {', '.join(SUFFIXES.values())}")


DEPLOYED = ("frozen", "int8")  # what a network's name may end in, to be measured as it is deployed


def source_of(name: str) -> tuple[str, str]:
    """A network's name without ":frozen" or ":int8", and which of them it had, or ""."""
    source, _, last = name.rpartition(":")
    return (source, last) if last in DEPLOYED else (name, "")
