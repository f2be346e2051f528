"""The report of a search, by gradient and by evolution, and of several."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from browser import faults, needs_browser
from test_run_report import Page
from test_search_study import table_of

from hadaptive.cli import main
from hadaptive.files import read_csv, write_csv
from hadaptive.models import create_model
from hadaptive.models.layer_spec import ConvSpec, ach, ghost, inverted
from hadaptive.report.search import search_report
from hadaptive.search import SearchConfig, SearchSpace, Skip, search

SPACE = SearchSpace(
    "<b>own",
    (ConvSpec(8, 2, 2),),
    (),
    (((ghost(2, 3, 12), ach(4, 3, 12), inverted(3, 3, 12)), (ghost(2, 3, 12), ach(5, 3, 12), Skip())),),
    8,
    8,
)


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of each method; that by evolution knows predicted latencies."""
    folder = tmp_path_factory.mktemp("searches")
    SPACE.save(folder / "own.json")
    table_of(SPACE).save(folder / "table.json")
    shared: dict[str, Any] = {"space": str(folder / "own.json"), "image_size": 16, "train_size": 128, "cpu": True}
    search(SearchConfig.from_recipe("quick", output=folder / "gradient", epochs=1, **shared), quiet=True)
    how: dict[str, Any] = {"method": "evolution", "population": 4, "generations": 4, "epochs": 1, **shared}
    low, high = table_of(SPACE).range()
    how |= {"latency_target": f"{low + 0.8 * (high - low):.4f}ms", "latency_table": folder / "table.json"}
    search(SearchConfig.from_recipe("quick", output=folder / "evolution", foreign_table=True, **how), quiet=True)
    # As of a search that timed its networks on this machine.
    rows = [
        {**row, "measured_ms": 1.1 * float(row["latency_ms"])} for row in read_csv(folder / "evolution/front.csv")
    ]
    write_csv(folder / "evolution/front.csv", rows, list(rows[0]))
    path = folder / "evolution/summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "measured_ms": {"found": 2.0, "S": 3.0}}))
    for name in ("gradient", "evolution"):
        assert main(["report", str(folder / name)]) == 0
    return folder


def test_of_evolution(searches: Path) -> None:
    page, folder = Page(searches / "evolution/report.html"), searches / "evolution"
    assert page.headings == [
        "overview", "what-speaks-against-trusting-it", "the-front", "the-network", "latency", "learning",
        "networks-looked-at", "do-it-again",
    ]  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['networks']:,}, of which {summary['front']} are the front" in page.text
    for warning in summary["warnings"]:
        assert warning[1:] in page.text
    assert "front-0" in page.text
    assert "1.50" in page.text, "S takes 1.5 times as long as what was found"
    best = max(read_csv(folder / "evolution.csv"), key=lambda row: float(row["accuracy"]))
    assert best["fingerprint"] in page.text
    assert all(image["alt"] for image in page.images())
    assert len(page.images()) == 5, "front, network, latency, two curves"


def test_by_gradient(searches: Path) -> None:
    page, folder = Page(searches / "gradient/report.html"), searches / "gradient"
    assert page.headings == [
        "overview", "what-speaks-against-trusting-it", "the-network", "learning", "do-it-again",
    ]  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert "What was chosen, and how surely" in page.text
    assert f"{summary['confidence'][1]:.2f}" in page.text
    network = create_model(str(folder / "found.json"), num_classes=10)
    assert f"{sum(p.numel() for p in network.parameters()):,}" in page.text


@needs_browser
def test_a_browser_finds_nothing_wrong_with_them(searches: Path) -> None:
    assert faults(*(searches / name / "report.html" for name in ("gradient", "evolution"))) == []


def test_the_commands_are_those_that_made_it(searches: Path) -> None:
    text = Page(searches / "gradient/report.html").text
    again, training = (shlex.split(line) for line in text.splitlines() if line.strip().startswith("hadaptive "))
    assert main([*again[1:], "--quiet"]) == 0
    first, second = (json.loads((searches / n / "found.json").read_text()) for n in ("gradient", "gradient-again"))
    assert first == second
    assert training[:2] == ["hadaptive", "train"]
    assert str(searches / "gradient/found.json") in training


def test_flags_of_a_training_are_refused(searches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in (["--split", "test"], ["--data", "digits"], ["--data-dir", "x"], ["--cpu"]):
        assert main(["report", str(searches / "gradient"), *flag]) == 1
        assert f"{flag[0]} is of a training" in capsys.readouterr().err


def test_an_unfinished_search_says_how_far_it_is(searches: Path, tmp_path: Path) -> None:
    for name in ("config.json", "space.json", "metrics.csv", "split.csv"):
        (tmp_path / name).write_bytes((searches / "gradient" / name).read_bytes())
    report = search_report(tmp_path)
    assert report.lead == "Not finished: 1 of 1 epochs."
    text = report.html()
    assert "hadaptive search --resume" in text
    (tmp_path / "summary.json").write_text('{"warnings": 3}')
    with pytest.raises(ValueError, match="is damaged"):
        search_report(tmp_path)
