"""What is recorded of products and gradients, and the benchmark of it."""

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from networks import seeded
from tiny import TINY, tiny_spec

from hadaptive.bench.config import Norm, StabilityConfig
from hadaptive.bench.stability import bench_stability
from hadaptive.cli import main
from hadaptive.engine.stopping import StopRequest
from hadaptive.errors import UserError
from hadaptive.files import read_csv
from hadaptive.models import HadaptiveNet
from hadaptive.nn import NORMS, CrossHadamardExpansion, ProductRecorder
from hadaptive.runs import RunFolder
from hadaptive.train import Trainer, TrainingInterruptedError
from hadaptive.train.launch import resume


def test_figures_are_those_of_the_products() -> None:
    torch.manual_seed(0)
    layer = CrossHadamardExpansion(6, 4, "dyt", noise=0.0, selection="sample")
    x = torch.randn(5, 6, 7, 7, generator=seeded())
    with ProductRecorder(layer) as recorder:
        y = layer(x)
        grads = []
        y.register_hook(grads.append)
        y.square().sum().backward()
        layer.eval()(x)  # is no training
    (report,) = recorder.reports()
    index = layer.select(layer.score(x))[0]
    first, second = torch.triu_indices(4, 4, 1)
    q = torch.stack([row[i][first] * row[i][second] for row, i in zip(x, index, strict=True)]).double().flatten()
    assert report.scale == pytest.approx(float(q.square().mean().sqrt()), rel=1e-5)
    centred = q - q.mean()
    kurtosis = float(centred.pow(4).mean() / centred.square().mean().square() - 3)
    assert report.kurtosis == pytest.approx(kurtosis, rel=1e-4)
    assert report.kurtosis > 1  # products of normal variables have heavy tails
    assert report.largest == pytest.approx(float(q.abs().max()) / report.scale, rel=1e-5)
    d = y[:, 6:].detach().double()
    assert report.normed_scale == pytest.approx(float(d.square().mean().sqrt()), rel=1e-5)
    assert report.normed_largest == pytest.approx(float(d.abs().max()), rel=1e-5)
    assert report.gradient == pytest.approx(float(grads[0][:, 6:].double().square().mean().sqrt()), rel=1e-5)
    assert report.finite


def test_recording_changes_nothing_that_is_learned() -> None:
    found = []
    for recorded in (False, True):
        torch.manual_seed(0)
        net = HadaptiveNet(TINY, 3)
        x = torch.randn(4, 3, 16, 16)
        recorder = ProductRecorder(net, every=2) if recorded else None
        torch.manual_seed(1)
        net(x).square().sum().backward()
        if recorder is not None:
            assert [report.layer for report in recorder.reports()] == list(recorder.layers)
            recorder.reset()
            assert recorder.reports() == []
            recorder.close()
        found.append([p.grad for p in net.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_is_said() -> None:
    layer = CrossHadamardExpansion(4, 3, "identity", selection="sample")
    with ProductRecorder(layer) as recorder:
        layer(torch.full((1, 4, 2, 2), math.inf))
    assert not recorder.reports()[0].finite


def test_every_norm_can_be_asked_for() -> None:
    assert set(get_args(Norm)) == set(NORMS)


def test_a_training_that_was_cut_off_goes_on_with_the_rows_it_had(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused for its folder was there; rows of an epoch that is run again are there once."""
    norms: tuple[Norm, ...] = ("dysoft",)
    config = StabilityConfig(tiny_spec(tmp_path), norms, tiny_recipe, (0,), 2, tmp_path, tmp_path / "runs")
    whole = Trainer.checkpoint

    def cut(self: Trainer, folder: RunFolder) -> None:
        if self.epoch == 2:  # its rows are written, and it will run again
            raise KeyboardInterrupt
        whole(self, folder)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "checkpoint", cut)
        with pytest.raises(KeyboardInterrupt):
            bench_stability(config)
    rows = bench_stability(config)
    assert sorted(row["epoch"] for row in rows) == ["0", "0", "1", "1"]
    assert all(row["device"] and row["commit"] for row in rows)


def test_a_training_that_another_command_went_on_with_is_refused(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C says how to resume, and that records no products: the rest was taken for the whole."""
    norms: tuple[Norm, ...] = ("dysoft",)
    config = StabilityConfig(tiny_spec(tmp_path), norms, tiny_recipe, (0,), 2, tmp_path, tmp_path / "runs")
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "agreed", lambda self: True)
        with pytest.raises(TrainingInterruptedError):
            bench_stability(config)
    (run,) = (tmp_path / "runs").iterdir()
    resume(run)
    with pytest.raises(UserError, match="lacks the products of some epochs"):
        bench_stability(config)


def test_a_record_goes_on_in_the_middle_of_an_epoch() -> None:
    layer, x = (
        CrossHadamardExpansion(4, 3, noise=0.0, selection="sample"),
        torch.randn(2, 4, 3, 3, generator=seeded()),
    )
    whole, first = ProductRecorder(layer, every=2), ProductRecorder(layer, every=2)
    for _ in range(3):
        layer(x).sum().backward()
    state = first.state_dict()
    first.close()
    second = ProductRecorder(layer, every=2)
    second.load_state_dict(state)
    for factor in (2, 3):
        layer(x * factor).sum().backward()
    assert second.reports() == whole.reports()


@pytest.mark.slow
def test_norms_here_and_in_another_process_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["bench", "stability", "--model", tiny_spec(tmp_path), "--recipe", "quick", "--epochs", "1"]
    typed += ["--results", "rows", "--norms", "dyt"]
    assert main([*typed, "--jobs", "1"]) == 0
    assert main([*typed, "dysoft", "--jobs", "2"]) == 0  # what is left of several: one, in another process
    rows = read_csv(Path("rows/stability-quick-1epochs.csv"))
    layers = {row["layer"] for row in rows}
    assert {(row["norm"], row["layer"]) for row in rows} == {
        (n, layer) for n in ("dysoft", "dyt") for layer in layers
    }


@pytest.mark.slow
@pytest.mark.rendered
@pytest.mark.parametrize("norms", NORMS)
def test_rows_and_a_picture(
    norms: str, tiny_recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", tiny_spec(tmp_path), "--recipe", tiny_recipe, "--norms", norms, "--epochs", "2"]
    flags += ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    for _ in range(2):  # the second time everything is there
        assert main(["bench", "stability", *flags]) == 0
    rows = read_csv(tmp_path / "results/stability-tiny-2epochs.csv")
    assert len(rows) == 2 * 2  # epochs and layers
    assert {row["norm"] for row in rows} == {norms}
    assert all(float(row["scale"]) > 0 and float(row["gradient"]) > 0 for row in rows)
    assert (tmp_path / "results/stability-tiny-2epochs.png").stat().st_size > 1000
    assert norms in capsys.readouterr().out
