"""ACH without one of its components: without its mix, without the convolution that scores."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import same_under_transforms
from test_export import card_of, deployed
from tiny import tiny_config, tiny_spec
from torch import nn

from hadaptive.errors import UserError
from hadaptive.export.freeze import calibrate, freeze
from hadaptive.info import inspect_network
from hadaptive.measure.deploy import fold
from hadaptive.measure.lowering import write
from hadaptive.measure.sessions import load
from hadaptive.models import ConvSpec, HadaptiveNet, NetSpec
from hadaptive.models.layer_spec import ach
from hadaptive.models.published import HADAPTIVE_NET_S
from hadaptive.models.variants import changed
from hadaptive.nn import AdaptiveCrossHadamard, CrossHadamardMlp, adapt_temperatures, expansions, top_k_channels
from hadaptive.nn.checks import SELECTIONS
from hadaptive.train import train

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
WITHOUT: dict[str, dict[str, Any]] = {
    "mix": {"mix": False},
    "score": {"score_kernel": 0},
    "both": {"mix": False, "score_kernel": 0},
}


def network(**options: Any) -> NetSpec:
    stem = (ConvSpec(12, 3, 1), (ConvSpec(12, 2, 2),))
    return NetSpec("some", *stem, ((ach(4, 3, 12), ach(3, 3, 12, pairing="blocks")),), 16, 16, **options)


@pytest.mark.parametrize("what", WITHOUT)
def test_what_is_left_is_what_the_method_has_without_it(what: str) -> None:
    torch.manual_seed(0)
    module = AdaptiveCrossHadamard(9, 4, selection="sample", **WITHOUT[what]).eval()
    nn.init.uniform_(module.bn.weight, 0.5, 2)
    x = torch.randn(3, 9, 5, 4)
    mixed = module.bn(module.mix(x))
    if what != "score":
        torch.testing.assert_close(mixed, x / (1 + 1e-5) ** 0.5 * module.bn.weight.reshape(-1, 1, 1))
    scores = mixed.mean((2, 3))
    if what == "mix":
        scores = module.cross_hadamard.score.conv(scores.unsqueeze(1)).squeeze(1)  # pyright: ignore
    z = torch.stack([mixed[n, i] for n, i in enumerate(top_k_channels(scores, 4))])
    first, second = torch.triu_indices(4, 4, 1)
    q = module.cross_hadamard.norm(z[:, first] * z[:, second])
    torch.testing.assert_close(module(x), torch.cat([mixed, q], 1))


@pytest.mark.parametrize("what", WITHOUT)
def test_it_trains_and_the_temperature_stays_where_nothing_scores(what: str) -> None:
    torch.manual_seed(0)
    net = HadaptiveNet(network(**WITHOUT[what]), 3)
    before = float(next(iter(expansions(net).values())).select.temperature)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    adapt_temperatures(optimiser, net)
    for _ in range(3):
        optimiser.zero_grad()
        net(torch.randn(4, 3, 16, 16)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimiser.step()
    assert (float(next(iter(expansions(net).values())).select.temperature) == before) is (what != "mix")


@pytest.mark.parametrize("what", WITHOUT)
def test_under_every_transform(what: str) -> None:
    torch.manual_seed(0)
    module = AdaptiveCrossHadamard(8, 4, selection="sample", **WITHOUT[what]).eval()
    x = torch.randn(3, 8, 5, 5)
    same_under_transforms(module, x)
    half = AdaptiveCrossHadamard(8, 4, dtype=torch.bfloat16, selection="sample", **WITHOUT[what])
    assert half(x.bfloat16()).dtype == torch.bfloat16
    tokens = CrossHadamardMlp(8, k=4, score_kernel=0, selection="sample")
    assert tokens(torch.randn(2, 5, 8)).shape == (2, 5, 8)


@pytest.mark.parametrize(
    ("selection", "what"),
    [(s, w) for s, w in itertools.product(SELECTIONS, WITHOUT) if w == "mix" or s in ("sample", "grouped")],
)
def test_what_is_deployed_computes_the_same(selection: str, what: str) -> None:
    torch.manual_seed(0)
    net = HadaptiveNet(network(selection=selection, **WITHOUT[what]), 4).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(fold(net)(x), net(x), rtol=1e-4, atol=1e-5)
    frozen = freeze(net, calibrate(net, [x]))
    torch.testing.assert_close(fold(frozen)(x), frozen(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", WITHOUT)
def test_it_is_exported(what: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, path = HadaptiveNet(network(**WITHOUT[what]), 4).eval(), tmp_path / "net.onnx"
    write(deployed(net), path, "onnx", card_of(net), {})
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        np.testing.assert_allclose(load(path)[0](images.numpy()), net(images).numpy(), rtol=1e-3, atol=1e-4)


def test_a_spec_carries_it_and_older_ones_mean_all() -> None:
    specs = [network(), *(network(**options) for options in WITHOUT.values())]
    assert len({spec.fingerprint for spec in specs}) == len(specs)
    for spec in specs:
        assert NetSpec.from_dict(spec.to_dict()) == spec
    assert not {"mix", "score_kernel"} & set(HADAPTIVE_NET_S.to_dict())


@pytest.mark.parametrize("name", ["no-mix", "no-score"])
def test_a_run_goes_on_with_it(name: str, tmp_path: Path) -> None:
    summary = train(tiny_config(tmp_path, epochs=1, model=f"{tiny_spec(tmp_path)}:{name}"))
    assert summary["test"]["images"] > 0


@pytest.mark.parametrize("name", ["none:no-mix", "none:no-score", "blocks4:no-score", "blocks4:static"])
def test_a_variant_that_would_change_nothing_is_refused(name: str) -> None:
    """It was another network by its fingerprint, and trained as one."""
    first, second = name.split(":")
    spec = changed(HADAPTIVE_NET_S, first)
    with pytest.raises(UserError, match="would change nothing of hadaptive_net_s"):
        changed(spec, second)


def test_info_says_what_is_missing() -> None:
    net = HadaptiveNet(network(mix=False, score_kernel=0), 3)
    kinds = [layer.kind for layer in inspect_network(net, (3, 16, 16)).layers]
    assert "ACH k=4 without mix by pooled channels, DySoft, depthwise 3x3" in kinds
    assert "ACH k=12 in blocks of 4 without mix, DySoft, depthwise 3x3" in kinds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_kernel": -1}, "score_kernel must be odd and positive, or 0 for none, got -1"),
        ({"score_kernel": 2}, "score_kernel must be odd and positive, or 0 for none, got 2"),
        ({"score_kernel": True}, "score_kernel must be odd and positive, or 0 for none, got True"),
        ({"score_kernel": 3, "selection": "static"}, "score_kernel has no effect on selection='static'"),
        ({"mix": 1}, "mix must be true or false, got 1"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        network(**options)
    if "mix" not in options:
        with pytest.raises(ValueError, match=message):
            AdaptiveCrossHadamard(8, 3, **{"selection": "sample", **options})
