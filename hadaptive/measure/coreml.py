"""Core ML packages, for Apple's devices. Written anywhere; run on macOS only, as `formats.cannot_run` says."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hadaptive.errors import UserError
from hadaptive.measure.deploy import DeployProducts
from hadaptive.models.shipped import METADATA_KEY
from hadaptive.packages import silent


def write_coreml(net: nn.Module, path: Path, size: tuple[int, int, int], metadata: str) -> None:
    """Write a deployed network with contiguous weights for one image (C, H, W); from iOS 15 and macOS 12 on."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, DeployProducts):
            module.ties = "topk"  # it has no stable sort
    with silent():
        import coremltools

        program = torch.export.export(net, (torch.zeros(1, *size),)).run_decompositions({})
        for node in [*program.graph.nodes]:
            if node.target is torch.ops.aten.alias.default:  # a slice of everything, which it does not know
                node.replace_all_uses_with(node.args[0])
                program.graph.erase_node(node)
        model: Any = coremltools.convert(
            program,
            inputs=[coremltools.TensorType("images", (1, *size))],
            outputs=[coremltools.TensorType("logits")],
            minimum_deployment_target=coremltools.target.iOS15,
            compute_precision=coremltools.precision.FLOAT32,
            skip_model_load=True,
        )
        model.user_defined_metadata[METADATA_KEY] = metadata
        model.save(str(path))


class CoremlRun:
    """What runs a package, image by image. (B, C, H, W) float32 -> (B, classes).

    Raises:
        UserError: another program wrote it.
    """

    def __init__(self, path: Path) -> None:
        with silent():
            import coremltools

            self.model: Any = coremltools.models.MLModel(str(path))
        metadata = self.model.user_defined_metadata
        if METADATA_KEY not in metadata:
            raise UserError("it does not say what it is of")
        self.metadata = str(metadata[METADATA_KEY])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        found = [self.model.predict({"images": image[None].astype(np.float32)})["logits"] for image in images]
        return np.concatenate(found)
