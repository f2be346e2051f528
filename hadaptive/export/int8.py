"""Post-training quantisation to int8 with the quantisers of ONNX Runtime and OpenVINO."""

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from hadaptive.measure.formats import check_format
from hadaptive.measure.runtimes import Run, openvino_core
from hadaptive.measure.sessions import load
from hadaptive.models.shipped import METADATA_KEY
from hadaptive.packages import quiet

BATCH = 32


def quantise_within(
    source: Path,
    target: Path,
    form: str,
    calibration: np.ndarray,
    order: Sequence[str],
    keep: Sequence[str],
    lost: Callable[[Run], float],
    max_loss: float,
) -> tuple[list[str], float]:
    """Quantise all layers but `keep`, then keep more and more in float until little enough accuracy is lost.

    Args:
        source, target, form, calibration: as in :func:`quantise`.
        order: layers, the most harmful first.
        keep: layers that stay in float whatever happens.
        lost: accuracy in points that what runs a file has lost.
        max_loss: points that may be lost.

    Returns:
        The layers left in float, and the points lost with them, which exceed ``max_loss`` where nothing helps.
    """
    kept, more = list(keep), 1
    while True:
        quantise(source, target, form, calibration, kept)
        points = lost(load(target)[0])
        rest = [name for name in order if name not in kept]
        if points <= max_loss or not rest:
            return kept, points
        kept, more = kept + rest[:more], 2 * more


def quantise(source: Path, target: Path, form: str, calibration: np.ndarray, keep: Sequence[str]) -> None:
    """Quantise an exported float32 file with its runtime's own quantiser; metadata go along.

    Args:
        source: ONNX or OpenVINO file whose nodes are named after layers, as ours are.
        target: file to write.
        form: "onnx" or "openvino".
        calibration: images (N, C, H, W), float32.
        keep: layers that stay in float.

    Raises:
        UserError: the quantiser's package is missing.
    """
    check_format(form, int8=True)
    with quiet():
        if form == "onnx":
            _quantise_onnx(source, target, calibration, keep)
        else:
            _quantise_openvino(source, target, calibration, keep)


def _within(node: str, keep: Sequence[str]) -> bool:
    return any(node == name or node.startswith((f"{name}.", f"{name}/")) for name in keep)


def _quantise_onnx(source: Path, target: Path, calibration: np.ndarray, keep: Sequence[str]) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(np.array_split(calibration, -(-len(calibration) // BATCH)))

        def get_next(self) -> dict[str, np.ndarray]:  # pyright: ignore[reportIncompatibleMethodOverride]
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}  # pyright: ignore[reportReturnType]

    model = onnx.load(source)
    with tempfile.TemporaryDirectory() as folder:
        quantised = Path(folder) / "int8.onnx"
        quantize_static(
            str(source),
            str(quantised),
            Reader(),  # pyright: ignore[reportArgumentType]
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in model.graph.node if _within(node.name, keep)],
        )
        result = onnx.load(quantised)
    onnx.helper.set_model_props(result, {p.key: p.value for p in model.metadata_props})
    onnx.save(result, target)


def _quantise_openvino(source: Path, target: Path, calibration: np.ndarray, keep: Sequence[str]) -> None:
    import nncf
    import openvino

    model = openvino_core().read_model(source)
    metadata = model.get_rt_info([METADATA_KEY]).astype(str)
    names = [node.get_friendly_name() for node in model.get_ops() if _within(node.get_friendly_name(), keep)]
    patterns = [f"{re.escape(name)}[./].*" for name in keep]
    quantised = nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in calibration]),
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=names, patterns=patterns, validate=False),
    )
    quantised.set_rt_info(metadata, [METADATA_KEY])
    openvino.save_model(quantised, target, compress_to_fp16=False)
