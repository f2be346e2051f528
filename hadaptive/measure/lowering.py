"""The single lowering: from a network to the file of any runtime.

Every file carries what is needed to use it: class names, preprocessing and provenance, under "hadaptive" in its
metadata.
"""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hadaptive.cards import ModelCard
from hadaptive.files import json_text, write_atomically, write_json
from hadaptive.measure.coreml import write_coreml
from hadaptive.measure.executorch import write_executorch
from hadaptive.measure.formats import check_format
from hadaptive.measure.ncnn import write_ncnn
from hadaptive.measure.onnx_graph import write_onnx, write_onnx_each
from hadaptive.measure.runtimes import openvino_core
from hadaptive.models.shipped import METADATA_KEY


def write(
    net: nn.Module, path: Path, name: str, card: ModelCard, about: dict[str, Any], *, split: str | None = None
) -> None:
    """Write a network in eval mode to `path`.

    Args:
        net: a deployed network; for safetensors and timm the network of ``card``.
        name: of the format.
        card: classes and preprocessing.
        about: provenance and what was done to the network, ready for JSON.
        split: the division of the images it has learned from, for weights that may be trained on.

    Raises:
        UserError: its packages are missing.
    """
    check_format(name)
    metadata = json_text({"card": card.to_dict(), "about": about})
    if name == "safetensors":
        _write_weights(net, path, card, about, split)
    elif name == "timm":
        config = card.timm_config
        path.mkdir()
        write_json(path / "config.json", config)
        # What is handed to others names no image of its owner's, nor a place on their disk.
        said = {key: value for key, value in about.items() if key != "source"}
        _write_weights(net, path / "model.safetensors", card.for_others, said)
    else:
        lower(net, path, name, card.preprocessing.input_size, metadata)


def _write_weights(
    net: nn.Module, path: Path, card: ModelCard, about: dict[str, Any], split: str | None = None
) -> None:
    from safetensors.torch import save

    metadata = json_text({"card": card.to_dict(), "about": about, "split": split})
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    write_atomically(path, lambda p: p.write_bytes(save(state, {"format": "pt", METADATA_KEY: metadata})))


def lower(net: nn.Module, path: Path, name: str, size: tuple[int, int, int], metadata: str = "") -> None:
    """Write a deployed network, or a part of one, as a program of a runtime.

    Args:
        net: in eval mode, on the CPU: (B, C, H, W) -> anything.
        path: of the file.
        name: of the format, which is one of programs.
        size: of an image or map, (C, H, W).
        metadata: under "hadaptive".
    """
    net = _contiguous(net)
    if name == "torch":
        program = torch.export.export(net, (torch.zeros(2, *size),), dynamic_shapes=({0: torch.export.Dim.AUTO},))

        def save(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                torch.export.save(program, file, extra_files={METADATA_KEY: metadata})

        write_atomically(path, save)
    elif name == "executorch":
        write_executorch(net, path, size, metadata)
    elif name == "coreml":
        write_coreml(net, path, size, metadata)
    elif name == "ncnn":
        write_ncnn(net, path, size, metadata)
    elif name == "onnx":
        write_onnx(net, path, size, metadata)
    else:
        _write_openvino(net, path, size, metadata)


def _contiguous(net: nn.Module) -> nn.Module:
    """A copy whose weights lie as exporters expect them.

    Training may lay them out with channels last. Exporters would write that layout into the graph, as a Gather
    behind the pooling, or as operators that cannot read XNNPACK's results.
    """
    net = copy.deepcopy(net)
    for tensor in (*net.parameters(), *net.buffers()):
        # A clone, because 1x1 weights count as contiguous in either layout.
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
    return net


def lower_each(
    nets: Sequence[nn.Module], paths: Sequence[Path], name: str, sizes: Sequence[tuple[int, int, int]]
) -> None:
    """Several parts as :func:`lower` writes each, without metadata.

    Args:
        nets, paths, sizes: as there.
        name: of the format: onnx or openvino, which are exported in one call, or executorch.
    """
    if name == "executorch":
        for net, path, size in zip(nets, paths, sizes, strict=True):
            lower(net, path, name, size)
        return
    nets = [_contiguous(net) for net in nets]
    if name == "onnx":
        write_onnx_each(nets, paths, sizes)
        return
    graphs = [path.with_suffix(".onnx") for path in paths]
    write_onnx_each(nets, graphs, sizes, shifts=False)
    for graph, path in zip(graphs, paths, strict=True):
        _convert_to_openvino(graph, path, "")
        graph.unlink()


def _write_openvino(net: nn.Module, path: Path, size: tuple[int, int, int], metadata: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(net, Path(folder) / "net.onnx", size, shifts=False)
        _convert_to_openvino(Path(folder) / "net.onnx", path, metadata)


def _convert_to_openvino(graph: Path, path: Path, metadata: str) -> None:
    import openvino

    model = openvino_core().read_model(graph)
    for node in model.get_ops():
        if node.get_type_name() == "TopK":
            node.set_attribute("stable", True)  # the lower index of equal scores, as ONNX has it
    model.set_rt_info(metadata, [METADATA_KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def write_metadata(path: Path, name: str, card: ModelCard, about: dict[str, Any]) -> None:
    """Replace what an ONNX or OpenVINO file says about itself."""
    metadata = json_text({"card": card.to_dict(), "about": about})
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
