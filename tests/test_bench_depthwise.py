"""The benchmark of depthwise convolutions: variants are checked before they are timed, rows say where from."""

from pathlib import Path

import pytest

pytest.importorskip("numba")
from benchmarks import depthwise
from benchmarks.depthwise import DepthwiseConfig, bench_depthwise, convolutions
from hadaptive.files import read_csv
from hadaptive.ops import convolution, cpu_depthwise_launch

SHAPES = ((5, 6, (3, 3), 1, 1, 1, 2), (4, 7, (5, 1), 2, 2, 1, 2), (3, 5, (3, 3), 1, 4, 1, 1))


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(depthwise, "SWEEP", SHAPES)
    monkeypatch.setattr(convolution, "MIN_PRODUCTS", 0)
    monkeypatch.setattr(convolution, "MIN_NUMBERS", 0)
    config = DepthwiseConfig(results=tmp_path / "new" / "rows.csv", sweep=True, rounds=2, warmup=0, threads=1)
    rows = bench_depthwise(config)
    written = read_csv(config.results)
    # The kernel is turned at stride 1, where it is padded by less than it reaches.
    assert len(written) == len(rows) == 2 * (8 + 7 + 7)
    assert {row["layout"] for row in written} == {"nchw", "channels_last"}
    assert {(row["kernel"], row["padding"]) for row in written} == {("3x3", "1x1"), ("5x1", "2x0"), ("3x3", "4x4")}
    rules = [row["rule"] for row in written if row["variant"] == "forward, PyTorch"]
    assert rules == ["ours", "PyTorch", "ours", "PyTorch", "ours", "ours"]
    assert all(row["commit"] and row["threads"] == "1" and float(row["median_ms"]) > 0 for row in written)
    assert "5 x 6, 3x3 by 1, padding 1x1, dilation 1, nchw: x " in capsys.readouterr().out


def test_what_computes_something_else_gives_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = cpu_depthwise_launch.depthwise_backward

    def wrong(*arguments: object) -> tuple:
        of_x, of_weight = sound(*arguments)  # pyright: ignore[reportArgumentType]
        return of_x, 1.001 * of_weight

    monkeypatch.setattr(depthwise, "SWEEP", SHAPES)
    monkeypatch.setattr(cpu_depthwise_launch, "depthwise_backward", wrong)
    config = DepthwiseConfig(results=tmp_path / "rows.csv", sweep=True, rounds=2)
    with pytest.raises(ValueError, match="our gradient of weight does not compute"):
        bench_depthwise(config)
    assert not config.results.exists()


def test_the_networks_convolutions_are_found() -> None:
    found = convolutions("hadaptive_net_s", 16, 32)
    assert (624, 1, (7, 7), 1, 3, 1, 16) in found
    assert all(shape[-1] == 16 for shape in found)
