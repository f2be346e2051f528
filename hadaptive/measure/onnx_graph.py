"""A network as an ONNX graph: exported by PyTorch, then written as runtimes run it fastest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hadaptive.files import write_atomically
from hadaptive.models.shipped import METADATA_KEY
from hadaptive.packages import quiet

OPSET = 18


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
    (model,) = _graphs([net], [size])
    _write(model, path, metadata, shifts)


def write_onnx_each(
    nets: Sequence[nn.Module], paths: Sequence[Path], sizes: Sequence[tuple[int, int, int]], *, shifts: bool = True
) -> None:
    """Several graphs as :func:`write_onnx` writes each, in a fraction of the time: the exporter is called once.

    Args:
        nets, paths, sizes: of the graphs, as there.
        shifts: as there.
    """
    for model, path in zip(_graphs(nets, sizes), paths, strict=True):
        _write(model, path, "", shifts)


class _Beside(nn.Module):
    """Networks that have nothing to do with each other: so many maps in, so many out."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        return tuple(net(x) for net, x in zip(self.nets, images, strict=True))


def _graphs(nets: Sequence[nn.Module], sizes: Sequence[tuple[int, int, int]]) -> list[Any]:
    """What the exporter makes of each network."""
    import onnx

    ends = [("images", "logits")] if len(nets) == 1 else [(f"images{n}", f"logits{n}") for n in range(len(nets))]
    # A batch of its own for each: of one for all, graphs would ask the first for its size.
    batches = tuple({0: torch.export.Dim("batch" if len(nets) == 1 else f"batch{n}")} for n in range(len(nets)))
    with quiet():
        program = torch.onnx.export(
            nets[0] if len(nets) == 1 else _Beside(nets),
            tuple(torch.zeros(2, *size) for size in sizes),
            input_names=[images for images, _ in ends],
            output_names=[logits for _, logits in ends],
            dynamic_shapes=batches if len(nets) == 1 else (batches,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        if len(nets) == 1:
            return [program.model_proto]
        whole = onnx.utils.Extractor(program.model_proto)
        return [_renamed(whole.extract_model([images], [logits]), images, logits) for images, logits in ends]


def _renamed(model: Any, images: str, logits: str) -> Any:
    """A graph whose ends are called as those of every other."""
    new = {images: "images", logits: "logits"}
    for names in (node_names for node in model.graph.node for node_names in (node.input, node.output)):
        names[:] = [new.get(name, name) for name in names]
    for end in (*model.graph.input, *model.graph.output):
        end.name = new[end.name]
    return model


def _write(model: Any, path: Path, metadata: str, shifts: bool) -> None:
    import onnx
    from onnxslim import slim

    with quiet():
        model = slim(model)
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
