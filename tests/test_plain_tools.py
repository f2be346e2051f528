"""What PyTorch's and torchvision's own tools make of our networks, without a word about them."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
import torch.fx
from tiny import TINY
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torchvision.models.feature_extraction import create_feature_extractor

from hadaptive.measure.untrained import liven
from hadaptive.models import HadaptiveNet
from hadaptive.nn import NORMS, AdaptiveCrossHadamard, CrossHadamardMlp, expansions, top_k_channels

# The tools' own, of themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
exporters = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
orders = pytest.mark.parametrize("order", ["rank", "index"])


def network(**options) -> HadaptiveNet:
    torch.manual_seed(0)
    model = HadaptiveNet(TINY, num_classes=4, **options)
    liven(model, torch.randn(16, 3, 16, 16))
    return model


def in_onnx_runtime(model: nn.Module, example: Tensor, dynamo: bool) -> Callable[[Tensor], np.ndarray]:
    """`torch.onnx.export(model)` with a free batch, opened in ONNX Runtime."""
    free = {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}}
    file = io.BytesIO()
    program = torch.onnx.export(
        model, (example,), None if dynamo else file, input_names=["x"], dynamo=dynamo, verbose=False, **free
    )
    content = file.getvalue() if program is None else program.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})[0]


# ---------------------------------------------------------------- torch.onnx.export


@exporters
def test_onnx_computes_the_same_for_any_batch(dynamo: bool) -> None:
    model = network()
    run = in_onnx_runtime(model, torch.randn(2, 3, 16, 16), dynamo)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 16, 16)
        np.testing.assert_allclose(run(x), model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


class Choice(nn.Module):
    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order

    def forward(self, scores: Tensor) -> Tensor:
        return top_k_channels(scores, 7, self.order)


@orders
@exporters
def test_onnx_gives_ties_to_the_lower_channel(dynamo: bool, order: str) -> None:
    scores = torch.randint(-2, 3, (64, 24)).float()  # hardly one that is not equal to another
    run = in_onnx_runtime(Choice(order).eval(), scores[:2], dynamo)
    assert run(scores).tolist() == top_k_channels(scores, 7, order).tolist()


# ---------------------------------------------------------------- TorchScript, torch.export


def test_a_trace_warns_of_nothing_and_takes_any_batch() -> None:
    model = network()
    x = torch.randn(2, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, x)
    for images in (x, torch.randn(5, 3, 16, 16)):
        torch.testing.assert_close(traced(images), model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 5), (2, 8, 2, 3, 2)], ids=str)
def test_a_trace_of_any_number_of_dims(shape: tuple[int, ...]) -> None:
    layer, x = AdaptiveCrossHadamard(8, 4, selection="sample").eval(), torch.randn(shape)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- FX


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_fx_traces_every_layer(norm: str, training: bool) -> None:
    for layer, x in (
        (AdaptiveCrossHadamard(8, 4, norm=norm, selection="sample"), torch.randn(3, 8, 5, 5)),
        (CrossHadamardMlp(8, k=4, norm=norm, selection="sample"), torch.randn(3, 6, 8)),
    ):
        traced = torch.fx.symbolic_trace(layer.train(training))
        outputs = []
        for net in (layer, traced):
            torch.manual_seed(1)
            outputs.append(net(x))
        torch.testing.assert_close(*outputs, rtol=0, atol=0)
        outputs[1].sum().backward()
        assert all(p.grad is not None for n, p in traced.named_parameters() if training or "score" not in n)


def test_fx_traces_a_frozen_network() -> None:
    model, x = network(), torch.randn(3, 3, 16, 16)
    for layer in expansions(model).values():
        layer.freeze(torch.arange(layer.k))
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x), rtol=0, atol=0)


def test_torchvisions_feature_extractor_follows_the_mode() -> None:
    model = network(drop_path_rate=0.5)
    features = create_feature_extractor(model, ["stages.1", "classifier"])
    scripted, x = torch.jit.script(features), torch.randn(6, 3, 16, 16)
    for training in (False, True):
        model.train(training)
        outputs = []
        for net in (model, features.train(training)):
            torch.manual_seed(1)
            outputs.append(net(x))
        torch.testing.assert_close(outputs[1]["classifier"], outputs[0], rtol=0, atol=0)
    model.eval()
    maps = model.forward_intermediates(x, [1], intermediates_only=True)
    torch.testing.assert_close(features.eval()(x)["stages.1"], maps[0], rtol=0, atol=0)
    torch.testing.assert_close(scripted.eval()(x)["classifier"], model(x), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of quantised tensors, which are deprecated
def test_fx_quantisation() -> None:
    model, x = network(), torch.randn(64, 3, 16, 16)
    with torch.no_grad():
        observed = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
        torch.testing.assert_close(observed(x), model(x), rtol=1e-4, atol=1e-5)
        quantised = convert_fx(observed)
        assert any("quantized" in type(m).__module__ for m in quantised.modules())
        agree = quantised(x).argmax(1) == model(x).argmax(1)
    assert agree.float().mean() > 0.8
