"""int8: what is rounded, what it costs, and which layers stay in float."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_export_passes import fixed, network
from tiny import tiny_config

from hadaptive.cards import ModelCard
from hadaptive.cli import main
from hadaptive.data import Preprocessing
from hadaptive.export import int8
from hadaptive.export.config import ExportConfig
from hadaptive.export.sensitivity import fake_quantise, layers, rounded_weight, sensitivity
from hadaptive.files import read_csv
from hadaptive.measure.deploy import fold
from hadaptive.measure.lowering import write
from hadaptive.measure.passes import prepare
from hadaptive.measure.sessions import load
from hadaptive.train import train

# Libraries' own, while they export and quantise.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def test_activations_have_256_levels_and_zero_is_one() -> None:
    x = torch.cat([torch.zeros(1), torch.linspace(-1, 3, 4001)])
    y = fake_quantise(x, -1.0, 3.0)
    assert len(y.unique()) == 256
    assert y[0] == 0
    assert (x - y).abs().max() <= 4 / 255  # half a step, and at an end what rounding the zero point takes
    assert fake_quantise(torch.tensor([5.0]), 1.0, 2.0).item() == pytest.approx(2.0)
    assert fake_quantise(torch.zeros(3), 0.0, 0.0).tolist() == [0, 0, 0]


def test_weights_have_a_scale_for_each_output() -> None:
    weight = torch.randn(5, 3, 3, 3) * torch.tensor([1e-3, 1.0, 10.0, 1e3, 0.0]).reshape(-1, 1, 1, 1)
    error = (rounded_weight(weight) - weight).abs().amax((1, 2, 3))
    assert bool((error <= weight.abs().amax((1, 2, 3)) / 253).all())


def test_every_layer_is_quantised_alone_and_put_back() -> None:
    net = prepare(fixed(network()), 16)[0]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    images = list(torch.randn(20, 3, 16, 16).split(8))
    expected = net(images[0])
    targets = torch.cat([net(batch) for batch in images]).argmax(1)
    costs = sensitivity(net, images, images, targets)
    assert [cost.layer for cost in costs] == list(layers(net))
    weighted = [n for n, m in net.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert sum(len(parts) for parts in layers(net).values()) == len(weighted)
    assert all(0 < cost.noise < 0.5 and cost.low < cost.high for cost in costs)
    assert all(0 <= cost.lost <= 100 for cost in costs)  # the targets are what the network says
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert torch.equal(net(images[0]), expected)


def test_a_wild_range_costs_more() -> None:
    net = fold(fixed(network()))
    images = list(torch.randn(24, 3, 16, 16).split(8))
    wild = torch.randn(1, 3, 16, 16)
    wild[0, 0, 0, 0] = 1e3  # one bright pixel spoils the range of the input
    targets = net(torch.cat(images)).argmax(1)
    tame, spoiled = (sensitivity(net, [*images, *more], images, targets)[0] for more in ([], [wild]))
    assert tame.layer == spoiled.layer == "layers.0"
    assert spoiled.high == 1e3
    assert spoiled.noise > 20 * tame.noise


def card() -> ModelCard:
    return ModelCard("tiny", network().spec, list("abcd"), Preprocessing(16, mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_runtimes_quantise_all_but_what_is_kept(form: str, tmp_path: Path) -> None:
    model = fixed(network())
    net = prepare(model, 16)[0]
    images = np.random.default_rng(0).standard_normal((24, 3, 16, 16), np.float32)
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[form]
    plain, small, same = (tmp_path / f"{name}{suffix}" for name in ("plain", "small", "same"))
    write(net, plain, form, card(), {})
    int8.quantise(plain, small, form, images, keep=())
    int8.quantise(plain, same, form, images, keep=[*layers(net), "input"])
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    errors = {path.stem: np.abs(load(path)[0](images) - expected).max() for path in (plain, small, same)}
    scale = np.abs(expected).max()
    assert errors["plain"] < 1e-4 * scale
    assert 1e-3 * scale < errors["small"] < 0.3 * scale
    assert errors["same"] < 1e-4 * scale  # every layer stayed in float: nothing is rounded
    assert load(small)[1] == card()
    if form == "onnx":
        products = [name for name in layers(net) if name.endswith(".derived")]
        int8.quantise(plain, tmp_path / "some.onnx", form, images, keep=products)
        graph = onnx.load(tmp_path / "some.onnx").graph
        dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        left = [node for node in graph.node if node.name.endswith(".left")]
        assert left
        assert not any(set(node.input) & dequantised for node in left)


def test_more_stays_in_float_until_little_is_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried: list[list[str]] = []
    monkeypatch.setattr(int8, "quantise", lambda s, t, f, c, keep: tried.append(list(keep)))
    monkeypatch.setattr(int8, "load", lambda path: (None, None))

    def search(needed: int) -> tuple[list[str], float]:
        tried.clear()
        return int8.quantise_within(
            tmp_path / "a",
            tmp_path / "b",
            "onnx",
            np.zeros(0),
            order=list("abcdef"),
            keep=["c"],
            lost=lambda run: 0.1 if len(tried[-1]) >= needed else 2.0,
            max_loss=0.5,
        )

    assert search(1) == (["c"], 0.1)
    assert search(3) == (["c", "a", "b", "d"], 0.1)
    kept, lost = search(99)
    assert sorted(kept) == list("abcdef")
    assert lost == 2.0


@pytest.mark.slow
def test_a_run_is_quantised_with_a_report(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, epochs=1), quiet=True)
    run = str(tmp_path / "run")
    command = ["export", run, "--int8", "--images", "60", "--calibration", "32", "--max-loss", "100"]
    command += ["--output", f"{run}/float32.onnx"]  # what a float32 file in between could be called
    assert main(command) == 0
    proof = json.loads((tmp_path / "run/float32.onnx.proof.json").read_text())
    assert proof["holds"] is True
    assert proof["tolerance"] is None
    rows = read_csv(tmp_path / "run/float32.onnx.layers.csv")
    assert len(rows) > 10
    products = {row["layer"] for row in rows if row["layer"].endswith(".derived") and row["low"] != row["high"]}
    selecting = {name for name in proof["int8"]["float"] if name.endswith(".derived")}
    assert len(selecting) == 2  # dynamic selections stay exact
    assert selecting <= products
    props = {p.key: p.value for p in onnx.load(tmp_path / "run/float32.onnx").metadata_props}
    assert json.loads(props["hadaptive"])["about"]["int8"] == proof["int8"]
    assert "| int8, lost |" in (tmp_path / "run/float32.onnx.proof.md").read_text()
    with pytest.raises(ValueError, match="int8 is for formats onnx and openvino"):
        ExportConfig(run, int8=True, format="torch")
