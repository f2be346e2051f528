"""Files that a deployed network is written to, and what runs each of them.

Every file carries what is needed to use it: class names, preprocessing and provenance, under "hadaptive" in its
metadata. Loading one runs no code that it holds, except PyTorch's own format, which is loaded on demand only.
"""

import functools
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from hadaptive.errors import UserError, first_line
from hadaptive.export.executorch import ExecutorchRun, write_executorch
from hadaptive.files import write_atomically
from hadaptive.runs import METADATA_KEY, ModelCard, open_weights

OPSET = 18
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
Run = Callable[[np.ndarray], np.ndarray]  # images (B, C, H, W) float32 -> logits (B, classes)


def check_format(name: str, *, writing: bool = True, int8: bool = False) -> None:
    """Raise one clear UserError unless this format is known and its packages are there.

    Args:
        name: of the format.
        writing: what exports needs is asked for, else what running needs.
        int8: so is what quantisation needs.
    """
    if name not in SUFFIXES:
        raise UserError(f"there is no format {name!r}; choose one of {', '.join(SUFFIXES)}")
    import importlib.util

    needed = (WRITES if writing else RUNS).get(name, ())
    for package in (*needed, "nncf") if int8 and name == "openvino" else needed:
        if importlib.util.find_spec(package) is None:
            raise UserError(f'format {name} needs the package {package}: pip install "hadaptive[{name}]"')


def write(net: nn.Module, path: Path, name: str, card: ModelCard, about: dict[str, Any]) -> None:
    """Write a network in eval mode to `path`.

    Args:
        net: a deployed network; for safetensors the network of ``card``.
        name: of the format.
        card: classes and preprocessing.
        about: provenance and what was done to the network, ready for JSON.

    Raises:
        UserError: its packages are missing.
    """
    check_format(name)
    metadata = json.dumps({"card": card.to_dict(), "about": about})
    size = card.preprocessing.input_size
    if name == "safetensors":
        from safetensors.torch import save_file

        state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
        write_atomically(path, lambda p: save_file(state, p, {METADATA_KEY: metadata}))
    elif name == "torch":
        program = torch.export.export(net, (torch.zeros(2, *size),), dynamic_shapes=({0: torch.export.Dim.AUTO},))

        def save(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                torch.export.save(program, file, extra_files={METADATA_KEY: metadata})

        write_atomically(path, save)
    elif name == "executorch":
        write_executorch(net, path, size, metadata)
    elif name == "onnx":
        write_onnx(net, path, size, metadata)
    else:
        _write_openvino(net, path, size, metadata)


def write_onnx(
    net: nn.Module, path: Path, size: tuple[int, int, int], metadata: str = "", *, shifts: bool = True
) -> None:
    """ONNX of opset 18 with a free batch: images (batch, C, H, W) -> logits (batch, classes).

    Args:
        net: in eval mode.
        path: of the file.
        size: of an image, (C, H, W).
        metadata: under "hadaptive".
        shifts: write a constant added to products as BatchNormalization, which ONNX Runtime computes in the
            blocked layout of its convolutions; it leaves the layout for an addition.
    """
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
    _name_operators(model)
    _name_nodes(model)
    if shifts:
        _write_shifts(model)
    _drop_unused(model)
    if metadata:
        onnx.helper.set_model_props(model, {METADATA_KEY: metadata})
    onnx.checker.check_model(model)
    write_atomically(path, lambda p: onnx.save(model, p))


def _name_operators(model: Any) -> None:
    """Softsign and global pooling are operators of ONNX, which the exporter writes as several or as a mean."""
    import onnx

    graph = model.graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1

    def softsign(node: Any) -> list[Any]:
        """What x / (1 + |x|) needs no more; nothing where `node` is no such division."""
        add = maker.get(node.input[1])
        if add is None or add.op_type != "Add" or readers[add.output[0]] != 1:
            return []
        size = next((maker[i] for i in add.input if i in maker and maker[i].op_type == "Abs"), None)
        if size is None or size.input[0] != node.input[0] or readers[size.output[0]] != 1:
            return []
        one = next((constants[i] for i in add.input if i in constants), None)
        return [add, size] if one is not None and one.size == 1 and float(one.reshape(())) == 1 else []

    for node in list(graph.node):
        kind, gone = "", []
        if node.op_type == "Div" and (gone := softsign(node)):
            kind = "Softsign"
        elif node.op_type == "ReduceMean" and len(node.input) == 2:
            axes = sorted(constants.get(node.input[1], np.zeros(0)).tolist())
            keeps = all(attribute.i == 1 for attribute in node.attribute if attribute.name == "keepdims")
            kind = "GlobalAveragePool" if axes in ([2, 3], [-2, -1]) and keeps else ""
        if kind:
            node.CopyFrom(onnx.helper.make_node(kind, [node.input[0]], list(node.output), name=node.name))
        for other in gone:
            graph.node.remove(other)


def _name_nodes(model: Any) -> None:
    """Name nodes with weights after their layer, and others after the last such layer that they depend on."""
    layer_of: dict[str, tuple[int, str]] = {}  # of each value: when, and by which layer
    used: set[str] = set()
    for number, node in enumerate(model.graph.node):
        _, source = max((layer_of[i] for i in node.input if i in layer_of), default=(-1, "input"))
        name, weight = "", node.input[1] if len(node.input) > 1 else ""
        if node.op_type in ("Conv", "Gemm") and weight.endswith(".weight"):
            name = weight.removesuffix(".weight")
            if name.endswith((".left", ".right")):  # equal ones of several layers were made one
                name = f"{source.rpartition('.')[0]}.{name.rpartition('.')[2]}"
        layer = name or source
        node.name = name or f"{layer}/{node.op_type}"
        while node.name in used:
            node.name += "+"
        used.add(node.name)
        layer_of.update((output, (number, layer)) for output in node.output)


def _write_shifts(model: Any) -> None:
    """A product of two convolutions plus a constant per channel, as BatchNormalization."""
    import onnx

    graph = model.graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = {node.output[0] for node in graph.node if node.op_type == "Mul"}
    for node in graph.node:
        if node.op_type != "Add" or not products & set(node.input):
            continue
        name = next((i for i in node.input if i in constants), None)
        if name is None or constants[name].shape[-3:] != (constants[name].size, 1, 1):
            continue
        shift = constants[name].reshape(-1)
        ones = np.ones_like(shift)
        values = {"scale": ones, "shift": shift, "mean": 0 * ones, "variance": ones}
        names = [f"{name}.{key}" for key in values]
        for key, value in zip(names, values.values(), strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(value, key))
        source = next(i for i in node.input if i in products)
        kind, outputs = "BatchNormalization", list(node.output)
        node.CopyFrom(onnx.helper.make_node(kind, [source, *names], outputs, node.name, epsilon=0.0))


def _drop_unused(model: Any) -> None:
    """Remove constants that nothing reads: ONNX Runtime warns of each."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def _write_openvino(net: nn.Module, path: Path, size: tuple[int, int, int], metadata: str) -> None:
    import tempfile

    import openvino

    with tempfile.TemporaryDirectory() as folder:
        write_onnx(net, Path(folder) / "net.onnx", size, shifts=False)
        model = openvino_core().read_model(Path(folder) / "net.onnx")
        for node in model.get_ops():
            if node.get_type_name() == "TopK":
                node.set_attribute("stable", True)  # the lower index of equal scores, as ONNX has it
        model.set_rt_info(metadata, [METADATA_KEY])
        openvino.save_model(model, path, compress_to_fp16=False)


def write_metadata(path: Path, name: str, card: ModelCard, about: dict[str, Any]) -> None:
    """Replace what an ONNX or OpenVINO file says about itself."""
    metadata = json.dumps({"card": card.to_dict(), "about": about})
    if name == "onnx":
        import onnx

        model = onnx.load(path)
        onnx.helper.set_model_props(model, {METADATA_KEY: metadata})
        write_atomically(path, lambda p: onnx.save(model, p))
        return
    import openvino

    program = openvino_core().read_model(path)
    program.set_rt_info(metadata, [METADATA_KEY])
    renewed = path.with_stem(f"{path.stem}-renewed")
    openvino.save_model(program, renewed, compress_to_fp16=False)
    for suffix in (".bin", ".xml"):
        renewed.with_suffix(suffix).replace(path.with_suffix(suffix))


def format_of(path: Path) -> str:
    """The format of an exported file, by its suffix.

    Raises:
        UserError: it is none of ours.
    """
    for name, suffix in SUFFIXES.items():
        if path.suffix == suffix:
            return name
    raise UserError(f"{path} is no exported network: its name must end in one of {', '.join(SUFFIXES.values())}")


def load(path: Path, threads: int = 0, *, trust: bool = False) -> tuple[Run, ModelCard]:
    """What runs an exported file, and the card it carries.

    Args:
        path: of the file.
        threads: of the runtime; 0 leaves their number to it.

        trust: load a ``torch.export`` program, too; PyTorch may run code that it holds.

    Raises:
        UserError: there is no such file, it is damaged or not ours, or its runtime is missing.
    """
    name = format_of(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    check_format(name, writing=False)
    if name == "torch" and not trust:
        raise UserError(f"{path} can run code when PyTorch loads it: pass --trust if you made it yourself")
    if name == "openvino" and not path.with_suffix(".bin").is_file():
        raise UserError(f"{path} needs its weights beside it, and {path.with_suffix('.bin')} is not there")
    opened = {
        "onnx": _open_onnx,
        "openvino": _open_openvino,
        "executorch": _open_executorch,
        "torch": _open_torch,
        "safetensors": _open_weights,
    }
    try:
        run, metadata = opened[name](path, threads)
        card = ModelCard.from_dict(json.loads(metadata)["card"])
    except Exception as error:  # each runtime has its own classes of errors
        raise UserError(f"{path} is damaged or was not written by hadaptive export: {first_line(error)}") from None
    return run, card


def _open_onnx(path: Path, threads: int) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map[METADATA_KEY]
    return lambda images: np.asarray(session.run(None, {"images": images})[0]), metadata


@functools.cache
def openvino_core() -> Any:
    """One for the process: OpenVINO that unloads its plugin with a Core crashes threads started later."""
    import openvino

    return openvino.Core()


def _open_openvino(path: Path, threads: int) -> tuple[Run, str]:
    core = openvino_core()
    model = core.read_model(path)
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: request.infer({0: images})[0].copy(), model.get_rt_info([METADATA_KEY]).astype(str)


def _open_executorch(path: Path, threads: int) -> tuple[Run, str]:
    run = ExecutorchRun(path, threads)
    return run, run.metadata


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
    if not zipfile.is_zipfile(path):  # PyTorch would print a traceback first
        raise UserError("it is no archive")
    extra = {METADATA_KEY: ""}
    program = torch.export.load(path, extra_files=extra)
    return _in_torch(program.module(), threads), extra[METADATA_KEY]


def _open_weights(path: Path, threads: int) -> tuple[Run, str]:
    network, card = open_weights(path)
    return _in_torch(network, threads), json.dumps({"card": card.to_dict()})
