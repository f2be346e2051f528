"""What a compiler is given in place of eager operators: the same selection, the same scores, the same network."""

import pytest
import timm
import torch
from torch import Tensor

import hadaptive  # noqa: F401  registers the networks
from hadaptive.nn import ChannelScore, selection
from hadaptive.ops import library

ROWS = {
    "distinct": [3.0, -1.0, 2.0, 0.5, -7.0, 1.0],
    "equal": [1.0, 1.0, 2.0, 2.0, 1.0, 2.0],
    "zeros": [0.0, -0.0, 0.0, -0.0, -1.0, 1.0],
    "infinite": [float("inf"), 1.0, float("inf"), -float("inf"), 0.0, -float("inf")],
    "nan": [1.0, float("nan"), 2.0, float("nan"), -1.0, float("inf")],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_counting_takes_what_a_stable_sort_takes(row: list[float], dtype: torch.dtype) -> None:
    scores = torch.tensor([row, row[::-1]], dtype=dtype)
    for k in range(1, 7):
        assert selection._counted_top_k(scores, k).equal(selection._stable_top_k(scores, k))


def test_counting_random_rows() -> None:
    scores = torch.randn(50, 96).mul(4).round()  # full of ties
    assert selection._counted_top_k(scores, 31).equal(selection._stable_top_k(scores, 31))


@pytest.mark.parametrize("width", [1, 3, 5, 9])
def test_shifted_sums_are_the_convolution(width: int) -> None:
    score = ChannelScore(width).double()
    y = torch.randn(3, 7, dtype=torch.float64)
    expected = score.conv(y.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(selection._convolved(y, score.conv.weight.flatten()), expected)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("hadaptive_net_s", num_classes=7).eval()


def operators(network: torch.nn.Module, x: Tensor) -> tuple[Tensor, set[str]]:
    """What the compiled network gives, and the names in its graph."""
    names: set[str] = set()

    def note(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        names.update(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compiler.reset()
    try:
        return torch.compile(network, fullgraph=True, backend=note)(x), names
    finally:
        torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dynamo warns about what it imports
@pytest.mark.skipif(library._unusable("cpu") is not None, reason="Numba is not installed")
def test_a_compiler_is_given_plain_operators_for_inference_and_the_kernels_for_training(network) -> None:
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        y, names = operators(network, x)
        torch.testing.assert_close(y, network(x), rtol=1e-3, atol=1e-4)
    assert not any("hadaptive" in name or "sort" in name for name in names)
    y, names = operators(network, x)
    assert "hadaptive.cross_hadamard_expand.default" in names
    y.sum().backward()
    found = [p.grad for p in network.parameters()]
    network.zero_grad()
    network(x).sum().backward()
    for a, p in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-4)
