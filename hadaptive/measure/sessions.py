"""What runs a file in its runtime.

Loading a file runs no code that it holds, except PyTorch's own format, which is loaded on demand only.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from hadaptive.cards import ModelCard, card_in, open_weights
from hadaptive.errors import UserError, first_line
from hadaptive.files import json_text
from hadaptive.measure.coreml import CoremlRun
from hadaptive.measure.executorch import ExecutorchRun
from hadaptive.measure.formats import beside, check_format, format_of
from hadaptive.measure.ncnn import NcnnRun
from hadaptive.measure.runtimes import Run, in_onnxruntime, in_openvino
from hadaptive.models.shipped import METADATA_KEY


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
    if not path.exists():
        raise UserError(f"there is no file {path}")
    check_format(name, writing=False)
    if name == "torch" and not trust:
        raise UserError(f"{path} can run code when PyTorch loads it: pass --trust if you made it yourself")
    for weights in beside(path):
        if not weights.is_file():
            raise UserError(f"{path} needs its weights beside it, and {weights} is not there")
    try:
        run, metadata = open_file(path, threads)
        card = ModelCard.from_dict(json.loads(metadata)["card"])
    except Exception as error:  # each runtime has its own classes of errors
        raise UserError(f"{path} is damaged or was not written by hadaptive export: {first_line(error)}") from None
    return run, card


def open_file(path: Path, threads: int = 0, *, in_turns: bool = False) -> tuple[Run, str]:
    """What runs a file of any format, and what it says about itself; errors are the runtime's own.

    Args:
        path: of the file.
        threads: of the runtime; 0 leaves their number to it.
        in_turns: let the threads sleep between two calls, and move between cores. They spin and stay else, as is
            fastest where nothing else runs, and disturb whatever takes turns with them.
    """
    opened = {
        "onnx": _open_onnx,
        "openvino": _open_openvino,
        "executorch": _open_executorch,
        "coreml": _open_coreml,
        "ncnn": _open_ncnn,
        "torch": _open_torch,
        "safetensors": _open_weights,
        "timm": _open_timm,
    }
    return opened[format_of(path)](path, threads, in_turns)


def _open_onnx(path: Path, threads: int, in_turns: bool) -> tuple[Run, str]:
    run, session = in_onnxruntime(path, threads, in_turns)
    return run, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")


def _open_openvino(path: Path, threads: int, in_turns: bool) -> tuple[Run, str]:
    run, model = in_openvino(path, threads, in_turns)
    return run, model.get_rt_info([METADATA_KEY]).astype(str)


def _open_executorch(path: Path, threads: int, in_turns: bool) -> tuple[Run, str]:
    run = ExecutorchRun(path, threads)
    return run, run.metadata


def _open_coreml(path: Path, threads: int, in_turns: bool) -> tuple[Run, str]:
    run = CoremlRun(path)
    return run, run.metadata


def _open_ncnn(path: Path, threads: int, in_turns: bool) -> tuple[Run, str]:
    run = NcnnRun(path, threads)
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


def _open_torch(path: Path, threads: int, in_turns: bool) -> tuple[Run, str]:
    if not zipfile.is_zipfile(path):  # PyTorch would print a traceback first
        raise UserError("it is no archive")
    extra = {METADATA_KEY: ""}
    program = torch.export.load(path, extra_files=extra)
    return _in_torch(program.module(), threads), extra[METADATA_KEY]


def _open_weights(path: Path, threads: int, in_turns: bool) -> tuple[Run, str]:
    network, card = open_weights(path)
    return _in_torch(network, threads), json_text({"card": card.to_dict()})


def _open_timm(path: Path, threads: int, in_turns: bool) -> tuple[Run, str]:
    card = card_in(path / "model.safetensors")
    network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return _in_torch(network, threads), json_text({"card": card.to_dict()})
