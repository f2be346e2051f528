"""Which channel pairs a network uses, on networks of which that is known."""

import pytest
import torch
from networks import randomise, seeded
from tiny import TINY
from torch import Tensor, nn

from hadaptive.models import HadaptiveNet
from hadaptive.nn import CrossHadamardExpansion, ProductBlock, SelectionRecorder
from hadaptive.nn.pair_stats import PairReport, record_pairs
from hadaptive.nn.product_stats import ProductRecorder


class Reads(nn.Module):
    """A network whose first logit is the sum of some channels behind its products, and whose second is 0."""

    def __init__(self, products: nn.Module, weights: dict[int, float], channels: int) -> None:
        super().__init__()
        self.products = products
        weight = torch.zeros(channels)
        for channel, value in weights.items():
            weight[channel] = value
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        logit = self.products(x).sum((2, 3)) @ self.weight
        return torch.stack([logit, torch.zeros_like(logit)], dim=1)


def images(channels: int, number: int = 6) -> Tensor:
    return torch.randn(number, channels, 3, 3, generator=seeded(3))


def one(network: nn.Module, batches: list[Tensor]) -> PairReport:
    (report,) = record_pairs(network.eval(), batches)
    return report


@pytest.mark.parametrize("fused", [True, False], ids=["dysoft", "identity"])
def test_the_pairs_that_a_logit_is_made_of_have_all_the_effect(fused: bool) -> None:
    layer = CrossHadamardExpansion(5, 4, "dysoft" if fused else "identity")
    x = images(5)
    # Of k = 4: (0,1) (0,2) (0,3) (1,2) (1,3) (2,3), behind the 5 channels; and the channel 4 itself.
    network = Reads(layer, {5 + 1: 2.0, 5 + 4: -1.0, 4: 0.5}, layer.out_channels)
    report = one(network, [x[:4], x[4:]])
    values = layer(x).detach().sum((2, 3)).abs()
    assert report.samples == 6
    assert report.fixed
    assert report.frequency.tolist() == [1, 1, 1, 1, 0]
    assert report.effect[0, 2] == pytest.approx(float(2 * values[:, 6].mean()), rel=1e-5)
    assert report.effect[1, 3] == pytest.approx(float(values[:, 9].mean()), rel=1e-5)
    assert int((report.effect > 0).sum()) == 2
    assert set(report.strongest(2)) == {(0, 2), (1, 3)}
    products, own = float(report.effect.sum()), float(0.5 * values[:, 4].mean())
    assert report.share == pytest.approx(products / (products + own), rel=1e-5)
    assert report.pairs.triu(1)[:4, :4].sum() == 6
    assert (report.weight[0, 2] == 1) == fused
    assert report.half() == 1


def test_selections_of_each_sample_are_counted_as_the_recorder_counts_them() -> None:
    network = randomise(HadaptiveNet(TINY, 4)).eval()
    x = torch.randn(12, 3, 16, 16, generator=seeded(1))
    with SelectionRecorder(network) as recorder, torch.no_grad():
        network(x)
    reports = record_pairs(network, [x[:5], x[5:]])
    assert [report.layer for report in reports] == [report.layer for report in recorder.reports()]
    for report, known in zip(reports, recorder.reports(), strict=True):
        torch.testing.assert_close(report.frequency.float(), known.frequency)
        k = network.get_submodule(report.layer).k
        assert report.pairs.sum() == pytest.approx(k * (k - 1) / 2)
        assert report.pairs.tril().sum() == 0
        assert 0 < report.share < 1
        # A pair is met no more often than either of its channels.
        bound = torch.minimum(report.frequency[:, None], report.frequency[None])
        assert bool((report.pairs <= bound + 1e-9).all())


def test_blocks_of_products_have_pairs_too() -> None:
    block = ProductBlock(4, 2, 3, 3, after=False)
    network = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    report = one(network, [images(4)])
    assert report.layer == "0.products"
    assert [tuple(pair) for pair in report.pairs.nonzero().tolist()] == [(0, 3), (1, 4), (2, 5)]
    assert report.share != report.share or report.share == 1


def test_the_network_is_as_it_was_and_others_have_nothing_to_tell() -> None:
    network = HadaptiveNet(TINY, 4).eval()
    network.stem.requires_grad_(False)
    before = [parameter.requires_grad for parameter in network.parameters()]
    x = torch.randn(2, 3, 16, 16)
    record_pairs(network, [x])
    assert [parameter.requires_grad for parameter in network.parameters()] == before
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert record_pairs(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), [torch.randn(1, 2, 2, 2)]) == []


def test_products_are_recorded_in_eval_mode_where_that_is_asked_for() -> None:
    layer = CrossHadamardExpansion(4, 3, "identity").eval()
    x = images(4)
    with ProductRecorder(layer, training=False) as recorder, torch.no_grad():
        layer(x)
    (report,) = recorder.reports()
    q = torch.stack([x[:, i] * x[:, j] for i, j in ((0, 1), (0, 2), (1, 2))]).double()
    assert report.scale == pytest.approx(float(q.square().mean().sqrt()), rel=1e-6)
    with ProductRecorder(layer) as recorder, torch.no_grad():
        layer(x)
    assert recorder.reports() == []
