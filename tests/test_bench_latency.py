"""Latency in several runtimes: checked before it is timed, a row for each."""

from pathlib import Path

import pytest
from tiny import tiny_spec

from hadaptive.bench.latency import LatencyBenchConfig, bench_latency
from hadaptive.export import passes
from hadaptive.runs import read_csv

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def config_of(folder: Path, **changes) -> LatencyBenchConfig:
    tiny = tiny_spec(folder)
    settings = {"models": (tiny, f"{tiny}:frozen", "mobilenetv3_small_050"), "image_size": 32, "rounds": 1}
    return LatencyBenchConfig(results=folder / "rows.csv", **settings | changes)


def test_a_row_for_each_network_and_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_latency(config_of(tmp_path, runtimes=("eager", "onnxruntime", "openvino"), batches=(1, 2)))
    rows = read_csv(tmp_path / "rows.csv")
    assert len(rows) == 3 * 3 * 2
    assert all(float(row["median_ms"]) > 0 and int(row["macs"]) > 0 and row["threads"] == "2" for row in rows)
    assert "1.00" in capsys.readouterr().out


def test_what_computes_something_else_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(net) -> str:
        net.layers[1][0].bias.add_(1.0)
        return ""

    monkeypatch.setattr(passes, "absorb", spoiled)
    with pytest.raises(ValueError, match="computes something else"):
        bench_latency(config_of(tmp_path, runtimes=("onnxruntime",)))
    assert not (tmp_path / "rows.csv").exists()
    with pytest.raises(ValueError, match="may end in :frozen or :plain"):
        bench_latency(config_of(tmp_path, models=("hadaptive_net_s:fast",)))
