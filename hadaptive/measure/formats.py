"""The formats that a network is written to: their names, the suffixes of their files, the packages they need."""

import importlib.util
from pathlib import Path
from typing import Literal

from hadaptive.errors import UserError

Format = Literal["onnx", "openvino", "executorch", "torch", "safetensors"]
SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "executorch": ".pte",
    "torch": ".pt2",
    "safetensors": ".safetensors",
}
RUNS = {"onnx": ("onnxruntime",), "openvino": ("openvino",), "executorch": ("executorch",)}
WRITES = {  # each has an extra of its own name
    "onnx": ("onnx", "onnxruntime", "onnxscript", "onnxslim"),
    "openvino": ("openvino", "onnx", "onnxscript", "onnxslim"),
    "executorch": ("executorch",),
}
ALIGN = 16  # multiple that expanded widths are filled up to, where nothing else is said


def check_format(name: str, *, writing: bool = True, int8: bool = False) -> None:
    """Raise one clear UserError unless this format is known and its packages are there.

    Args:
        name: of the format.
        writing: what exports needs is asked for, else what running needs.
        int8: so is what quantisation needs.
    """
    if name not in SUFFIXES:
        raise UserError(f"there is no format {name!r}; choose one of {', '.join(SUFFIXES)}")
    package = missing_package(name, writing=writing, int8=int8)
    if package is not None:
        raise UserError(f'format {name} needs the package {package}: pip install "hadaptive[{name}]"')


def missing_package(name: str, *, writing: bool = True, int8: bool = False) -> str | None:
    """The first package that a format needs, see :func:`check_format`, and that is not there."""
    needed = (WRITES if writing else RUNS).get(name, ())
    needed = (*needed, "nncf") if int8 and name == "openvino" else needed
    return next((package for package in needed if importlib.util.find_spec(package) is None), None)


def format_of(path: Path) -> str:
    """The format of an exported file, by its suffix.

    Raises:
        UserError: it is none of ours.
    """
    for name, suffix in SUFFIXES.items():
        if path.suffix == suffix:
            return name
    raise UserError(f"{path} is no exported network: its name must end in one of {', '.join(SUFFIXES.values())}")
