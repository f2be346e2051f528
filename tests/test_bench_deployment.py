"""What deployment costs, and whether files compute what networks do: the rows of both commands."""

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

from benchmarks import deployment
from benchmarks.__main__ import main
from benchmarks.deployment import CONTROL, DeploymentConfig, ParityConfig, bench_deployment, bench_parity
from hadaptive.files import read_csv
from hadaptive.runs import RunFolder
from hadaptive.train import train

# Libraries' own, while they export.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(tiny_config(folder, epochs=1), quiet=True)
    return folder / "run"


def test_a_row_for_each_way_of_deploying_a_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: dict[str, dict[str, Any]] = {
        "dynamic": {"format": "safetensors"},
        "frozen, fine-tuned": {"format": "safetensors", "freeze": True, "finetune": True},
    }
    monkeypatch.setattr(deployment, "VARIANTS", ways)
    results = tmp_path / "results/deployment.csv"
    bench_deployment(DeploymentConfig((run,), results=results))
    rows = {row["variant"]: row for row in read_csv(results)}
    assert list(rows) == ["dynamic", "frozen, fine-tuned", CONTROL]
    measured = RunFolder.open(run).read_json(run / "summary.json")["test"]["accuracy"]
    assert float(rows["dynamic"]["test_accuracy"]) == pytest.approx(measured)
    assert [row["epochs"] for row in rows.values()] == ["0", "1", "1"]
    for row in rows.values():
        lost = 100 * (float(rows["dynamic"]["test_accuracy"]) - float(row["test_accuracy"]))
        assert float(row["lost_points"]) == pytest.approx(lost, abs=1e-3)
    assert (run / "finetuned").is_dir()
    assert (run / "continued").is_dir()


def test_a_row_for_each_file_that_agrees(run: Path, tmp_path: Path) -> None:
    results = tmp_path / "parity.csv"
    config = ParityConfig((str(run),), ("torch", "safetensors"), images=20, results=results)
    bench_parity(config)
    rows = read_csv(results)
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
    assert main([*arguments, "--results", str(tmp_path / "rows.csv")]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "rows.csv").exists()
