"""The accuracy comparison: a row per run, none twice, none lost."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import registered
import torch
from tiny import TINY, tiny_config, tiny_spec
from torch import nn

from hadaptive.bench import accuracy
from hadaptive.bench.accuracy import bench_accuracy, name_of, print_accuracy
from hadaptive.bench.config import AccuracyConfig
from hadaptive.bench.floor import FLOORS, floor
from hadaptive.cli import main
from hadaptive.data.generated import CELL, SIDE, cooccurrences, patterns
from hadaptive.engine.finite import NonFiniteLossError
from hadaptive.errors import UserError
from hadaptive.files import read_csv
from hadaptive.jobs import run
from hadaptive.models import HadaptiveNet, NetSpec, meant
from hadaptive.models.layer_spec import ach, ghost
from hadaptive.models.published import HADAPTIVE_NET_S
from hadaptive.models.variants import GROUPS, VARIANTS, changed
from hadaptive.nn import AdaptiveBottleneck, expansions
from hadaptive.runs import RunFolder
from hadaptive.train import TrainConfig, Trainer, TrainingInterruptedError, train_or_resume
from hadaptive.train.launch import read_config


@pytest.fixture
def config(tiny_recipe: str, tmp_path: Path) -> AccuracyConfig:
    models = (tiny_spec(tmp_path), "mobilenetv3_small_050")
    return AccuracyConfig(tiny_recipe, models, (0, 1), tmp_path / "results" / "rows.csv", tmp_path / "runs")


def test_a_row_per_run_and_none_twice(
    config: AccuracyConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = [0]
    evaluate = Trainer._end_epoch

    def stop_in_the_third_run(self, run, stop) -> None:
        count[0] += 1
        evaluate(self, run, stop)
        if count[0] == 3:
            raise TrainingInterruptedError(str(run.path))

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_end_epoch", stop_in_the_third_run)
        with pytest.raises(TrainingInterruptedError):
            bench_accuracy(config)
    assert config.results is not None
    first = read_csv(config.results)
    assert [row["model"] for row in first[:2]] == list(FLOORS)
    assert len(first) == 4
    rows = bench_accuracy(config)
    assert rows[:4] == first
    trained = [(name_of(m), s) for s in "01" for m in config.models]
    assert [(row["model"], row["seed"]) for row in rows] == [*((name, "0") for name in FLOORS), *trained]
    assert len({row["test_images"] for row in rows}) == 1
    assert all(0 <= float(row["test_accuracy"]) <= 1 and row["commit"] and row["torch"] for row in rows)

    monkeypatch.setattr(accuracy, "train_or_resume", None)  # nothing is left to train
    assert bench_accuracy(config) == rows
    capsys.readouterr()
    print_accuracy(rows)
    assert "mobilenetv3_small_050" in capsys.readouterr().out


def test_two_files_of_one_name_are_two_networks(config: AccuracyConfig, tmp_path: Path) -> None:
    """Both were recorded as one, and the second was never trained."""
    files = []
    for folder, channels in (("a", 24), ("b", 32)):
        (tmp_path / folder).mkdir()
        files.append(str(tmp_path / folder / "net.json"))
        dataclasses.replace(TINY, last_channels=channels).save(files[-1])
    rows = bench_accuracy(dataclasses.replace(config, models=tuple(files), seeds=(0,)))[len(FLOORS) :]
    assert len({row["model"] for row in rows}) == 2
    assert len({row["parameters"] for row in rows}) == 2
    assert all(row["model"].startswith("tiny@") for row in rows)


def test_each_network_gets_the_rate_that_is_best_on_validation(config: AccuracyConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, models=(f"{config.models[0]}:static",), seeds=(1, 2), rates=(1e-9, 3e-3))
    rows = bench_accuracy(config)[len(FLOORS) :]
    assert config.results is not None
    tried = read_csv(config.results.with_stem("rows-rates"))
    assert [(float(row["lr"]), row["seed"], row["epochs"]) for row in tried] == [
        (1e-9, "1", "1"),
        (3e-3, "1", "1"),
    ]
    best = max(tried, key=lambda row: (float(row["validation_accuracy"]), -float(row["lr"])))
    assert {float(row["lr"]) for row in rows} == {float(best["lr"])}
    assert all(row["model"].startswith("tiny:static@") for row in rows)
    assert bench_accuracy(config)[len(FLOORS) :] == rows


def test_the_floor_is_fitted_to_training_images_and_chance_where_pixels_tell_nothing(tmp_path: Path) -> None:
    found = floor(TrainConfig.from_recipe("cooccurrence", train_size=400))
    for summary in found.values():
        assert summary["train_images"] == 400
        assert summary["test"]["images"] == 4000
        assert summary["test"]["accuracy"] < 0.3  # eight classes
    digits = floor(TrainConfig.from_recipe("quick"))
    assert min(summary["test"]["accuracy"] for summary in digits.values()) > 0.9


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_another_network_of_the_same_width(name: str) -> None:
    spec = meant(f"hadaptive_net_s:{name}")
    assert NetSpec.from_dict(spec.to_dict()) == spec
    same = name == "norm-dysoft"
    assert (spec.fingerprint == HADAPTIVE_NET_S.fingerprint) is same
    ours, theirs = (HadaptiveNet(s, 10) for s in (HADAPTIVE_NET_S, spec))
    widths = [
        [b.project[0].in_channels for b in net.modules() if isinstance(b, AdaptiveBottleneck)]
        for net in (ours, theirs)
    ]
    if name not in ("none", "act", "inverted-macs", "k-half", "k-more", "blocks3", "blocks4", "add"):
        assert widths[0] == widths[1]
    assert len(list(expansions(theirs))) == (0 if name in GROUPS["controls"] else 6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hadaptive_net_s:statik", "there is no variant 'statik' of a network: did you mean static?"),
        ("mobilenetv3_small_100:static", "there is no model 'mobilenetv3_small_100:static'"),
        ("hadaptive_net_z:static", "there is no model 'hadaptive_net_z'"),
    ],
)
def test_a_variant_that_there_is_not_is_said_before_anything_runs(
    name: str, message: str, config: AccuracyConfig
) -> None:
    with pytest.raises(UserError, match=message):
        bench_accuracy(dataclasses.replace(config, models=(config.models[0], name)))
    assert config.results is not None
    assert not config.results.exists()


@pytest.mark.parametrize(("channels", "k"), [(23, 3), (37, 4), (38, 6), (39, 4), (96, 16)])
@pytest.mark.parametrize("pairing", ["triangle", "blocks"])
def test_controls_are_exactly_as_wide_whatever_the_channels(pairing: str, channels: int, k: int) -> None:
    """23 * (26 / 23) is less than 26."""
    block = ach(k, 3, channels, pairing=pairing)
    spec = dataclasses.replace(HADAPTIVE_NET_S, stages=((ghost(2, 3, channels), block, block),))
    for control in ("inverted", "linear", "inverted-macs"):
        nets = [HadaptiveNet(s, 10) for s in (spec, changed(spec, control))]
        widths, macs = zip(*(_costs(net) for net in nets), strict=True)
        if control == "inverted-macs":
            assert 0 <= macs[0] - macs[1] < 2 * (2 * channels + 9)
        else:
            assert widths[0] == widths[1]


def test_a_control_of_a_network_without_a_mix_does_not_pay_for_one() -> None:
    spec = dataclasses.replace(HADAPTIVE_NET_S, mix=False)
    assert _costs(HadaptiveNet(spec, 10))[1] - _costs(HadaptiveNet(changed(spec, "inverted-macs"), 10))[1] >= 0
    for control in ("none", "act", "linear"):
        with pytest.raises(UserError, match=f"has no mix, and {control} would give it one"):
            changed(spec, control)


def _costs(net: HadaptiveNet) -> tuple[list[int], int]:
    """The widths of its bottlenecks and the MACs of their convolutions for a position."""
    bottlenecks = [b for b in net.modules() if isinstance(b, AdaptiveBottleneck)]
    layers = [m for b in bottlenecks for m in b.modules() if isinstance(m, nn.Conv2d)]
    return [b.project[0].in_channels for b in bottlenecks], sum(m.weight.numel() for m in layers)


def test_a_variant_of_a_file_is_the_network_that_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name was taken for its identity, so that no such run could be gone on with."""
    monkeypatch.chdir(tmp_path)
    config = tiny_config(tmp_path, epochs=1, model=f"{Path(tiny_spec(tmp_path)).name}:static")
    first = train_or_resume(config)
    again = train_or_resume(config)
    assert again["validation_accuracy"] == first["validation_accuracy"]
    stored = read_config(RunFolder.open(tmp_path / "run")).network.model
    assert stored == f"{tmp_path / 'tiny.json'}:static"


def test_neither_pixels_nor_their_squares_tell_what_stands_together() -> None:
    from sklearn.linear_model import LogisticRegression

    parts = [cooccurrences(count, seed) for count, seed in ((3000, 0), (1500, 1))]
    for power in (1, 2):
        (x, y), (xt, yt) = (
            (
                (((images - 128.0) / 48) ** power).reshape(-1, 4, 8, 4, 8).sum((1, 3)).reshape(len(images), -1),
                targets,
            )
            for images, targets in parts
        )
        assert LogisticRegression(max_iter=300).fit(x, y).score(xt, yt) < 0.18  # of eight classes


def test_products_of_the_patterns_tell_what_stands_together() -> None:
    from sklearn.linear_model import LogisticRegression

    found = []
    for count, seed in ((3000, 0), (1500, 1)):
        images, targets = cooccurrences(count, seed)
        cells = (images - 128.0).reshape(-1, 4, 8, 4, 8)
        a, b = (np.einsum("nrycx,kyx->nrck", cells, kind) / 960 for kind in patterns())
        found += [np.einsum("nrci,nrcj->nij", a, b).reshape(count, -1), targets]
    x, y, xt, yt = found
    assert LogisticRegression(max_iter=300).fit(x, y).score(xt, yt) > 0.9


def test_the_network_for_them_looks_at_one_cell_at_a_time() -> None:
    """Its stem was padded, and looked at parts of two."""
    net = HadaptiveNet(NetSpec.load(Path(__file__).parents[1] / "benchmarks/networks/cell.json"), 8, in_chans=1)
    image = torch.zeros(1, 1, SIDE, SIDE, requires_grad=True)
    net.eval().stem(image)[..., 1, 2].sum().backward()
    assert image.grad is not None
    seen = image.grad[0, 0].nonzero()
    assert seen.amin(0).tolist() == [CELL, 2 * CELL]
    assert seen.amax(0).tolist() == [2 * CELL - 1, 3 * CELL - 1]


def test_a_rate_that_diverges_is_out(config: AccuracyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_as_it_may(settings: TrainConfig, **how: bool) -> dict:
        if settings.optimisation.lr > 1:
            raise NonFiniteLossError("the loss is nan")
        return train_or_resume(settings, **how)

    monkeypatch.setattr(accuracy, "train_or_resume", train_as_it_may)
    config = dataclasses.replace(config, models=config.models[:1], seeds=(0,), rates=(3e-3, 9.0))
    (row,) = bench_accuracy(config)[len(FLOORS) :]
    assert float(row["lr"]) == 3e-3


def test_a_run_that_was_cut_off_is_not_in_the_way_of_one_with_another_rate(
    config: AccuracyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, models=config.models[:1], seeds=(0,))

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_end_epoch", cut)
        with pytest.raises(KeyboardInterrupt):
            bench_accuracy(config)
    (row,) = bench_accuracy(dataclasses.replace(config, rates=(3e-3,)))[len(FLOORS) :]
    assert float(row["lr"]) == 3e-3


@pytest.fixture
def typed(tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A comparison of a tiny network as it is typed, in the folder that the network's file is in."""
    monkeypatch.chdir(tmp_path)
    tiny_spec(tmp_path)
    return ["bench", "accuracy", "--recipe", tiny_recipe, "--models", "tiny.json"]


def test_fewer_images_and_threads_as_typed(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    flags = [*typed, "--seeds", "0", "--train-size", "60", "--threads", "2"]
    assert main(flags) == 0
    (row,) = read_csv(Path("benchmarks/results/accuracy-tiny-60.csv"))[len(FLOORS) :]
    assert (row["train_images"], row["threads"]) == ("60", "2")
    assert torch.get_num_threads() == before
    assert main([*flags[:-1], "0"]) == 1
    assert "threads must be at least 1, got 0" in capsys.readouterr().err


def test_rates_are_tried_for_as_many_epochs_as_said(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Rates that were tried for others are tried again."""
    flags = [*typed, "--epochs", "2", "--seeds"]
    assert main([*flags, "0", "--rates", "1e-3", "3e-3"]) == 0
    assert main([*flags, "0", "1", "--rates", "1e-3", "3e-3", "--rate-epochs", "2"]) == 0
    rows = read_csv(Path("benchmarks/results/accuracy-tiny-2epochs-rates.csv"))
    assert [(row["lr"], row["epochs"]) for row in rows] == [
        ("0.001", "1"),
        ("0.003", "1"),
        ("0.001", "2"),
        ("0.003", "2"),
    ]
    assert main([*flags, "0", "--rate-epochs", "2"]) == 1
    assert "rate_epochs has no effect without rates" in capsys.readouterr().err
    assert main([*flags, "0", "--rates", "1e-3", "--rate-epochs", "0"]) == 1
    assert "rate_epochs must be at least 1, got 0" in capsys.readouterr().err


def test_another_number_of_epochs_as_typed(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It has a file of its own; rows of other settings are refused, not mixed in."""
    flags = [*typed, "--seeds", "0"]
    assert main([*flags, "--epochs", "2"]) == 0
    results = Path("benchmarks/results/accuracy-tiny-2epochs.csv")
    (row,) = read_csv(results)[len(FLOORS) :]
    assert row["epochs"] == "2"
    before = results.read_bytes()
    for more, message in (
        (["--epochs", "3"], "of tiny@"),
        (["--epochs", "3"], "with epochs 2, which cannot be compared"),
        (["--epochs", "2", "--rates", "0.3"], "with learning rate 0.002, which cannot be compared"),
        (["--epochs", "2", "--train-size", "60"], "of logistic regression with train_images"),
        (["--epochs", "2", "--recipe", "quick"], "with recipe tiny"),
    ):
        assert main([*flags, *more, "--results", str(results)]) == 1
        assert message in capsys.readouterr().err
    assert results.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_several_trainings_at_once_give_the_same_rows(
    executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "local")  # a cluster of its own
    tiny_spec(tmp_path)
    flags = [
        "bench",
        "accuracy",
        "--recipe",
        "quick",
        "--models",
        "tiny.json",
        "--epochs",
        "1",
        "--train-size",
        "80",
    ]
    flags += ["--threads", "1", "--rates", "1e-3", "3e-3", "--seeds", "0"]
    assert main([*flags, "--results", "alone.csv", "--runs", "alone"]) == 0
    capsys.readouterr()
    assert (
        main([*flags, "--results", "shared.csv", "--runs", "shared", "--executor", executor, "--jobs", "2"]) == 0
    )
    assert "(2 of 2)" in capsys.readouterr().out
    same = ("model", "lr", "seed", "validation_accuracy", "test_accuracy", "test_loss", "threads")
    for end in ("", "-rates"):
        alone, shared = (
            sorted([row.get(key) for key in same] for row in read_csv(Path(f"{name}{end}.csv")))
            for name in ("alone", "shared")
        )
        assert alone == shared
    assert len(alone) == 2  # of rates
    for more, sentence in (
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--seeds", "0", "1", "0"], "seeds must be different from each other, got 0 1 0"),
        (["--rates", "1e-3", "0.001"], "rates must be different from each other, got 0.001 0.001"),
    ):
        assert main([*flags, *more]) == 1
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_networks_that_a_module_registers_are_known_to_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["bench", "accuracy", "--recipe", "quick", "--models", "registered_tiny", "--epochs", "1"]
    flags += ["--train-size", "80", "--seeds"]
    monkeypatch.setattr(run, "places", lambda cpu: 2)  # what is done where nothing is said
    assert main([*flags, "0"]) == 0
    assert "(1 of 1)" in capsys.readouterr().out
    # One of a script itself is known to no other process.
    monkeypatch.setattr(registered.registered_tiny, "__module__", "__main__")
    assert main([*flags, "0", "1"]) == 0
    said = capsys.readouterr().out
    assert "a script's own network is known to no other process" in said
    assert "training images; writing to" in said  # trainings in this process say so
    assert "(1 of 1)" not in said
