"""The benchmark of norms: variants are checked before they are timed, rows say where from."""

from pathlib import Path

import pytest

pytest.importorskip("numba")
from benchmarks import norms
from benchmarks.norms import NormsConfig, bench_norms
from hadaptive.files import read_csv
from hadaptive.ops import cpu_norm


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(norms, "norms", lambda *arguments: [(16, 4, "hardswish", 2), (3, 3, "none", 2)])
    config = NormsConfig(tmp_path / "new" / "rows.csv", batch=2, input_size=32, rounds=2, warmup=0, steps=2)
    rows = bench_norms(config)
    written = read_csv(config.results)
    assert len(written) == len(rows) == 2 * (4 + 2 + 3)  # three channels of nine positions have no kernel
    assert {row["layout"] for row in written} == {"nchw", "channels_last"}
    assert all(row["commit"] and float(row["median_ms"]) > 0 for row in written)
    assert "16 x 4, hardswish, batch 2, nchw: forward, PyTorch " in capsys.readouterr().out


def test_what_computes_something_else_gives_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = cpu_norm.norm_backward
    monkeypatch.setattr(cpu_norm, "norm_backward", lambda *arguments: tuple(1.001 * g for g in sound(*arguments)))
    monkeypatch.setattr(norms, "norms", lambda *arguments: [(16, 4, "hardswish", 2)])
    config = NormsConfig(tmp_path / "rows.csv", rounds=2, steps=0)
    with pytest.raises(ValueError, match="the gradient of x, ours does not compute"):
        bench_norms(config)
    assert not config.results.exists()


def test_the_networks_norms_are_found() -> None:
    found = norms.norms("hadaptive_net_s", 16, 32)
    assert (624, 1, "hardswish", 16) in found
    assert (128, 1, "none", 16) in found
