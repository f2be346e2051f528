"""What deployment costs, and whether files compute what networks do: the rows of both commands."""

import csv
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

from hadaptive.bench import deployment
from hadaptive.bench.deployment import CONTROL, DeploymentConfig, ParityConfig, bench_deployment, bench_parity
from hadaptive.cli import main
from hadaptive.runs import RunFolder
from hadaptive.train import train

# Libraries' own, while they export.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_way_of_deploying_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: dict[str, dict[str, Any]] = {
        "dynamic": {"format": "safetensors"},
        "frozen, fine-tuned": {"format": "safetensors", "freeze": True, "finetune": True},
    }
    monkeypatch.setattr(deployment, "VARIANTS", ways)
    train(tiny_config(tmp_path, epochs=1), quiet=True)
    run, results = tmp_path / "run", tmp_path / "results/deployment.csv"
    bench_deployment(DeploymentConfig((run,), results=results))
    rows = {row["variant"]: row for row in rows_of(results)}
    assert list(rows) == ["dynamic", "frozen, fine-tuned", CONTROL]
    measured = RunFolder.open(run).read_json(run / "summary.json")["test"]["accuracy"]
    assert float(rows["dynamic"]["test_accuracy"]) == pytest.approx(measured)
    assert [row["epochs"] for row in rows.values()] == ["0", "1", "1"]
    for row in rows.values():
        lost = 100 * (float(rows["dynamic"]["test_accuracy"]) - float(row["test_accuracy"]))
        assert float(row["lost_points"]) == pytest.approx(lost, abs=1e-3)
    assert (run / "finetuned").is_dir()
    assert (run / "continued").is_dir()


def test_a_row_for_each_file_that_agrees(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, epochs=1), quiet=True)
    results = tmp_path / "parity.csv"
    config = ParityConfig((str(tmp_path / "run"),), ("torch", "safetensors"), images=20, results=results)
    bench_parity(config)
    rows = rows_of(results)
    assert [(row["format"], row["selections"]) for row in rows] == [
        ("torch", "dynamic"),
        ("torch", "fixed"),
        ("safetensors", "dynamic"),
        ("safetensors", "fixed"),
    ]
    assert all(row["top1"] == "1.0" and row["images"] == "20" for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["deployment"], "name the run folders"),
        (["deployment", "nowhere"], "nowhere"),
        (["parity"], "name the networks"),
        (["parity", "no_such_network"], "no_such_network"),
    ],
    ids=["no run", "no such run", "no network", "unknown network"],
)
def test_mistakes(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", *arguments, "--results", str(tmp_path / "rows.csv")]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "rows.csv").exists()
