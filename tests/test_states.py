"""States of older versions load under the names of today, and fixed selections where live ones are.

``states/`` holds what version 1 of the states' names wrote: a small network, the same with fixed selections, the
logits of both, and an MLP with its output.
"""

import os
import shutil
import signal
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny import TINY, tiny_config
from torch import nn

from hadaptive.cards import open_weights
from hadaptive.errors import TrainingInterruptedError
from hadaptive.files import read_csv
from hadaptive.models import create_model
from hadaptive.nn import CrossHadamardMlp, FixedSelection, expansions
from hadaptive.runs import RunFolder
from hadaptive.train import Trainer, resume, train

STATES = Path(__file__).parent / "states"


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(STATES / "expected.safetensors")


def images() -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).sin()


def in_version_1(name: str) -> str:
    """What version 1 called an entry of a network's state."""
    return name.replace("expansion.cross_hadamard", "expansion.expansion")


@pytest.mark.parametrize("kind", ["live", "frozen"])
def test_an_exported_file_of_version_1_computes_what_it_did(kind: str, expected) -> None:
    network, card = open_weights(STATES / f"{kind}.safetensors")
    torch.testing.assert_close(network(images()), expected[kind], rtol=1e-4, atol=1e-5)
    old = load_file(STATES / f"{kind}.safetensors")
    assert sorted(map(in_version_1, network.state_dict())) == sorted(old)
    assert not [name for name in network.state_dict() if "expansion.expansion" in name]
    fresh, before = card.create_model().eval(), set(old)
    fresh.load_state_dict(old, strict=True)
    assert set(old) == before  # the caller's dict is the caller's
    torch.testing.assert_close(fresh(images()), network(images()), rtol=0, atol=0)


def test_timm_loads_a_file_of_version_1(expected) -> None:
    path = STATES / "live.safetensors"
    spec = open_weights(path)[1].spec
    network = timm.create_model("hadaptive_net_s", spec=spec, num_classes=10, checkpoint_path=path).eval()
    torch.testing.assert_close(network(images()), expected["live"], rtol=1e-4, atol=1e-5)


def test_an_mlp_of_version_1_computes_what_it_did(expected) -> None:
    mlp = CrossHadamardMlp(6, 12, 5, norm_layer=nn.LayerNorm, selection="sample").eval()
    mlp.load_state_dict({n.removeprefix("mlp."): t for n, t in expected.items() if n.startswith("mlp.")})
    x = torch.linspace(-1, 1, 2 * 7 * 6).reshape(2, 7, 6)
    torch.testing.assert_close(mlp(x), expected["mlp"], rtol=1e-4, atol=1e-5)


def test_a_state_says_which_names_it_has(tmp_path: Path) -> None:
    network = create_model(TINY, num_classes=3)
    assert network.state_dict()._metadata["stages.1.1.expansion"] == {"version": 2}
    state = OrderedDict((in_version_1(name), value) for name, value in network.state_dict().items())
    state._metadata = {"stages.1.1.expansion": {"version": 1}, "stages.2.1.expansion": {"version": 1}}
    torch.save(state, tmp_path / "old.pt")
    other = create_model(TINY, num_classes=3)
    other.load_state_dict(torch.load(tmp_path / "old.pt", weights_only=True))
    for name, value in network.state_dict().items():
        assert value.equal(other.state_dict()[name]), name
    state._metadata["stages.1.1.expansion"]["version"] = 2  # which had no such names
    with pytest.raises(RuntimeError, match=r"Missing key.*stages\.1\.1\.expansion\.cross_hadamard"):
        other.load_state_dict(state)


def test_a_checkpoint_of_version_1_is_resumed_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count = Trainer.micro_step, [0]

    def interrupted(self, *args):
        count[0] += 1
        if count[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "micro_step", interrupted)
        config = tiny_config(tmp_path, "new", ema=0.9, train_size=64, batch_size=16)
        with pytest.raises(TrainingInterruptedError):
            train(config, quiet=True)
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    state = RunFolder(tmp_path / "old").load_checkpoint()
    for part in ("model", "ema", "selection"):
        state[part] = {in_version_1(name): value for name, value in state[part].items()}
    assert any("expansion.expansion" in name for name in state["selection"])
    RunFolder(tmp_path / "old").save_checkpoint(state)
    for name in ("new", "old"):
        resume(tmp_path / name, quiet=True)
    new, old = (load_file(tmp_path / name / "last.safetensors") for name in ("new", "old"))
    assert [name for name in new if not new[name].equal(old[name])] == []
    assert read_csv(tmp_path / "new/selection.csv") == read_csv(tmp_path / "old/selection.csv")


# ---------------------------------------------------------------- fixed and live


def frozen_network() -> nn.Module:
    network = create_model(TINY, num_classes=3)
    for layer in expansions(network).values():
        layer.freeze(torch.arange(layer.k).flip(0))
    return network


def test_a_fixed_state_fixes_a_live_network() -> None:
    fixed, live = frozen_network(), create_model(TINY, num_classes=3)
    live.load_state_dict(fixed.state_dict())
    assert all(isinstance(layer.select, FixedSelection) for layer in expansions(live).values())
    torch.testing.assert_close(live.eval()(images()), fixed.eval()(images()), rtol=0, atol=0)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_a_live_state_does_not_say_what_a_fixed_network_selects(strict: bool) -> None:
    fixed, live = frozen_network(), create_model(TINY, num_classes=3)
    with pytest.raises(RuntimeError) as raised:
        fixed.load_state_dict(live.state_dict(), strict=strict)
    (said,) = str(raised.value).splitlines()[1:]  # one sentence for all layers
    assert "load it into a network that is not frozen, and freeze that" in said


def test_a_fixed_state_that_does_not_fit_is_named() -> None:
    state, live = frozen_network().state_dict(), create_model(TINY, num_classes=3)
    name = "stages.1.1.expansion.cross_hadamard.select.index"
    state[name] = torch.tensor([0, 1, 2, 99])
    with pytest.raises(RuntimeError, match=rf"{name}: expected 4 different channels of 12"):
        live.load_state_dict(state)


@pytest.mark.parametrize("norm", ["identity", "dysoft"])
def test_fixed_selections_may_be_fixed_anew(norm: str) -> None:
    (layer,) = expansions(nn.Sequential(CrossHadamardMlp(6, k=3, norm=norm, selection="sample"))).values()
    for index in (torch.tensor([0, 1, 2]), torch.tensor([5, 4, 3], dtype=torch.int32)):
        layer.freeze(index)
        assert layer.select.index.tolist() == index.tolist()
        assert layer(torch.randn(2, 6, 3)).shape == (2, 9, 3)
    for wrong in (torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0], [1], [2]])):
        with pytest.raises(ValueError, match="expected 3 different channels of 6"):
            layer.freeze(wrong)
