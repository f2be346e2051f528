"""What a latency is of: the runtime, its threads, the images, the selections."""

import os
import shutil
from dataclasses import dataclass
from typing import Literal, get_args

from hadaptive.errors import UserError
from hadaptive.measure.formats import check_format

Runtime = Literal["pytorch", "compile", "onnxruntime", "openvino", "executorch"]
# Runtimes of exported files, and the files' format.
LOWERED = {"onnxruntime": "onnx", "openvino": "openvino", "executorch": "executorch"}


@dataclass(frozen=True)
class Setting:
    """What a latency is of: it depends on all of this.

    Attributes:
        runtime: pytorch (eager), compile (torch.compile), or what runs an exported file on the CPU: onnxruntime,
            openvino or executorch.
        device: cpu or cuda.
        image_size: height and width of the input in pixels.
        in_chans: image channels.
        num_classes: outputs.
        batch: images at a time.
        threads: 0 leaves their number to the runtime.
        channels_last: of maps in PyTorch.
        frozen: selections are fixed, as with ``export --freeze``; else each image selects its own.
    """

    runtime: Runtime = "pytorch"
    device: str = "cpu"
    image_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    batch: int = 1
    threads: int = 0
    channels_last: bool = True
    frozen: bool = False

    def check(self) -> None:
        """Raise one clear UserError if this cannot be measured here."""
        if self.runtime not in get_args(Runtime):
            raise UserError(f"runtime must be one of {', '.join(get_args(Runtime))}, got {self.runtime!r}")
        for name in ("image_size", "in_chans", "num_classes", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.threads < 0:
            raise UserError(f"threads must not be negative, got {self.threads}")
        if self.device != "cpu" and not self.device.startswith("cuda"):
            raise UserError(f"device must be cpu or cuda, got {self.device!r}")
        if self.runtime in LOWERED:
            if self.device != "cpu":
                raise UserError(f"runtime {self.runtime} is measured on the CPU only: use --device cpu")
            check_format(LOWERED[self.runtime], what=f"runtime {self.runtime}")
        if self.device.startswith("cuda") and not _has_gpu():
            raise UserError("device is cuda, but PyTorch finds no GPU here: use --device cpu")
        if self.runtime == "compile" and self.device == "cpu" and not _compiler():
            raise UserError("runtime compile needs a C++ compiler: install g++, or set CXX to the one there is")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _compiler() -> str | None:
    """The C++ compiler that torch.compile would call."""
    names = (os.environ["CXX"],) if "CXX" in os.environ else ("g++", "clang++", "cl")
    return next(filter(None, map(shutil.which, names)), None)
