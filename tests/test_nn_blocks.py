"""ACH for tokens, Ghost, and the bottleneck: equality with the method, gradients, shapes, errors."""

import numpy as np
import pytest
import torch
from networks import randomise, seeded
from tolerances import assert_close
from torch import nn

from hadaptive.nn import (
    AdaptiveBottleneck,
    AdaptiveCrossHadamard,
    CrossHadamardMlp,
    GhostExpansion,
    InvertedExpansion,
    k_for_width,
)

# Tokens


def test_mlp_is_mix_expand_activate_project() -> None:
    mlp = randomise(CrossHadamardMlp(6, k=4, out_features=3, selection="sample")).double().eval()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    w = {name: tensor.numpy() for name, tensor in mlp.state_dict().items()}
    mixed = x.numpy() @ w["fc1.weight"].T + w["fc1.bias"]
    pooled = np.pad(mixed.mean(1), ((0, 0), (2, 2)))
    score = sum(w["cross_hadamard.score.conv.weight"][0, 0, t] * pooled[:, t : t + 6] for t in range(5))
    top = np.argsort(-score, axis=1, kind="stable")[:, :4]
    z = np.take_along_axis(mixed, top[:, None, :], axis=2)
    u = np.stack([z[:, :, i] * z[:, :, j] for i in range(4) for j in range(i + 1, 4)], axis=2)
    u = w["cross_hadamard.norm.alpha"] * u
    products = w["cross_hadamard.norm.weight"] * u / (1 + np.abs(u)) + w["cross_hadamard.norm.bias"]
    hidden = nn.functional.gelu(torch.from_numpy(np.concatenate([mixed, products], axis=2))).numpy()
    y = mlp(x)
    assert y.shape == (2, 7, 3)
    assert_close(y, hidden @ w["fc2.weight"].T + w["fc2.bias"])


def test_mlp_widths() -> None:
    default = CrossHadamardMlp(24, selection="sample")
    assert default.cross_hadamard.k == k_for_width(24, 96)
    assert default.cross_hadamard.out_channels <= 96
    assert default.fc2.out_features == 24
    assert CrossHadamardMlp(24, 40, selection="sample").cross_hadamard.k == k_for_width(24, 40) == 6
    assert CrossHadamardMlp(4, 4000, selection="sample").cross_hadamard.k == 4  # no more channels than there are
    assert CrossHadamardMlp(24, 96, k=3, selection="sample").cross_hadamard.k == 3


def test_mlp_options() -> None:
    mlp = CrossHadamardMlp(6, act_layer=nn.ReLU, bias=False, drop=0.25, norm="dyt", selection="sample")
    assert isinstance(mlp.act, nn.ReLU)
    assert mlp.fc1.bias is None
    assert mlp.fc2.bias is None
    assert mlp.drop2.p == 0.25
    assert type(mlp.cross_hadamard.norm).__name__ == "DyT"


def test_every_parameter_of_the_mlp_learns() -> None:
    mlp = CrossHadamardMlp(6, k=4, selection="sample")
    (mlp(torch.randn(2, 5, 6), seeded()) * torch.randn(2, 5, 6)).sum().backward()
    for name, parameter in mlp.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 3, 3, 5)], ids=str)
def test_mlp_rejects_what_is_not_tokens(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected tokens \(B, N, 6\), got"):
        CrossHadamardMlp(6, selection="sample")(torch.randn(shape))


@pytest.mark.parametrize("channels", [1, 7, 64])
def test_k_for_width_is_the_largest_that_fits(channels: int) -> None:
    for width in range(channels + 1, channels + 600):
        k = max(k for k in range(60) if channels + k * (k - 1) // 2 <= width)
        assert k_for_width(channels, width) == k


@pytest.mark.parametrize("width", [0, 7, 8])
def test_k_for_width_rejects_a_width_that_is_no_wider(width: int) -> None:
    with pytest.raises(ValueError, match=f"the wanted width {width} must exceed the 8 channels"):
        k_for_width(8, width)


# Ghost


@pytest.mark.parametrize(
    ("channels", "ratio", "half"), [(32, 4.0, 64), (5, 1.0, 3), (3, 1.5, 2), (7, 0.2, 1), (10, 2.5, 13)]
)
def test_ghost_widths(channels: int, ratio: float, half: int) -> None:
    ghost = GhostExpansion(channels, ratio)
    assert ghost.out_channels == 2 * half
    assert ghost(torch.randn(2, channels, 3, 5)).shape == (2, 2 * half, 3, 5)
    weights = [tuple(m.weight.shape) for m in ghost.modules() if isinstance(m, nn.Conv2d)]
    assert weights == [(half, channels, 1, 1), (half, 1, 3, 3)]
    assert all(m.bias is None for m in ghost.modules() if isinstance(m, nn.Conv2d))


def test_ghost_equals_its_definition() -> None:
    ghost = randomise(GhostExpansion(3, 2.0)).double().eval()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    w = {name: tensor.numpy() for name, tensor in ghost.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, var, weight, bias = (
            w[f"{name}.1.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    first = norm(np.einsum("oi,bihw->bohw", w["primary.0.weight"][:, :, 0, 0], x.numpy()), "primary")
    first = first * np.clip(first + 3, 0, 6) / 6  # Hardswish
    padded, cheap = np.pad(first, ((0, 0), (0, 0), (1, 1), (1, 1))), np.zeros(first.shape)
    for row in range(3):
        for col in range(3):
            taps = w["cheap.0.weight"][:, 0, row, col][:, None, None]
            cheap += taps * padded[:, :, row : row + 4, col : col + 5]
    assert_close(ghost(x), np.concatenate([first, norm(cheap, "cheap")], axis=1))


@pytest.mark.parametrize("ratio", [0.0, 0.1, -1.0])
def test_ghost_rejects_a_ratio_that_leaves_nothing(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"ratio {ratio} leaves no channel of 5"):
        GhostExpansion(5, ratio)


# Inverted bottleneck


@pytest.mark.parametrize(("channels", "ratio", "wide"), [(32, 4.0, 128), (5, 1.0, 5), (3, 1.5, 4), (10, 0.25, 2)])
def test_inverted_expansion_is_one_convolution(channels: int, ratio: float, wide: int) -> None:
    expansion = randomise(InvertedExpansion(channels, ratio)).eval()
    assert expansion.out_channels == wide
    x = torch.randn(2, channels, 3, 5)
    convolution, norm, _ = expansion.convolution
    assert convolution.bias is None
    mixed = torch.einsum("oi,bihw->bohw", convolution.weight[:, :, 0, 0], x)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    y = (mixed - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(expansion(x), y * (y + 3).clamp(0, 6) / 6, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 0.1, -1.0])
def test_inverted_expansion_rejects_a_ratio_that_leaves_nothing(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"ratio {ratio} leaves no channel of 5"):
        InvertedExpansion(5, ratio)


# Bottleneck


@pytest.mark.parametrize("stride", [1, 2], ids=lambda s: f"stride{s}")
@pytest.mark.parametrize("kernel", [2, 3, 5, 7], ids=lambda k: f"kernel{k}")
@pytest.mark.parametrize("size", [7, 8], ids=lambda s: f"size{s}")
@pytest.mark.parametrize("kind", ["ach", "ghost", "inverted"])
def test_bottleneck_sizes(kind: str, size: int, kernel: int, stride: int) -> None:
    build = {
        "ach": lambda: AdaptiveCrossHadamard(5, 3, selection="sample"),
        "ghost": lambda: GhostExpansion(5, 2.0),
    }
    expansion = build.get(kind, lambda: InvertedExpansion(5, 2.0))()
    block = AdaptiveBottleneck(expansion, 5, expansion.out_channels, 9, kernel, stride)
    expected = (size + 2 * ((kernel - 1) // 2) - kernel) // stride + 1
    assert block(torch.randn(2, 5, size, size)).shape == (2, 9, expected, expected)


@pytest.mark.parametrize(
    ("stride", "out_channels", "residual"),
    [(1, 5, True), (1, 6, False), (2, 5, False), (2, 6, False)],
    ids=["same", "wider", "strided", "strided-wider"],
)
def test_residual_only_where_shapes_stay(stride: int, out_channels: int, residual: bool) -> None:
    block = AdaptiveBottleneck(nn.Identity(), 5, 5, out_channels, 3, stride).eval()
    # A projection of zeros leaves the residual alone.
    nn.init.zeros_(block.project[0].weight)
    x = torch.randn(2, 5, 4, 4)
    y = block(x)
    assert torch.equal(y, x if residual else torch.zeros_like(y))


def test_bottleneck_equals_its_definition() -> None:
    block = randomise(AdaptiveBottleneck(nn.Identity(), 3, 3, 3, 3)).double().eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    w = {name: tensor.numpy() for name, tensor in block.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, var, weight, bias = (
            w[f"{name}.1.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    padded, y = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1))), np.zeros(x.shape)
    for row in range(3):
        for col in range(3):
            taps = w["depthwise.0.weight"][:, 0, row, col][:, None, None]
            y += taps * padded[:, :, row : row + 4, col : col + 4]
    y = norm(y, "depthwise")
    y = y * np.clip(y + 3, 0, 6) / 6  # Hardswish
    y = norm(np.einsum("oi,bihw->bohw", w["project.0.weight"][:, :, 0, 0], y), "project")
    assert_close(block(x), x.numpy() + y)


def test_bottleneck_convolutions_have_no_bias() -> None:
    block = AdaptiveBottleneck(nn.Identity(), 5, 5, 6, 3)
    convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert [m.bias for m in convolutions] == [None, None]
    assert convolutions[0].groups == 5


def test_drop_path_drops_the_branch_of_whole_samples() -> None:
    block = AdaptiveBottleneck(nn.Identity(), 5, 5, 5, 3, drop_path=0.5)
    x = torch.randn(64, 5, 2, 2)
    untouched = (block(x) == x).flatten(1).all(1)
    assert 0 < int(untouched.sum()) < 64
    block.eval()
    assert not (block(x) == x).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ("kernel", "stride", "message"),
    [(0, 1, "must be positive, got 0 and 1"), (3, 0, "must be positive, got 3 and 0"), (4, 1, "odd kernel")],
)
def test_bottleneck_rejects(kernel: int, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveBottleneck(nn.Identity(), 5, 5, 5, kernel, stride)
