"""Whatever replaces a layer, hooks it or rewrites its weights is followed, though a kernel could do without."""

import copy
from collections.abc import Callable

import pytest
import torch
from networks import randomise
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from hadaptive import ops
from hadaptive.nn import AdaptiveCrossHadamard, CrossHadamardExpansion, DyT, Layers, SelectionRecorder


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def pruned_and_trained(layer: CrossHadamardExpansion) -> None:
    prune.l1_unstructured(layer.norm, "weight", amount=0.5)
    with torch.no_grad():
        layer.norm.weight_orig.mul_(3)  # pyright: ignore[reportCallIssue]


CHANGES: dict[str, Callable[[CrossHadamardExpansion], object]] = {
    "another norm": lambda layer: setattr(layer, "norm", DyT(10)),
    "none": lambda layer: setattr(layer, "norm", nn.Identity()),
    "hook": lambda layer: layer.norm.register_forward_hook(lambda module, args, y: 2 * y),
    "pruned": pruned_and_trained,
    "parametrised": lambda layer: parametrize.register_parametrization(layer.norm, "weight", Doubled()),
    "a forward of its own": lambda layer: setattr(layer.norm, "forward", lambda x: 2 * x),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_norm_of_the_products_is_the_one_that_is_there(change: Callable) -> None:
    layer = randomise(CrossHadamardExpansion(8, 5, selection="sample")).eval()
    change(layer)
    x = torch.randn(2, 8, 3, 3)
    index, gate = layer.select(layer.score(x))
    expected = layer.norm(ops.selected_products(x, index, gate))
    torch.testing.assert_close(layer(x)[:, 8:], expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_scripted_layer_has_the_norm_that_was_put_there() -> None:
    layer = CrossHadamardExpansion(8, 5, selection="sample").eval()
    layer.norm = DyT(10)
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))


def test_a_pruned_score_is_followed_by_a_compiler() -> None:
    layer = randomise(CrossHadamardExpansion(8, 3, selection="sample")).eval()
    x = torch.randn(4, 8, 3, 3)
    prune.l1_unstructured(layer.score.conv, "weight", amount=0.5)
    with torch.no_grad():
        layer.score.conv.weight_orig.neg_()  # pyright: ignore[reportCallIssue]
        expected = layer(x)
        torch.testing.assert_close(torch.compile(layer, backend="eager")(x), expected)


def test_a_map_without_a_batch_is_convolved_as_by_pytorch() -> None:
    conv = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    x = torch.randn(4, 6, 6)
    torch.testing.assert_close(Layers(conv)(x), conv(x))


def test_copies_of_a_recorded_network_are_not_counted() -> None:
    model = AdaptiveCrossHadamard(8, 3, selection="sample")
    with SelectionRecorder(model) as recorder:
        copy.deepcopy(model)(torch.randn(4, 8, 3, 3))
        model(torch.randn(2, 8, 3, 3))
    assert [report.samples for report in recorder.reports()] == [2]
