"""Several searches and their comparison: agreement, an even baseline, verdicts, and nothing done twice."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from hadaptive.cli import main
from hadaptive.engine.stopping import StopRequest
from hadaptive.files import read_csv
from hadaptive.models import NetSpec
from hadaptive.models.layer_spec import ConvSpec, ach, ghost, inverted
from hadaptive.search import (
    LatencyTable,
    SearchSpace,
    Setting,
    Skip,
    StudyConfig,
    random_within,
    resume,
    study,
)
from hadaptive.search.rivals import comparison_of, rank_of
from hadaptive.train import TrainingInterruptedError


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    stage = (
        (ghost(2, 3, 12), ach(4, 3, 12), inverted(3, 3, 12)),
        (ghost(2, 3, 12), ach(5, 3, 12), inverted(2, 5, 12), Skip()),
    )
    space = SearchSpace("tiny", (ConvSpec(8, 2, 2), ConvSpec(8, 3, 2)), (), (stage,), 16, 16)
    space.save(tmp_path / "tiny.json")
    return space


def table_of(space: SearchSpace, **changes) -> LatencyTable:
    generator = torch.Generator().manual_seed(0)
    times = tuple(tuple(torch.rand(len(p), generator=generator).tolist()) for p in space.positions)
    values = {"rest": 1.0, "slope": 1.0, "offset": 0.0, "references": {}, "where": {"device": "elsewhere"}}
    values |= {"networks": {"number": 3, "median_error": 0.0}, "setting": Setting(image_size=16, num_classes=10)}
    return LatencyTable(space=space.fingerprint, times=times, **values | changes)


def config_of(tmp_path: Path, **changes) -> StudyConfig:
    settings = {"space": str(tmp_path / "tiny.json"), "epochs": 1, "image_size": 16, "train_size": 256}
    settings |= {"seeds": 2, "baseline": (("random", 2),), "retrain_seeds": 1, "output": tmp_path / "study"}
    return StudyConfig.from_recipe("quick", **settings | changes)


@pytest.mark.slow
@pytest.mark.rendered
def test_a_study_compares_what_it_finds_and_resumes_where_it_stopped(tmp_path, space, monkeypatch) -> None:
    table_of(space).save(tmp_path / "table.json")
    low, high = table_of(space).range()
    target = f"{(low + high) / 2:.4f}ms"
    config = config_of(
        tmp_path, latency_target=target, latency_table=tmp_path / "table.json", foreign_table=True, jobs=2
    )
    calls = itertools.count(1)
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "agreed", lambda self: next(calls) == 4)  # in the second search
        with pytest.raises(TrainingInterruptedError) as caught:
            study(config, quiet=True)
    assert (str(caught.value), caught.value.command) == (str(tmp_path / "study"), "search")
    first = json.loads((tmp_path / "study/searches/seed0/summary.json").read_text())
    assert not (tmp_path / "study/searches/seed1/summary.json").exists()
    summary = resume(tmp_path / "study", quiet=True)
    assert json.loads((tmp_path / "study/searches/seed0/summary.json").read_text()) == first
    rows = read_csv(tmp_path / "study/comparison.csv")
    # No published network fits 16x16 images, and the table knows of none.
    assert Counter(row["group"] for row in rows) == {"found": 2, "random": 2}
    assert main(["report", str(tmp_path / "study")]) == 0
    said = (tmp_path / "study/report.html").read_text(encoding="utf-8")
    for network in {row["network"] for row in rows}:
        assert f"<td>{network}</td>" in said
    assert "Found against random" in said
    assert "study-again" in said
    assert {row["part"] for row in rows} == {"test"}
    assert {row["threads"] for row in rows} == {"1"}  # as two run at once
    assert all(float(row["predicted_ms"]) <= float(target[:-2]) + 1e-3 for row in rows if row["predicted_ms"])
    for name in ("agreement.csv", "kinds.csv", "confidence.png", "comparison.png", "networks.json"):
        assert (tmp_path / "study" / name).is_file()
    # The shares of kinds are a whole at each position and seed.
    kinds = read_csv(tmp_path / "study/kinds.csv")
    for _, group in itertools.groupby(kinds, key=lambda row: (row["position"], row["seed"])):
        assert sum(float(row["confidence"]) for row in group) == pytest.approx(1, abs=1e-5)
    assert summary["found_against_random"]["verdict"] in ("better", "worse", "no different")
    for name, network in json.loads((tmp_path / "study/networks.json").read_text()).items():
        if network["choice"]:
            assert space.build(tuple(network["choice"]), name=name) == NetSpec.from_dict(network["spec"])
    with pytest.raises(ValueError, match="finished"):
        resume(tmp_path / "study", quiet=True)


@pytest.mark.slow
def test_seeds_alone_report_agreement(tmp_path, space, capsys) -> None:
    flags = ["--space", str(tmp_path / "tiny.json"), "--epochs", "1", "--image-size", "16", "--train-size", "256"]
    assert main(["search", *flags, "--seeds", "2", "--output", str(tmp_path / "study")]) == 0
    assert "two seeds choose the same candidate" in capsys.readouterr().out
    found = [json.loads((tmp_path / f"study/searches/seed{s}/summary.json").read_text()) for s in (0, 1)]
    agreed = [a == b for a, b in zip(found[0]["choice"], found[1]["choice"], strict=True)]
    summary = json.loads((tmp_path / "study/summary.json").read_text())
    assert summary["agreement"]["share"] == pytest.approx(sum(agreed) / len(agreed))
    assert "groups" not in summary
    assert not (tmp_path / "study/runs").exists()
    assert main(["search", "--resume", str(tmp_path / "study")]) == 1
    assert "nothing to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"baseline": (("random", 1),)}, "baseline random needs at least 2 networks, got 1"),
        ({"baseline": (("evolution", 3),)}, "baseline evolution needs at least 4 networks, got 3"),
        ({"baseline": (("evolution", 4),)}, "divides the search's 1 epochs among its networks: at most 1, got 4"),
        ({"baseline": (("best", 4),)}, "shared weights, which --method evolution alone has"),
        ({"baseline": (("random", 2), ("random", 3))}, "the same rivals twice"),
        ({"space": "nowhere"}, "no search space"),
        ({"train_size": 90}, "cannot be divided"),
        ({"latency_target": "fast"}, "written like"),
    ],
)
def test_bad_input_is_told_before_any_folder_is_made(tmp_path, space, changes, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        study(config_of(tmp_path, **changes), quiet=True)
    assert not (tmp_path / "study").exists()


def test_random_networks_are_drawn_evenly_from_the_band(space) -> None:
    table = table_of(space)
    low, high = table.range()
    target = low + 0.7 * (high - low)
    every = itertools.product(*(range(len(p)) for p in space.positions))
    band = [choice for choice in every if 0.9 * target <= table.predict(choice) <= target]
    assert len(band) > 3
    generator, draws = torch.Generator().manual_seed(0), 3000
    counts = Counter(random_within(space, table, target, generator) for _ in range(draws))
    assert set(counts) <= set(band)
    for choice in band:
        expected = draws / len(band)
        assert abs(counts[choice] - expected) < 5 * expected**0.5
    with pytest.raises(ValueError, match="no network of this space is within"):
        random_within(space, table, 0.5 * low, generator)


def row(group: str, network: str, accuracy: float) -> dict[str, str]:
    return {"group": group, "network": network, "accuracy": str(accuracy)}


def test_verdicts() -> None:
    rows = [row("found", f"found-seed{i}", a) for i, a in enumerate((0.86, 0.861, 0.862))]
    rows += [row("random", f"random-{i}", a) for i, a in enumerate((0.85, 0.852, 0.848, 0.851))]
    rows += [row("published", "published-S", a) for a in (0.861, 0.8605, 0.8614)]
    result = comparison_of(rows)
    assert result["groups"]["found"]["mean"] == pytest.approx(86.1)
    assert result["found_against_random"]["verdict"] == "better"
    assert result["found_against_published"]["verdict"] == "no different"
    swapped = [{**r, "group": {"found": "random", "random": "found"}.get(r["group"], r["group"])} for r in rows]
    assert comparison_of(swapped)["found_against_random"]["verdict"] == "worse"


def test_several_seeds_of_several_networks_count_as_the_networks_means() -> None:
    rows = [row("found", name, a) for name, a in (("a", 0.8), ("a", 0.9), ("b", 0.7), ("b", 0.8))]
    rows += [row("random", "c", 0.8), row("random", "d", 0.8)]
    assert comparison_of(rows)["groups"]["found"]["values"] == pytest.approx([85.0, 75.0])


def test_how_well_a_supernet_orders_networks() -> None:
    values = [(0.5, 0.80), (0.6, 0.82), (0.7, 0.81), (0.9, 0.9)]
    rows = [
        {"network": str(n), "supernet_accuracy": str(shared), "accuracy": str(trained + change)}
        for n, (shared, trained) in enumerate(values)
        for change in (-0.001, 0.001)
    ]
    found = rank_of(rows)
    assert found["networks"] == 4
    assert found["kendall_tau"] == pytest.approx(4 / 6)  # one pair of six is the other way round
    assert 0 < found["p"] < 1
