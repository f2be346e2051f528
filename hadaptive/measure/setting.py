"""What runs a network when its latency is measured: PyTorch on any device, or ONNX Runtime on the CPU."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hadaptive import ops
from hadaptive.errors import UserError

RUNTIMES = ("pytorch", "onnxruntime")


@dataclass(frozen=True)
class Setting:
    """What a latency is of: it depends on all of this.

    Attributes:
        runtime: pytorch (eager), or onnxruntime on the CPU.
        device: cpu or cuda.
        image_size: height and width of the input in pixels.
        in_chans: image channels.
        num_classes: outputs.
        batch: images at a time.
        threads: 0 leaves their number to the runtime.
        channels_last: of maps in PyTorch.
    """

    runtime: Literal["pytorch", "onnxruntime"] = "pytorch"
    device: str = "cpu"
    image_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    batch: int = 1
    threads: int = 0
    channels_last: bool = True

    def check(self) -> None:
        """Raise one clear UserError if this cannot be measured here."""
        for name in ("image_size", "in_chans", "num_classes", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.threads < 0:
            raise UserError(f"threads must not be negative, got {self.threads}")
        if self.device != "cpu" and not self.device.startswith("cuda"):
            raise UserError(f"device must be cpu or cuda, got {self.device!r}")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError("device is cuda, but PyTorch finds no GPU here: use --device cpu")
        if self.runtime == "onnxruntime":
            if self.device != "cpu":
                raise UserError("ONNX Runtime is measured on the CPU only: use --device cpu")
            try:
                import onnxruntime  # noqa: F401
                import onnxscript  # noqa: F401
            except ImportError as error:
                raise UserError(
                    f'runtime onnxruntime needs the package {error.name}: pip install "hadaptive[onnx]"'
                ) from None


def runner(module: nn.Module, x: Tensor, setting: Setting) -> Callable[[], Any]:
    """A function that runs `module` in eval mode on an input like `x` (B, C, H, W), as the setting says."""
    module = module.eval()
    if setting.runtime == "onnxruntime":
        return _onnx_runner(module, x, setting)
    memory_format = torch.channels_last if setting.channels_last else torch.contiguous_format
    module.to(setting.device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    x = x.to(setting.device, memory_format=memory_format)

    def run() -> None:
        with torch.inference_mode():
            module(x)

    return run


def _onnx_runner(module: nn.Module, x: Tensor, setting: Setting) -> Callable[[], Any]:
    import onnxruntime

    with (
        tempfile.TemporaryDirectory() as folder,
        ops.backend("reference"),
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")  # the exporter deprecates itself
        path = Path(folder) / "module.onnx"
        torch.onnx.export(module, (x,), path, input_names=["x"], output_names=["y"], dynamo=False)
        graph = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    # Idle threads that spin would slow down whatever is timed in turn with this.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: session.run(None, feed)
