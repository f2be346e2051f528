"""ncnn programs, for phones without a library of their own: written by pnnx, and run again from Python.

NAME.ncnn.bin holds the weights. NAME.ncnn.param is text: the graph, and behind it, where ncnn does not look, a
line of ours with the card and a digest of both files, for ncnn does not notice damage, and some of it ends the
process.
"""

import copy
import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hadaptive.errors import UserError
from hadaptive.files import json_text, write_atomically
from hadaptive.measure.deploy import DeployProducts
from hadaptive.measure.deploy_products import DeployPairs
from hadaptive.packages import quiet

OURS = "# hadaptive "  # what our line begins with


def write_ncnn(net: nn.Module, path: Path, size: tuple[int, int, int], metadata: str) -> None:
    """Write a deployed network with contiguous weights for one image (C, H, W).

    Raises:
        UserError: ncnn has no operator for some part.
    """
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, DeployProducts) and module.score is not None:
            raise UserError("ncnn selects nothing by scores: pass --freeze")
        if isinstance(module, DeployProducts | DeployPairs):
            module.by_parts = True
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            traced: Any = torch.jit.trace(net, torch.zeros(1, *size))
            traced.save(f"{folder}/net.pt")
        graph, weights = _converted(Path(folder), size)
    write_atomically(path.with_suffix(".bin"), lambda p: p.write_bytes(weights))
    line = OURS + json_text({"sha256": _digest(graph, weights), "metadata": metadata}) + "\n"
    write_atomically(path, lambda p: p.write_bytes(graph + line.encode()))


def _converted(folder: Path, size: tuple[int, int, int]) -> tuple[bytes, bytes]:
    """Graph and weights of net.pt in a folder."""
    import pnnx

    shape = f"inputshape=[1,{','.join(map(str, size))}]"
    done = subprocess.run(
        [pnnx.EXEC_PATH, "net.pt", shape, "fp16=0"],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    graph = folder / "net.ncnn.param"
    if done.returncode or not graph.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise RuntimeError(f"pnnx ended with status {done.returncode}: {said[-1]}")
    kinds = [line.split()[0] for line in graph.read_text(encoding="utf-8").splitlines()[2:] if line.strip()]
    unknown = sorted({kind for kind in kinds if not kind.isalnum()})  # what pnnx leaves as PyTorch calls it
    if unknown:
        raise UserError(f"ncnn has no operator {', '.join(unknown)}, which this network needs")
    return graph.read_bytes(), (folder / "net.ncnn.bin").read_bytes()


def _digest(graph: bytes, weights: bytes) -> str:
    return hashlib.sha256(graph + weights).hexdigest()


class NcnnRun:
    """What runs a file, image by image. (B, C, H, W) float32 -> (B, classes).

    Args:
        path: of NAME.ncnn.param, with NAME.ncnn.bin beside it.
        threads: 0 leaves their number to ncnn.

    Raises:
        UserError: the files are damaged.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import ncnn

        library: Any = ncnn  # of compiled code, without types
        graph, found, ours = path.read_bytes().partition(f"\n{OURS}".encode())
        known: dict[str, Any] = json.loads(ours) if found else {}
        weights = path.with_suffix(".bin").read_bytes()
        if known.get("sha256") != _digest(graph + b"\n", weights):
            raise UserError("its checksum does not fit its content")
        self.metadata = str(known["metadata"])
        self.net = library.Net()
        options = self.net.opt
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        if threads:
            options.num_threads = threads
        if self.net.load_param(str(path)) or self.net.load_model(str(path.with_suffix(".bin"))):
            raise UserError("ncnn cannot load it")
        self.matrix = library.Mat

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.stack([self._one(np.ascontiguousarray(image)) for image in images])

    def _one(self, image: np.ndarray) -> np.ndarray:
        extractor = self.net.create_extractor()
        extractor.input("in0", self.matrix(image))
        status, found = extractor.extract("out0")
        if status:
            raise UserError(f"ncnn ends with status {status}")
        return np.array(found)  # a copy: what was found is the extractor's
