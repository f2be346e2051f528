"""The operator benchmark: rivals that compute the same, memory counted right, rows with their provenance."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import benchmarks.textbook  # noqa: F401 (registers the published networks)
from benchmarks import gpu, operators
from benchmarks.operators import OpsConfig, SlicedExpansion, bench_ops, saved_bytes
from hadaptive.bench.config import NetworksConfig
from hadaptive.bench.networks import bench_networks
from hadaptive.errors import UserError
from hadaptive.files import read_csv
from hadaptive.measure.timing import interleaved
from hadaptive.nn import CrossHadamardExpansion

ROOT = Path(__file__).parents[1]


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(operators, "SHAPES", ((8, 4, 5, 3),))
    threads = torch.get_num_threads()
    config = OpsConfig(results=tmp_path / "new" / "ops.csv", rounds=3, warmup=1, compiled=False, threads=1)
    rows = bench_ops(config)
    assert torch.get_num_threads() == threads
    written = read_csv(config.results)
    assert len(written) == len(rows) == 2 * (4 + 4)
    assert {row["layout"] for row in written} == {"nchw", "channels_last"}
    assert all(row["commit"] and row["torch"] and row["threads"] == "1" for row in written)
    assert all(
        float(row["lower_quartile_ms"]) <= float(row["median_ms"]) <= float(row["upper_quartile_ms"])
        for row in written
    )
    assert "x fused" in capsys.readouterr().out


def test_a_rival_that_computes_something_else_gives_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "SHAPES", ((8, 4, 5, 3),))
    forward = SlicedExpansion.forward
    monkeypatch.setattr(SlicedExpansion, "forward", lambda self, x, generator=None: 1.01 * forward(self, x))
    config = OpsConfig(results=tmp_path / "ops.csv", rounds=2, compiled=False)
    with pytest.raises(ValueError, match="slices does not compute"):
        bench_ops(config)
    assert not config.results.exists()


def test_saved_bytes_counts_storages_once_and_no_parameters() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    assert saved_bytes(nn.Linear(8, 8), x) == 4 * 8 * 4
    assert saved_bytes(nn.Sequential(nn.Tanh(), nn.Linear(8, 3)), x) == 4 * 8 * 4  # the same output, kept twice
    assert saved_bytes(nn.Identity(), x) == 0


def test_fused_expansion_saves_little_more_than_its_input() -> None:
    x = torch.randn(2, 32, 9, 9, requires_grad=True)
    fused, plain = (saved_bytes(kind(32, 16).train(), x) for kind in (CrossHadamardExpansion, SlicedExpansion))
    assert fused < 2 * x.nbytes
    assert plain > 5 * fused


def test_variants_take_turns() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, warmup=1, rounds=2)
    assert "".join(calls) == "ababab"
    assert [len(t) for t in times.values()] == [2, 2]


@pytest.mark.rendered
def test_sweep_leaves_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "SHAPES", ((8, 4, 5, 3),))
    monkeypatch.setattr(operators, "SWEEP_BATCHES", (1, 2))
    monkeypatch.setattr(operators, "SWEEP_K", (2, 3))
    monkeypatch.setattr(operators, "SWEEP_SIDES", (3, 5))
    monkeypatch.setattr(operators, "SWEEP_CHANNELS", 6)
    config = OpsConfig(results=tmp_path / "ops.csv", rounds=2, warmup=0, compiled=False, sweep=True)
    rows = [row for row in bench_ops(config) if row["what"] == "sweep"]
    assert len(rows) == 2 * (2 + 4)
    assert (tmp_path / "ops-sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("setting", "words"), [({"dtype": "int8"}, "dtype must be one of"), ({"device": "cuda"}, "no GPU")]
)
def test_bad_settings_are_one_sentence(
    setting: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=words):
        bench_ops(OpsConfig(results=tmp_path / "ops.csv", **setting))


def test_networks_give_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ("hadaptive_net_s", "hadaptive_net_s_published")
    config = NetworksConfig(models=models, results=tmp_path / "n.csv", image_size=64, batch=2, rounds=2)
    assert len(bench_networks(config)) == 2 * 2 * 2
    assert {row["what"] for row in read_csv(config.results)} == {"training step", "eval latency"}
    assert "hadaptive_net_s_published" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no model 'resnet_of_mine'"):
        bench_networks(NetworksConfig(models=("resnet_of_mine",), results=config.results))


def test_the_gpu_run_needs_no_more_than_a_gpu_machine_has() -> None:
    """No command line, no Numba, no training libraries; and without a GPU it says so in one line."""
    missing = ("tyro", "numba", "sklearn", "torchmetrics", "accelerate", "webdataset", "datasets", "onnx")
    code = (
        f"import sys\nfor name in {missing}: sys.modules[name] = None\n"
        "import torch; torch.cuda.is_available = lambda: False\n"
        "from benchmarks.__main__ import main; sys.exit(main(['gpu', 'nowhere']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "benchmarks gpu: there is no GPU that PyTorch can use here\n"
    assert (done.returncode, done.stdout) == (1, "")


def test_the_gpu_run_checks_first_goes_on_after_a_failure_and_names_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def fail(results: Path) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "_check", lambda: done.append("doctor"))
    monkeypatch.setattr(gpu, "_test", lambda: done.append("tests"))
    monkeypatch.setattr(gpu, "provenance", lambda device: {"device": device})
    steps = {"one": gpu.Step(1, fail), "two": gpu.Step(1, lambda results: done.append("two"))}
    monkeypatch.setattr(gpu, "STEPS", {**steps, "three": gpu.Step(10_000, fail)})
    with pytest.raises(UserError, match=r"^steps failed: one$"):
        gpu.bench_gpu(tmp_path / "rows")
    assert done == ["doctor", "tests", "two"]
    rows = read_csv(tmp_path / "rows" / "gpu-steps.csv")
    assert [(row["step"], row["outcome"]) for row in rows] == [
        ("one", "RuntimeError: out of memory"),
        ("two", "done"),
    ]
    assert 'STEPS="three"' in capsys.readouterr().out
    gpu.bench_gpu(tmp_path / "rows", ("two",))
    assert done[3:] == ["doctor", "two"]
    with pytest.raises(UserError, match="unknown step 'four'; choose from one, two, three"):
        gpu.bench_gpu(tmp_path / "rows", ("four",))


def test_the_gpu_run_times_what_its_page_lists() -> None:
    page = (ROOT / "benchmarks" / "GPU.md").read_text(encoding="utf-8")
    first = " ".join(re.findall(r"^\| (.*?) \|", page, re.MULTILINE))
    assert re.findall(r"`([a-z0-9]+)`", first) == list(gpu.STEPS)
