"""The search: exact resume, honest parts, statistics left alone, planted answers, clear sentences."""

import copy
import dataclasses
import itertools
import json
import signal
from types import SimpleNamespace

import dying
import pytest
import torch
from processes import forked, launch
from tiny import searcher_of

from hadaptive.cli import main
from hadaptive.engine.stopping import StopRequest
from hadaptive.errors import UserError
from hadaptive.files import read_csv
from hadaptive.models.layer_spec import ConvSpec, ach, ghost
from hadaptive.models.spec import NetSpec
from hadaptive.search import (
    LatencyTable,
    SearchConfig,
    SearchSpace,
    Setting,
    Skip,
    Supernet,
    latency,
    most_confident,
    open_space,
    published_space,
    resume_search,
    rich_space,
    search,
)
from hadaptive.search.estimators import frozen_statistics
from hadaptive.train import TrainConfig, TrainingInterruptedError, train


@pytest.fixture
def space(tmp_path) -> SearchSpace:
    stage = ((ghost(2, 3, 12), ach(4, 3, 12)), (ghost(2, 3, 12), ach(5, 3, 12), Skip()))
    space = SearchSpace("tiny", (ConvSpec(8, 2, 2), ConvSpec(8, 3, 2)), (), (stage,), 16, 16)
    space.save(tmp_path / "tiny.json")
    return space


def table_for(space: SearchSpace, times, **changes) -> LatencyTable:
    values = {"rest": 1.0, "slope": 1.0, "offset": 0.0, "references": {"S": 10.0}, "where": {"device": "none"}}
    values |= {"networks": {"number": 3, "median_error": 0.0}, "setting": Setting()} | changes
    return LatencyTable(space=space.fingerprint, times=times, **values)


def config_of(tmp_path, **changes) -> SearchConfig:
    changes = {"space": str(tmp_path / "tiny.json"), "epochs": 2, "image_size": 16, "train_size": 512} | changes
    return SearchConfig.from_recipe("quick", **changes)


# ---------------------------------------------------------------- the loop


@pytest.mark.rendered
def test_resumed_search_ends_with_the_same_architecture(tmp_path, space, monkeypatch) -> None:
    search(config_of(tmp_path, epochs=3, output=tmp_path / "whole"), quiet=True)
    calls = itertools.count(1)
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "agreed", lambda self: next(calls) == 6)  # in the middle of epoch 2
        with pytest.raises(TrainingInterruptedError):
            search(config_of(tmp_path, epochs=3, output=tmp_path / "cut"), quiet=True)
    resume_search(tmp_path / "cut", quiet=True)
    whole, cut = (read_csv(tmp_path / name / "confidence.csv") for name in ("whole", "cut"))
    assert whole == cut
    strip = [
        {k: v for k, v in row.items() if k != "seconds"} for row in read_csv(tmp_path / "whole" / "metrics.csv")
    ]
    again = [
        {k: v for k, v in row.items() if k != "seconds"} for row in read_csv(tmp_path / "cut" / "metrics.csv")
    ]
    assert strip == again
    for name in ("found.json", "network.png", "confidence.png", "curves.png", "summary.json"):
        assert (tmp_path / "cut" / name).is_file()
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()
    assert (tmp_path / "whole" / "found.json").read_bytes() == (tmp_path / "cut" / "found.json").read_bytes()


def test_what_is_found_can_be_trained(tmp_path, space) -> None:
    summary = search(config_of(tmp_path, output=tmp_path / "search"), quiet=True)
    found = NetSpec.load(tmp_path / "search" / "found.json")
    assert space.find(found) is not None
    assert summary["choice"] == list(space.find(found))
    config = TrainConfig().changed(
        model=str(tmp_path / "search" / "found.json"), epochs=1, train_size=128, output=tmp_path / "run"
    )
    assert train(config, quiet=True)["model"].endswith("found.json")
    with pytest.raises(ValueError, match="never overwritten"):
        search(config_of(tmp_path, output=tmp_path / "search"), quiet=True)


def test_parts_share_no_image_and_the_test_part_stays_closed(tmp_path, space) -> None:
    config = config_of(tmp_path)
    batches = searcher_of(config, space).batches
    assert batches.test is None

    def images(part) -> set[bytes]:
        return {part.read(i)[0].tobytes() for i in range(len(part))}

    weights, alpha, test = (images(batches.parts[name]) for name in ("train", "alpha", "test"))
    validation = images(batches.parts["validation"])
    for one, other in itertools.combinations((weights, alpha, test, validation), 2):
        assert len(one & other) <= 2  # the scans themselves hold a few equal ones


def test_architecture_steps_change_no_weight_and_no_statistic(tmp_path, space) -> None:
    config = config_of(tmp_path, weights_first=0.0)
    searcher = searcher_of(config, space)
    before = copy.deepcopy(searcher.supernet.state_dict())
    images, targets, _ = next(iter(searcher.alpha_batches.loader))
    searcher._alpha_step(images, targets)
    after = searcher.supernet.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"alpha.{i}" for i in range(len(space.positions))}
    before = copy.deepcopy(after)
    searcher.micro_step(images, targets, 0)
    after = searcher.supernet.state_dict()
    assert all(torch.equal(before[f"alpha.{i}"], after[f"alpha.{i}"]) for i in range(len(space.positions)))
    assert any("running_mean" in name and not torch.equal(before[name], after[name]) for name in before)


def test_an_architecture_never_becomes_nan(tmp_path, space) -> None:
    searcher = searcher_of(config_of(tmp_path, weights_first=0.0), space)
    searcher.table = SimpleNamespace(expected=lambda confidence: confidence[0].sum() * float("nan"))
    searcher.target = 1.0
    images, targets, _ = next(iter(searcher.alpha_batches.loader))
    with pytest.raises(UserError, match="architecture's gradient is nan in epoch 1, step 1: try a lower lr"):
        searcher._alpha_step(images, targets)
    assert all(torch.isfinite(alpha).all() for alpha in searcher.alpha)


def test_frozen_statistics_normalise_with_the_batch() -> None:
    norm, x = torch.nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5) + 2
    expected = copy.deepcopy(norm)(x)
    with frozen_statistics(norm):
        torch.testing.assert_close(norm(x), expected)
    assert norm.running_mean.abs().max() == 0
    assert int(norm.num_batches_tracked) == 0
    norm(x)
    assert norm.running_mean.abs().max() > 0
    assert int(norm.num_batches_tracked) == 1


def test_temperature_falls_by_a_cosine(tmp_path, space) -> None:
    config = config_of(tmp_path, weights_first=0.0)
    searcher = searcher_of(config, space)
    assert searcher.tau() == pytest.approx(4.0)
    total = searcher.epochs * searcher.steps_per_epoch
    searcher.epoch, searcher.step = 0, total - 1
    assert searcher.tau() == pytest.approx(0.1)
    searcher.step = (total - 1) // 2
    halfway = (searcher.step) / (total - 1)
    assert searcher.tau() == pytest.approx(
        0.1 + 3.9 * (1 + torch.cos(torch.tensor(torch.pi * halfway)).item()) / 2
    )


# ---------------------------------------------------------------- from alpha to a network


def test_most_confident_within_a_target_is_the_best_of_all(space) -> None:
    generator, checked = torch.Generator().manual_seed(3), 0
    for _ in range(40):
        times = tuple(tuple(torch.rand(len(p), generator=generator).tolist()) for p in space.positions)
        table = table_for(space, times)
        confidence = [torch.rand(len(p), generator=generator).softmax(0) for p in space.positions]
        low, high = table.range()
        target = low + 0.4 * (high - low)

        def score(choice, confidence=confidence) -> float:
            return sum(float(p[c].log()) for p, c in zip(confidence, choice, strict=True))

        every = itertools.product(*(range(len(p)) for p in space.positions))
        band = [c for c in every if 0.9 * target <= table.predict(c) <= target]
        if not band:
            continue
        best = max(band, key=score)
        found = most_confident(confidence, table, target)
        assert 0.9 * target - 1e-2 <= table.predict(found) <= target + 1e-6
        assert score(found) == pytest.approx(score(best), abs=1e-6)
        checked += 1
    assert checked > 10


# ---------------------------------------------------------------- latency


def test_expected_latency_is_linear_and_agrees_with_predictions(space) -> None:
    times = tuple(tuple(float(i + j) for j in range(len(p))) for i, p in enumerate(space.positions))
    table = table_for(space, times, slope=1.5, offset=0.25)
    choice = (1, 0, 2)
    one_hot = [
        torch.nn.functional.one_hot(torch.tensor(c), len(p)).float()
        for c, p in zip(choice, space.positions, strict=True)
    ]
    assert float(table.expected(one_hot)) == pytest.approx(table.predict(choice))
    even = [torch.full((len(p),), 1 / len(p), requires_grad=True) for p in space.positions]
    table.expected(even).backward()
    assert even[2].grad.tolist() == [1.5 * t for t in times[2]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fast", "written like"),
        ("-5ms", "written like"),
        ("0.8xT", "no 'T'"),
        ("1ms", "no network of this space reaches"),
        ("0ms", "written like"),
    ],
)
def test_bad_targets(space, text, sentence) -> None:
    table = table_for(space, tuple(tuple(1.0 for _ in p) for p in space.positions))
    with pytest.raises(ValueError, match=sentence):
        table.target(text)
    assert table.target("0.8xS") == 8.0
    assert table.target("5 ms") == 5.0
    assert table.target("0.005s") == 5.0


def test_foreign_tables_are_refused(space, tmp_path) -> None:
    table = table_for(space, tuple(tuple(1.0 for _ in p) for p in space.positions))
    table.save(tmp_path / "table.json")
    table = LatencyTable.load(tmp_path / "table.json")
    with pytest.raises(ValueError, match="another space"):
        table.check(published_space(), Setting())
    with pytest.raises(ValueError, match="image_size 224, the search has 64"):
        table.check(space, Setting(image_size=64))
    with pytest.raises(ValueError, match="another device"):
        table.check(space, Setting())
    table.check(space, Setting(), foreign=True)
    (tmp_path / "table.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="holds no latency table"):
        LatencyTable.load(tmp_path / "table.json")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_size": 90}, "cannot be divided"),
        ({"image_size": 1}, "too small"),
        ({"space": "nowhere"}, "no search space"),
        ({"alpha_fraction": 1.5}, "alpha_fraction"),
        ({"ema": 0.9}, "no meaning in a search"),
        ({"mixed_precision": "fp16"}, "bf16"),
        ({"latency_target": "0.0001ms"}, "no network of this space reaches"),
    ],
)
def test_bad_input_is_told_before_any_folder_is_made(tmp_path, space, changes, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        search(config_of(tmp_path, output=tmp_path / "search", **changes), quiet=True)
    assert not (tmp_path / "search").exists()


def test_networks_that_are_all_alike_leave_the_mean_ratio() -> None:
    """A space of few candidates gave a line through one point."""
    for sums in ([2.0, 2.0], [2.0, 2.0, 2.0], [1.0, 2.0]):
        slope, offset, error = latency._fit(sums, [1.5 * x for x in sums])
        assert (slope, offset, error) == pytest.approx((1.5, 0.0, 0.0))
    assert latency._fit([1.0, 2.0, 3.0], [1.5, 2.5, 3.5]) == pytest.approx((1.0, 0.5, 0.0))


def test_a_measured_table_predicts_what_it_was_fitted_to(space, tmp_path, capsys) -> None:
    output = tmp_path / "tables" / "table.json"
    flags = ["--image-size", "16", "--num-classes", "10", "--rounds", "5", "--networks", "4"]
    assert main(["latency", str(tmp_path / "tiny.json"), *flags, "--output", str(output)]) == 0
    assert "whole network = " in capsys.readouterr().out
    table = LatencyTable.load(output)
    assert [len(times) for times in table.times] == [len(position) for position in space.positions]
    assert all(ms > 0 for times in table.times[:2] for ms in times)
    assert table.times[2][2] == 0  # skip
    low, high = table.range()
    assert 0 < low < high
    assert table.is_of_this_machine
    table.check(space, Setting(image_size=16, num_classes=10))
    assert main(["latency", str(tmp_path / "tiny.json"), *flags, "--output", str(output)]) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert main(["latency", str(tmp_path / "tiny.json"), "--device", "gpu"]) == 1
    assert "device must be cpu or cuda" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"estimator": "gdas"}, {"alpha_fraction": 0.25}], ids=["gdas", "few alphas"])
def test_other_settings_resume_exactly_and_foreign_tables_predict_only(
    tmp_path, space, monkeypatch, changes
) -> None:
    times = tuple(tuple(1.0 + j for j in range(len(p))) for p in space.positions)
    table = table_for(space, times, setting=Setting(device="cuda", image_size=16, num_classes=10))
    table.save(tmp_path / "table.json")
    foreign = {"latency_table": tmp_path / "table.json", "latency_target": "5ms", "foreign_table": True}
    changes = {**changes, **foreign, "epochs": 2, "checkpoint_every": 1}
    summary = search(config_of(tmp_path, output=tmp_path / "whole", **changes), quiet=True)
    assert summary["measured_ms"] is None  # there is no such device here
    assert summary["predicted_ms"] <= 5
    calls = itertools.count(1)
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "agreed", lambda self: next(calls) == 7)
        with pytest.raises(TrainingInterruptedError):
            search(config_of(tmp_path, output=tmp_path / "cut", **changes), quiet=True)
    resume_search(tmp_path / "cut", quiet=True)
    whole, cut = (read_csv(tmp_path / name / "confidence.csv") for name in ("whole", "cut"))
    assert whole == cut
    losses = [row["alpha_loss"] for row in read_csv(tmp_path / "whole" / "metrics.csv")]
    assert 0 < float(losses[-1]) < 5


def test_a_resumed_search_keeps_its_target(tmp_path, space, monkeypatch) -> None:
    table = table_for(space, tuple(tuple(1.0 for _ in p) for p in space.positions))
    table = dataclasses.replace(table, setting=Setting(image_size=16, num_classes=10))
    table.save(tmp_path / "table.json")
    config = config_of(
        tmp_path,
        output=tmp_path / "cut",
        latency_table=tmp_path / "table.json",
        latency_target="5ms",
        foreign_table=True,
    )
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "agreed", lambda self: True)
        with pytest.raises(TrainingInterruptedError):
            search(config, quiet=True)
    (tmp_path / "cut" / "latency.json").unlink()
    with pytest.raises(ValueError, match=r"its table latency\.json is gone"):
        resume_search(tmp_path / "cut", quiet=True)


# ---------------------------------------------------------------- the space on images


def test_subnet_is_the_path(space) -> None:
    supernet = Supernet(space, 3).eval()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(supernet.subnet((1, 1, 2))(x), supernet(x, (1, 1, 2)))


@pytest.mark.parametrize(
    ("skeleton", "size"), [("s", 32), ("s", 64), ("s", 224), ("m", 224), ("l", 128), ("l", 224)]
)
def test_input_shapes_are_those_of_the_maps(skeleton, size) -> None:
    space = rich_space(skeleton)
    supernet, x = Supernet(space, 3).eval(), torch.zeros(1, 3, size, size)
    for shape, candidates in zip(space.input_shapes(3, size), supernet.positions, strict=False):
        assert tuple(x.shape[1:]) == (shape[0], shape[1], shape[1])
        x = candidates[0](x)
    assert (x.shape[1], x.shape[2]) == space.input_shapes(3, size)[-1]


def test_odd_maps_and_unknown_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kernels 2 and 3 leave different sizes: choose .*, such as 64"):
        published_space().input_shapes(3, 50)
    with pytest.raises(ValueError, match="there is no search space"):
        open_space("poor")


def test_stem_strides_of_a_space_are_those_of_its_networks() -> None:
    space = published_space()
    changed = space.with_stem_strides(1, 1)
    assert changed.build((0,) * 16).convs == space.build((0,) * 16).with_stem_strides(1, 1).convs
    assert len(changed.stem) == 1  # kernels 2 and 3 became one
    assert changed.fingerprint != space.fingerprint


# ---------------------------------------------------------------- killed, and in several processes


@pytest.mark.parametrize("at", [3, 7], ids=["first-epochs", "later"])
def test_kill_9_then_resume_gives_the_uninterrupted_architecture(tmp_path, space, at) -> None:
    # 4 steps an epoch, the architecture's from the fourth on.
    search(config_of(tmp_path, epochs=3, checkpoint_every=2, output=tmp_path / "whole"), quiet=True)
    settings = {"space": str(tmp_path / "tiny.json"), "image_size": 16, "train_size": 512, "epochs": 3}
    settings |= {"checkpoint_every": 2, "output": tmp_path / "cut"}
    done = forked(dying.search_and_die, at, settings)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "cut" / "summary.json").exists()
    resume_search(tmp_path / "cut", quiet=True)
    whole, cut = (read_csv(tmp_path / name / "confidence.csv") for name in ("whole", "cut"))
    assert whole == cut  # alpha itself, to the last digit
    assert (tmp_path / "whole" / "found.json").read_bytes() == (tmp_path / "cut" / "found.json").read_bytes()


@pytest.mark.slow
def test_two_processes_search_together(tmp_path, space) -> None:
    """Each step leaves most candidates of the supernet without a gradient, which must not stop the others."""
    flags = ["search", "--space", str(tmp_path / "tiny.json"), "--epochs", "2", "--image-size", "16"]
    flags += ["--train-size", "512", "--cpu", "--output", str(tmp_path / "both")]
    done = launch(2, flags)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert summary["processes"] == 2
    assert space.find(NetSpec.load(tmp_path / "both" / "found.json")) is not None
    assert len({row["epoch"] for row in read_csv(tmp_path / "both" / "metrics.csv")}) == 2
    again = launch(2, flags)
    assert again.returncode != 0
    assert "never overwritten" in again.stderr
    study = launch(2, [*flags[:-1], str(tmp_path / "study"), "--seeds", "2"])
    assert "run in one process" in study.stderr
