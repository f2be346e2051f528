"""Evolutions of several seeds beside networks that nothing has searched for."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from evolved import config_of, saved_space, table_of

from hadaptive.cli import main
from hadaptive.errors import UserError
from hadaptive.files import read_csv
from hadaptive.search import (
    Judged,
    SearchSpace,
    alone,
    baselines,
    random_within,
    study,
)
from hadaptive.search.config import StudyConfig
from hadaptive.search.rivals import small_enough


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    return saved_space(tmp_path)


def test_seeds_beside_random_networks_as_fast_and_as_small(tmp_path: Path, space: SearchSpace, capsys) -> None:
    config = config_of(tmp_path, epochs=1, latency_target="4ms", max_params="2.5k", foreign_table=True)
    table = table_of(space, config)
    table.save(tmp_path / "t.json")
    config = config.changed(latency_table=tmp_path / "t.json")
    summary = study(StudyConfig(search=config, baseline=(("random", 6),), retrain_seeds=1, seeds=2))
    rows = read_csv(tmp_path / "run" / "comparison.csv")
    assert {row["group"] for row in rows} == {"found", "random"}
    assert "found_against_random" in summary
    for row in rows:
        assert int(row["parameters"]) <= 2500
        if row["group"] == "random":
            assert 0.9 * 4 <= float(row["predicted_ms"]) <= 4
    agreement = read_csv(tmp_path / "run" / "agreement.csv")
    assert [int(row["position"]) for row in agreement] == [3, 4]
    assert 0 <= summary["agreement"]["share"] <= 1
    assert not (tmp_path / "run" / "kinds.csv").exists()
    # The shared weights of the first seed are those that judged what it found.
    found = next(row for row in rows if row["network"] == "found-seed0")
    own = read_csv(tmp_path / "run" / "searches" / "seed0" / "evolution.csv")
    choice = json.loads((tmp_path / "run" / "searches" / "seed0" / "summary.json").read_text())["choice"]
    (judged,) = [row for row in own if list(map(int, row["choice"].split())) == choice]
    assert float(found["supernet_accuracy"]) == pytest.approx(float(judged["accuracy"]))
    assert summary["rank"]["networks"] == 6
    assert "as trainings do with Kendall's tau" in capsys.readouterr().out


@pytest.mark.slow
def test_every_kind_of_baseline_as_typed(tmp_path: Path, space: SearchSpace, monkeypatch, capsys) -> None:
    """Cut off while networks are judged it judges none of them twice, and ends with the same rivals."""
    words = ["search", "--recipe", "quick", "--epochs", "4", "--image-size", "8", "--train-size", "128", "--cpu"]
    words += [
        "--method",
        "evolution",
        "--population",
        "6",
        "--generations",
        "4",
        "--space",
        str(tmp_path / "tiny.json"),
    ]
    words += ["--max-params", "2.5k", "--retrain-seeds", "2"]
    words += ["--baseline", "random", "2", "best", "5", "evolution", "4", "--output"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    rows = read_csv(tmp_path / "whole" / "comparison.csv")
    assert Counter(row["group"] for row in rows) == {
        "found": 2,
        "random": 2,
        "best": 2,
        "evolution": 2,
    }
    assert all(int(row["parameters"]) <= 2500 for row in rows)
    drawn = read_csv(tmp_path / "whole" / "baseline-best.csv")
    networks = json.loads((tmp_path / "whole" / "networks.json").read_text(encoding="utf-8"))
    best = max(drawn, key=lambda row: float(row["supernet_accuracy"]))
    assert networks["best"]["supernet_accuracy"] == float(best["supernet_accuracy"])
    judged_alone = [Judged.from_row(row) for row in read_csv(tmp_path / "whole" / "baseline-evolution.csv")]
    assert len({one.fingerprint for one in judged_alone}) == len(judged_alone) == 4
    within = [one for one in judged_alone if one.parameters <= 2500]
    best_alone = max(within, key=lambda one: (one.accuracy, -one.cost, one.choice))
    assert tuple(networks["evolution"]["choice"]) == best_alone.choice
    trained = [json.loads(path.read_text()) for path in (tmp_path / "whole" / "runs").glob("alone-*/summary.json")]
    assert [summary["epochs"] for summary in trained] == [1] * 4
    said = capsys.readouterr().out
    for text in ("the best of 5 random networks", "without shared weights: 4 networks"):
        assert text in said
    for other in ("random", "best", "evolution"):
        assert f"found against {other}: " in said

    count = itertools.count(1)
    judge = alone.append_csv

    def cut(path: Path, rows: list[dict[str, Any]]) -> None:
        judge(path, rows)
        if next(count) in (3, 8):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(alone, "append_csv", cut)
        patched.setattr(baselines, "append_csv", cut)
        assert main([*words, str(tmp_path / "cut")]) == 130
        assert main(["search", "--resume", str(tmp_path / "cut")]) == 130
        assert main(["search", "--resume", str(tmp_path / "cut"), "--jobs", "1", "--executor", "local"]) == 0
    assert main(["search", "--resume", str(tmp_path / "cut/searches/seed0"), "--jobs", "2"]) == 1
    assert "is one search, which shares nothing out: leave --jobs and --executor out" in capsys.readouterr().err
    for name in ("baseline-best.csv", "baseline-evolution.csv"):
        own = [{key: row[key] for key in row if key != "generation"} for row in read_csv(tmp_path / "cut" / name)]
        other = [
            {key: row[key] for key in row if key != "generation"} for row in read_csv(tmp_path / "whole" / name)
        ]
        assert own == other
    again = json.loads((tmp_path / "cut" / "networks.json").read_text(encoding="utf-8"))
    assert {name: own["choice"] for name, own in again.items()} == {
        n: own["choice"] for n, own in networks.items()
    }


def test_random_networks_are_of_every_width_that_reaches_the_target(tmp_path: Path, space: SearchSpace) -> None:
    table, generator = table_of(space, config_of(tmp_path)), torch.Generator().manual_seed(0)
    drawn = [random_within(space, table, 3.01, generator) for _ in range(300)]
    band = [c for c in itertools.product(*map(range, space.counts)) if 0.9 * 3.01 <= table.predict(c) <= 3.01]
    assert {c[-1] for c in band} == {0, 1}
    assert set(drawn) == set(band)
    shares = [drawn.count(choice) / len(drawn) for choice in band]
    assert max(shares) < 3 / len(band)
    # Half the width ends below the band: none of it is drawn.
    assert {random_within(space, table, 4.5, generator)[-1] for _ in range(40)} == {0}


def test_no_random_network_issmall_enough(tmp_path: Path, space: SearchSpace) -> None:
    config = config_of(tmp_path, max_params="10")
    with pytest.raises(UserError, match="none of 1000 random networks has 10 parameters or fewer"):
        small_enough(config, space, lambda: (0,) * 5, 10)
