"""What runs files in runtimes that know nothing of PyTorch, without importing it."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]  # images (B, C, H, W) float32 -> logits (B, classes)


def in_onnxruntime(path: Path, threads: int, in_turns: bool = False) -> tuple[Run, Any]:
    """What runs an ONNX file, and its session.

    Args:
        path: of the file.
        threads: of the runtime; 0 leaves their number to it.
        in_turns: as :func:`hadaptive.measure.sessions.open_file` has it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if in_turns:
        options.add_session_config_entry("session.force_spinning_stop", "1")  # after the call, not within it
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {"images": images})[0]), session


@functools.cache
def openvino_core() -> Any:
    """One for the process: OpenVINO that unloads its plugin with a Core crashes threads started later."""
    import openvino

    return openvino.Core()


def in_openvino(path: Path, threads: int, in_turns: bool = False) -> tuple[Run, Any]:
    """What runs an OpenVINO file, and its model; arguments as :func:`in_onnxruntime` has them."""
    core = openvino_core()
    model = core.read_model(path)
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    if in_turns:
        settings["ENABLE_CPU_PINNING"] = False
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: request.infer({0: images})[0].copy(), model


WITHOUT_PYTORCH = {".onnx": in_onnxruntime, ".xml": in_openvino}  # by the suffixes of files
