"""Latency in several runtimes: checked before it is timed, a row for each."""

from pathlib import Path

import pytest
from tiny import tiny_spec

from hadaptive.bench import latency
from hadaptive.bench.config import LatencyBenchConfig
from hadaptive.bench.latency import bench_latency
from hadaptive.files import read_csv
from hadaptive.measure.alone import Task, alone, session
from hadaptive.measure.timing import threads
from hadaptive.measure.untrained import untrained

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def config_of(folder: Path, **changes) -> LatencyBenchConfig:
    settings = {"models": (f"{tiny_spec(folder)}:frozen",), "image_size": 32, "rounds": 1, "calls": 3}
    return LatencyBenchConfig(results=folder / "rows.csv", **settings | changes)


@pytest.mark.slow
def test_a_row_for_each_network_and_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = tiny_spec(tmp_path)
    models = (tiny, f"{tiny}:int8")
    bench_latency(config_of(tmp_path, models=models, runtimes=("eager", "onnxruntime")))
    rows = read_csv(tmp_path / "rows.csv")
    assert [(row["runtime"], row["model"]) for row in rows] == [
        ("eager", tiny),
        ("onnxruntime", tiny),
        ("onnxruntime", f"{tiny}:int8"),
    ]
    assert all(float(row["median_ms"]) > 0 and int(row["macs"]) > 0 and row["threads"] == "2" for row in rows)
    assert int(rows[2]["bytes"]) < int(rows[1]["bytes"])
    assert "1.00" in capsys.readouterr().out


def test_what_computes_something_else_gets_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"error": 0.1, "times": [1.0, 2.0, 3.0]}
    monkeypatch.setattr(latency, "_session", lambda *args: answer)
    monkeypatch.setattr(latency, "_file", lambda *args: None)
    with pytest.raises(ValueError, match="computes something else"):
        bench_latency(config_of(tmp_path, runtimes=("onnxruntime",)))
    assert not (tmp_path / "rows.csv").exists()
    answer["error"] = float("nan")
    with pytest.raises(ValueError, match="computes something else"):
        bench_latency(config_of(tmp_path, runtimes=("onnxruntime",)))


def test_sessions_really_compare(tmp_path: Path) -> None:
    import numpy as np

    tiny = tiny_spec(tmp_path)
    network = untrained(f"{tiny}:frozen", 32)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    import torch

    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    task = Task(1, 2, model=f"{tiny}:frozen", image_size=32, data=str(tmp_path / "data.npz"))
    np.savez(task.data, images=images, expected=expected)
    with threads(1):  # a session owns its process, and sets this for good
        assert session(task)["error"] < 1e-5
        assert len(session(task)["times"]) == 2
        np.savez(task.data, images=images, expected=expected + 1)
        assert session(task)["error"] > 0.01


@pytest.mark.slow
def test_a_process_knows_what_others_registered(tmp_path: Path) -> None:
    import benchmarks.textbook  # noqa: F401 (registers the published networks)

    assert len(alone(Task(1, 2, model="hadaptive_net_s_published", image_size=64))["times"]) == 2
    with pytest.raises(RuntimeError, match="no_such_network"):
        alone(Task(1, 2, model="no_such_network"))


@pytest.mark.rendered
def test_accuracy_is_drawn_against_latency(tmp_path: Path) -> None:
    from hadaptive.bench.tradeoff import plot_tradeoff

    place = {"isa": "native", "threads": 2, "batch": 1, "image_size": 224}
    times = {"median_ms": 2.0, "lower_quartile_ms": 1.9, "upper_quartile_ms": 2.2}
    rows = [{"runtime": r, "model": m, **place, **times} for r in ("onnxruntime", "openvino") for m in ("a", "b")]
    accuracies = [{"model": "a", "test_accuracy": "0.9"}, {"model": "a", "test_accuracy": "0.8"}]
    assert plot_tradeoff(rows, accuracies, tmp_path / "a.png") == 1
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert plot_tradeoff(rows, [{"model": "c", "test_accuracy": "0.9"}], tmp_path / "c.png") == 0
    assert not (tmp_path / "c.png").exists()


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="may end in :frozen or :int8"):
        config_of(tmp_path, models=("mobilenetv3_small_050:fast",))
    with pytest.raises(ValueError, match="there is no variant 'fast' of a network"):
        bench_latency(config_of(tmp_path, models=("hadaptive_net_s:fast",)))
    with pytest.raises(ValueError, match="no setting that forbids AVX-512"):
        config_of(tmp_path, isa="avx2", runtimes=("onnxruntime",))
    with pytest.raises(ValueError, match="for a spread"):
        config_of(tmp_path, calls=1)
