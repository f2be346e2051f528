"""Files that a deployed network is written to, and what runs each of them.

Every file carries what is needed to use it: class names, preprocessing and provenance, under "hadaptive" in its
metadata. Loading one unpickles nothing.
"""

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hadaptive.runs import ModelCard, first_line, write_atomically

OPSET = 18
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "safetensors": ".safetensors"}
NEEDS = {  # each has an extra of its own name
    "onnx": ("onnx", "onnxruntime", "onnxscript", "onnxslim"),
    "openvino": ("openvino", "onnx", "onnxscript", "onnxslim"),
}
KEY = "hadaptive"

Run = Callable[[np.ndarray], np.ndarray]  # images (B, C, H, W) float32 -> logits (B, classes)


def check_format(name: str) -> None:
    """Raise one clear ValueError unless this format is known and its packages are there."""
    if name not in SUFFIXES:
        raise ValueError(f"there is no format {name!r}; choose one of {', '.join(SUFFIXES)}")
    import importlib.util

    for package in NEEDS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f'format {name} needs the package {package}: pip install "hadaptive[{name}]"')


def write(net: nn.Module, path: Path, name: str, card: ModelCard, about: dict[str, Any]) -> None:
    """Write a network in eval mode to `path`.

    Args:
        net: a deployed network; for safetensors the network of ``card``.
        name: of the format.
        card: classes and preprocessing.
        about: provenance and what was done to the network, ready for JSON.

    Raises:
        ValueError: its packages are missing.
    """
    check_format(name)
    metadata = json.dumps({"card": card.to_dict(), "about": about})
    size = card.preprocessing.input_size
    if name == "safetensors":
        from safetensors.torch import save_file

        state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
        write_atomically(path, lambda p: save_file(state, p, {KEY: metadata}))
    elif name == "torch":
        program = torch.export.export(net, (torch.zeros(2, *size),), dynamic_shapes=({0: torch.export.Dim.AUTO},))

        def save(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                torch.export.save(program, file, extra_files={KEY: metadata})

        write_atomically(path, save)
    elif name == "onnx":
        write_onnx(net, path, size, metadata)
    else:
        _write_openvino(net, path, size, metadata)


def write_onnx(net: nn.Module, path: Path, size: tuple[int, int, int], metadata: str = "") -> None:
    """ONNX of opset 18 with a free batch: images (batch, C, H, W) -> logits (batch, classes)."""
    import onnx
    from onnxslim import slim

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            net,
            (torch.zeros(2, *size),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model: Any = slim(program.model_proto)
    _name_softsigns(model)
    if metadata:
        onnx.helper.set_model_props(model, {KEY: metadata})
    onnx.checker.check_model(model)
    write_atomically(path, lambda p: onnx.save(model, p))


def _name_softsigns(model: Any) -> None:
    """x / (1 + |x|) is one operator of ONNX, which the exporter writes as three."""
    import onnx

    graph = model.graph
    maker = {output: node for node in graph.node for output in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for node in list(graph.node):
        add = maker.get(node.input[1]) if node.op_type == "Div" else None
        if add is None or add.op_type != "Add" or readers[add.output[0]] != 1:
            continue
        size = next((maker[i] for i in add.input if i in maker and maker[i].op_type == "Abs"), None)
        if size is None or size.input[0] != node.input[0] or readers[size.output[0]] != 1:
            continue
        softsign = onnx.helper.make_node("Softsign", [node.input[0]], list(node.output), name=node.name)
        node.CopyFrom(softsign)
        graph.node.remove(add)
        graph.node.remove(size)


def _write_openvino(net: nn.Module, path: Path, size: tuple[int, int, int], metadata: str) -> None:
    import tempfile

    import openvino

    with tempfile.TemporaryDirectory() as folder:
        write_onnx(net, Path(folder) / "net.onnx", size)
        model = _core().read_model(Path(folder) / "net.onnx")
        for node in model.get_ops():
            if node.get_type_name() == "TopK":
                node.set_attribute("stable", True)  # the lower index of equal scores, as ONNX has it
        model.set_rt_info(metadata, [KEY])
        openvino.save_model(model, path, compress_to_fp16=False)


def format_of(path: Path) -> str:
    """The format of an exported file, by its suffix.

    Raises:
        ValueError: it is none of ours.
    """
    for name, suffix in SUFFIXES.items():
        if path.suffix == suffix:
            return name
    raise ValueError(f"{path} is no exported network: its name must end in one of {', '.join(SUFFIXES.values())}")


def load(path: Path, threads: int = 0) -> tuple[Run, ModelCard]:
    """What runs an exported file, and the card it carries.

    Args:
        threads: of the runtime; 0 leaves their number to it.

    Raises:
        ValueError: there is no such file, it is damaged or not ours, or its runtime is missing.
    """
    name = format_of(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    check_format(name)
    opened = {"onnx": _open_onnx, "openvino": _open_openvino, "torch": _open_torch, "safetensors": _open_weights}
    try:
        run, metadata = opened[name](path, threads)
        card = ModelCard.from_dict(json.loads(metadata)["card"])
    except Exception as error:  # each runtime has its own classes of errors
        raise ValueError(
            f"{path} is damaged or was not written by hadaptive export: {first_line(error)}"
        ) from None
    return run, card


def _open_onnx(path: Path, threads: int) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map[KEY]
    return lambda images: np.asarray(session.run(None, {"images": images})[0]), metadata


@functools.cache
def _core() -> Any:
    """One for the process: OpenVINO that unloads its plugin with a Core crashes threads started later."""
    import openvino

    return openvino.Core()


def _open_openvino(path: Path, threads: int) -> tuple[Run, str]:
    core = _core()
    model = core.read_model(path)
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: request.infer({0: images})[0].copy(), model.get_rt_info([KEY]).astype(str)


def _in_torch(net: nn.Module, threads: int) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            with torch.inference_mode():
                return net(torch.from_numpy(images)).numpy()
        finally:
            torch.set_num_threads(before)

    return run


def _open_torch(path: Path, threads: int) -> tuple[Run, str]:
    extra = {KEY: ""}
    program = torch.export.load(path, extra_files=extra)
    return _in_torch(program.module(), threads), extra[KEY]


def _open_weights(path: Path, threads: int) -> tuple[Run, str]:
    from safetensors import safe_open

    from hadaptive.export.freeze import fix_saved_selections

    with safe_open(path, "pt") as file:
        metadata = file.metadata()[KEY]
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    net = ModelCard.from_dict(json.loads(metadata)["card"]).create_model()
    fix_saved_selections(net, state)
    net.load_state_dict(state)
    return _in_torch(net.eval(), threads), metadata
