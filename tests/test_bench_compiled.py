"""The benchmark of compiled networks: rows of both forms, and none of what computes something else."""

from pathlib import Path

import pytest
import torch

from benchmarks import compiled
from benchmarks.__main__ import main
from hadaptive.errors import UserError
from hadaptive.files import read_csv

NAME = "mobilenetv4_conv_small_050"


def test_a_row_for_each_form(tmp_path: Path) -> None:
    flags = ["--models", NAME, "--image-sizes", "32", "--rounds", "3", "--backend", "eager"]
    assert main(["compiled", *flags, "--results", str(tmp_path / "new" / "rows.csv")]) == 0
    rows = read_csv(tmp_path / "new" / "rows.csv")
    assert [row["variant"] for row in rows] == [NAME, f"{NAME}, compiled"]
    assert all(0 < float(row["lower_quartile_ms"]) <= float(row["median_ms"]) for row in rows)


def test_what_computes_something_else_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, backend: lambda x: model(x) + 1)
    config = compiled.CompiledConfig((NAME,), (32,), tmp_path / "rows.csv", rounds=3)
    with pytest.raises(UserError, match="computes something else when compiled"):
        compiled.bench_compiled(config)
    assert not (tmp_path / "rows.csv").exists()
