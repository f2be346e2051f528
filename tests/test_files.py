"""Result files: JSON that any reader of JSON takes."""

import ast
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_config
from torch.nn.functional import cross_entropy

import hadaptive
from hadaptive.evaluate import evaluate_run
from hadaptive.files import json_text, write_json
from hadaptive.train import train

PACKAGE = sorted(Path(hadaptive.__file__).parent.rglob("*.py"))


def strictly(text: str) -> Any:
    """JSON as the standard has it."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    data = {"a": math.nan, "b": [1.5, math.inf, {"c": (-math.inf, "NaN", None, True)}], "d": 3}
    plain = {"a": None, "b": [1.5, None, {"c": [None, "NaN", None, True]}], "d": 3}
    assert strictly(json_text(data)) == plain
    assert json_text({"b": 1, "a": 2}, sort_keys=True) == '{"a": 2, "b": 1}'
    write_json(tmp_path / "x.json", data)
    assert strictly((tmp_path / "x.json").read_text(encoding="utf-8")) == plain


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_all_json_is_written_in_one_place(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
            assert "allow_nan=False" in [ast.unparse(keyword) for keyword in node.keywords], ast.unparse(node)


def test_no_file_of_a_run_holds_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that gives NaN on what it was not trained on: its losses are no numbers, its files are JSON."""
    from hadaptive import metrics

    without = SimpleNamespace(cross_entropy=lambda *a, **k: cross_entropy(*a, **k) * math.nan)
    monkeypatch.setattr(metrics, "F", without)
    train(tiny_config(tmp_path, epochs=1), quiet=True)
    evaluate_run(tmp_path / "run", cpu=True)
    written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "run").rglob("*.json")}
    assert {"summary.json", "config.json", "model.json", "evaluation-test.json"} <= set(written)
    for text in written.values():
        strictly(text)
    assert strictly(written["summary.json"])["test"]["loss"] is None
