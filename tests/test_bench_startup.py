"""The benchmark of the command line's own time: a row for each command, beside the bare import."""

from pathlib import Path

import pytest

from benchmarks import startup
from hadaptive.errors import UserError
from hadaptive.files import read_csv


def test_a_row_for_each_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "LINES", {"import tyro": ("-c", ""), "mistake": ("-c", "raise SystemExit(2)")})
    startup.bench_startup(startup.StartupConfig(tmp_path / "new" / "rows.csv", rounds=2))
    rows = read_csv(tmp_path / "new" / "rows.csv")
    assert [row["command"] for row in rows] == ["import tyro", "mistake"]
    assert float(rows[0]["ratio"]) == 1
    assert all(0 < float(row["cpu_s_q1"]) <= float(row["cpu_s"]) <= float(row["cpu_s_q3"]) for row in rows)
    assert rows[0]["commit"] == rows[1]["commit"]


def test_a_command_that_fails_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "LINES", {"import tyro": ("-c", "raise SystemExit(70)")})
    with pytest.raises(UserError, match="ended with status 70"):
        startup.bench_startup(startup.StartupConfig(tmp_path / "rows.csv", rounds=2))
