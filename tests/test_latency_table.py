"""Latency tables: they time what export writes, in every runtime, and say so in their file."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from processes import forked
from torch import nn

import hadaptive
from hadaptive.cli import main
from hadaptive.measure import runner as runner_module
from hadaptive.measure import setting as setting_module
from hadaptive.measure.deploy import layers_of
from hadaptive.measure.formats import SUFFIXES
from hadaptive.measure.lowering import lower, lower_each
from hadaptive.measure.passes import prepare
from hadaptive.measure.runner import runner
from hadaptive.measure.sessions import open_file
from hadaptive.measure.setting import Setting
from hadaptive.models import ConvSpec, HadaptiveNet
from hadaptive.models.layer_spec import ach, ghost
from hadaptive.nn import AdaptiveBottleneck
from hadaptive.provenance import device_name
from hadaptive.search import LatencyTable, SearchConfig, SearchSpace, Skip, latency
from hadaptive.search.candidates import CALL, Candidates, joined_positions, shared
from hadaptive.search.spaces import open_space

ROOT = Path(hadaptive.__file__).parent
RUNTIMES = ("pytorch", "compile", "onnxruntime", "openvino", "executorch")
SIZE = (3, 16, 16)


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    """Convolutions that export joins, ACH and Ghost, a position that may be skipped."""
    stage = ((ghost(2, 3, 12), ach(4, 3, 12)), (ghost(2, 3, 12), ach(5, 3, 12, norm="batchnorm"), Skip()))
    convs = (ConvSpec(8, 2, 2, act=False), ConvSpec(8, 3, 2, act=False))
    space = SearchSpace("tiny", convs, ((ConvSpec(8, 2, 2),),), (stage,), 16, 16)
    space.save(tmp_path / "tiny.json")
    return space


def setting_of(runtime: str = "onnxruntime", **changes: Any) -> Setting:
    return Setting(**{"runtime": runtime, "image_size": 16, "num_classes": 10, "threads": 1, **changes})


# ---------------------------------------------------------------- as a person types it


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_table_in_each_runtime_and_nothing_else_is_said(runtime: str, space, tmp_path, capfd) -> None:
    flags = ["--image-size", "16", "--num-classes", "10", "--rounds", "5", "--networks", "3", "--runtime", runtime]
    output = tmp_path / "table.json"
    if runtime == "executorch":  # which takes seconds to write each
        space = SearchSpace(
            "tiny", (ConvSpec(8, 2, 2),), (), (((ghost(2, 3, 8),), (ghost(2, 3, 8), Skip())),), None, None
        )
        space.save(tmp_path / "tiny.json")
    assert main(["latency", str(tmp_path / "tiny.json"), *flags, "--frozen", "--output", str(output)]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert f"different candidates of tiny in {runtime}" in said.out
    assert len(said.out.splitlines()) < 30  # no exporter prints its graph
    table = LatencyTable.load(output)
    assert table.setting == Setting(runtime=runtime, image_size=16, num_classes=10, frozen=True)  # pyright: ignore
    assert [len(times) for times in table.times] == [len(position) for position in space.positions]
    for position, times in zip(space.positions, table.times, strict=True):
        assert all(ms == 0 for ms, candidate in zip(times, position, strict=True) if isinstance(candidate, Skip))
    assert 0 < table.range()[0] < table.range()[1]
    table.check(space, table.setting)
    with pytest.raises(ValueError, match="measured with frozen True, the search has False"):
        table.check(space, Setting(runtime=runtime, image_size=16, num_classes=10))  # pyright: ignore


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "executorch"])
def test_a_search_for_a_runtime_of_exported_files(runtime: str, tmp_path, capfd, monkeypatch) -> None:
    # Few candidates: each is exported, to ExecuTorch in seconds. S itself takes no images as small as a test's.
    other = ghost(2, 5, 8) if runtime == "executorch" else ach(4, 3, 8)
    space = SearchSpace("tiny", (ConvSpec(8, 2, 2),), (), (((ghost(2, 3, 8), other),),), 8, 8)
    space.save(tmp_path / "tiny.json")
    monkeypatch.setattr(latency, "REFERENCES", {"S": space.build((0, 1), "slow")})
    monkeypatch.setitem(latency.NETWORKS, runtime, 2)
    flags = ["--recipe", "quick", "--space", str(tmp_path / "tiny.json"), "--epochs", "2", "--image-size", "16"]
    flags += ["--train-size", "256", "--cpu", "--latency-target", "1.2xS", "--runtime", runtime]
    output = tmp_path / "search"
    assert main(["search", *flags, "--output", str(output)]) == 0
    assert capfd.readouterr().err == ""
    table = LatencyTable.load(output / "latency.json")
    assert table.setting.runtime == runtime
    assert table.setting.device == "cpu"
    summary = json.loads((output / "summary.json").read_text())
    assert summary["target_ms"] == pytest.approx(1.2 * table.references["S"])
    assert set(summary["measured_ms"]) == {"found", "S"}


# ---------------------------------------------------------------- what is timed is what export writes


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that runners write, kept."""
    paths: list[Path] = []

    def keep(nets: Any, files: list[Path], *args: Any) -> None:
        lower_each(nets, files, *args)
        for file in files:
            paths.append(tmp_path / f"{len(paths)}.onnx")
            paths[-1].write_bytes(file.read_bytes())

    lower_each = runner_module.lower_each
    monkeypatch.setattr(runner_module, "lower_each", keep)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True], ids=["dynamic", "frozen"])
def test_a_network_is_timed_as_it_is_exported(frozen: bool, space, written, tmp_path, monkeypatch) -> None:
    spec = space.build((0, 0, 1, 1))
    spec.save(tmp_path / "net.json")
    runner(HadaptiveNet(spec, 10), setting_of(frozen=frozen), SIZE)()
    flags = [
        "--image-size",
        "16",
        "--num-classes",
        "10",
        "--data",
        "digits",
        "--images",
        "4",
        "--calibration",
        "8",
    ]
    flags += ["--freeze"] if frozen else []
    assert main(["export", str(tmp_path / "net.json"), *flags, "--output", str(tmp_path / "net.onnx")]) == 0
    assert kinds(written[0]) == kinds(tmp_path / "net.onnx")
    assert ("TopK" in kinds(written[0])) is not frozen
    assert ("Gather" in kinds(written[0])) is not frozen


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_graphs_that_are_exported_together_are_those_of_each(form: str, space, tmp_path) -> None:
    torch.manual_seed(0)
    network = HadaptiveNet(space.build((0, 0, 1, 1)), 10).eval()
    rows = ([network.stem], list(network.stages[1]), [nn.ReLU()])
    parts = [prepare(nn.Sequential(*layers))[0] for layers in rows]
    sizes = [(3, 16, 16), (8, 9, 7), (5, 1, 1)]
    paths = [tmp_path / f"{n}{SUFFIXES[form]}" for n in range(3)]
    lower_each(parts, paths, form, sizes)
    for part, path, size in zip(parts, paths, sizes, strict=True):
        alone = tmp_path / f"alone{SUFFIXES[form]}"
        lower(part, alone, form, size)
        if form == "onnx":
            assert kinds(path) == kinds(alone)
        for batch in (1, 3):
            x = torch.randn(batch, *size)
            np.testing.assert_allclose(open_file(path)[0](x.numpy()), part(x).numpy(), rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(open_file(path)[0](x.numpy()), open_file(alone)[0](x.numpy()))
    kept = {".bin", ".xml"} if form == "openvino" else {".onnx"}
    assert {path.suffix for path in tmp_path.iterdir()} == kept | {".json"}  # no graph on the way to another


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True], ids=["dynamic", "frozen"])
def test_candidates_are_timed_as_they_are_exported_in_a_network(frozen: bool, space, written, tmp_path) -> None:
    setting = setting_of(frozen=frozen)
    candidates = Candidates(space, setting)
    choice = (1, 0, 1, 1)
    names = [candidates.joined[1, 0], candidates.places[0][1], candidates.places[1][1], candidates.head]
    for name in names:
        layers, size = candidates.parts[name]
        runner(layers, setting, size)()
    parts = [kind for path in written for kind in kinds(path)]
    runner(HadaptiveNet(space.build(choice), 10), setting, SIZE)()
    whole = kinds(written[-1])
    # What numbers the images of a batch is there once, not in each block.
    counting = {"Shape", "Range", "Unsqueeze", "Squeeze", "Add", "Mul", "Reshape", "Cast", "Constant"}
    assert sorted(kind for kind in parts if kind not in counting) == sorted(k for k in whole if k not in counting)
    assert {"BatchNormalization", "Softsign", "GlobalAveragePool", "Gemm"} <= set(parts)
    assert ("TopK" in parts) is not frozen
    if frozen:
        assert sorted(parts) == sorted(whole)


def test_convolutions_that_export_joins_are_timed_joined(space, written) -> None:
    candidates = Candidates(space, setting_of())
    assert joined_positions(space) == 2
    assert joined_positions(open_space("published")) == 2
    assert sorted(candidates.joined) == [(0, 0), (1, 0)]
    layers, size = candidates.parts[candidates.joined[0, 0]]
    runner(layers, setting_of(), size)()
    assert kinds(written[0]).count("Conv") == 1
    assert Candidates(space, setting_of("pytorch")).joined == {}


def test_times_share_what_was_measured_together() -> None:
    a, b = (1.0, 3.0), (10.0, 20.0, 40.0)
    together = {(i, j): a[i] + b[j] for i in range(2) for j in range(3)}
    first, second = shared(together)
    for (i, j), ms in together.items():
        assert first[i] + second[j] == pytest.approx(ms)
    assert min(*first, *second) > 0
    assert shared({}) == ()


def test_a_call_is_no_part_of_a_candidate(space) -> None:
    candidates = Candidates(space, setting_of())
    medians = dict.fromkeys(candidates.parts, 5.0) | {CALL: 2.0}
    times, rest = candidates.times(medians)
    assert times[2:] == ((3.0, 3.0), (3.0, 3.0, 0.0))
    assert rest == 3.0
    assert times[0][0] + times[1][0] == pytest.approx(3.0)
    candidates.setting = setting_of("pytorch")
    assert candidates.times(medians)[1] == 5.0


@pytest.mark.slow
def test_many_networks_compile_without_knowing_of_each_other(monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # what is counted is Dynamo's
    setting = setting_of("compile")
    spec = SearchSpace("one", (ConvSpec(8, 2, 2),), (), (((ach(4, 3, 8),),),), 8, 8).build((0, 0))
    for number in range(10):  # PyTorch gives up after 8 of one code object
        block = next(m for m in layers_of(HadaptiveNet(spec, 4)) if isinstance(m, AdaptiveBottleneck))
        runner(torch.nn.Sequential(block), setting, (8, 4 + number, 4 + number))()


def test_only_one_file_exports_to_onnx() -> None:
    found = [p for p in ROOT.rglob("*.py") if re.search(r"onnx\s*\.\s*export\b|onnx import export", p.read_text())]
    assert [str(path.relative_to(ROOT)) for path in found] == ["measure/onnx_graph.py"]


# ---------------------------------------------------------------- mistakes, and older files


def old_table(path: Path, runtime: str) -> Path:
    """A table as version 1 wrote it."""
    setting = {"runtime": runtime, "device": "cpu", "image_size": 16, "in_chans": 3, "num_classes": 10, "batch": 1}
    setting |= {"threads": 0, "channels_last": True}
    data: dict[str, Any] = {"format": "hadaptive-latency", "version": 1, "space": "abc", "setting": setting}
    data |= {"times": [[1.0]], "rest": 1.0, "slope": 1.0, "offset": 0.0, "references": {"S": 2.0}}
    data |= {"networks": {"number": 3, "median_error": 0.0}, "where": {"device": "a computer"}}
    path.write_text(json.dumps(data))
    return path


def test_tables_of_version_1_still_load_but_for_those_of_another_exporter(tmp_path: Path) -> None:
    table = LatencyTable.load(old_table(tmp_path / "old.json", "pytorch"))
    assert table.setting.frozen is False
    assert table.times == ((1.0,),)
    table.save(tmp_path / "new.json")
    assert LatencyTable.load(tmp_path / "new.json") == table
    with pytest.raises(ValueError, match="graphs that export does not write: measure anew") as caught:
        LatencyTable.load(old_table(tmp_path / "old.json", "onnxruntime"))
    assert "\n" not in str(caught.value)
    data = json.loads((tmp_path / "new.json").read_text())
    for version in (3, True, None):
        (tmp_path / "new.json").write_text(json.dumps({**data, "version": version}))
        with pytest.raises(ValueError, match="holds no latency table"):
            LatencyTable.load(tmp_path / "new.json")
    for other in ([], "text", 3):
        (tmp_path / "new.json").write_text(json.dumps(other))
        with pytest.raises(ValueError, match="holds no latency table"):
            LatencyTable.load(tmp_path / "new.json")


@pytest.mark.parametrize(
    ("runtime", "package", "extra"),
    [("onnxruntime", "onnxslim", "onnx"), ("openvino", "openvino", "openvino"), ("openvino", "onnx", "openvino")],
)
def test_missing_packages_are_one_sentence(runtime, package, extra, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match="needs the package") as caught:
        setting_of(runtime).check()
    assert str(caught.value) == f'runtime {runtime} needs the package {package}: pip install "hadaptive[{extra}]"'


def test_settings_that_cannot_be_measured(monkeypatch) -> None:
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(ValueError, match=f"runtime {runtime} is measured on the CPU only"):
            setting_of(runtime, device="cuda").check()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU here"):
        setting_of("compile", device="cuda").check()
    monkeypatch.setattr(setting_module.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        setting_of("compile").check()
    with pytest.raises(ValueError, match="runtime must be one of"):
        setting_of("tensorflow").check()


def test_threads_of_this_process_matter_to_pytorch_only(space) -> None:
    where = {"device": device_name("cpu"), "threads": torch.get_num_threads() + 1}
    times = tuple(tuple(1.0 for _ in position) for position in space.positions)
    for runtime in RUNTIMES:
        setting = setting_of(runtime, threads=0)
        table = LatencyTable(space.fingerprint, setting, times, 1.0, 1.0, 0.0, {}, {}, where)
        if runtime in ("pytorch", "compile"):
            with pytest.raises(ValueError, match="measured with"):
                table.check(space, setting)
        else:
            table.check(space, setting)


def measure_with_other_threads(space: SearchSpace) -> None:
    for threads in (1, 2):
        runner(nn.Sequential(nn.ReLU()), setting_of("executorch", threads=threads), SIZE)()


def test_executorch_has_one_pool_of_threads_in_a_process(space) -> None:
    done = forked(measure_with_other_threads, space)
    assert done.returncode
    assert (
        "ExecuTorch has 1 threads in this process since it ran its first program, and cannot have 2" in done.stderr
    )


def test_a_search_on_a_gpu_may_ask_for_a_runtime_of_the_cpu() -> None:
    for runtime in ("onnxruntime", "openvino"):
        config = SearchConfig().changed(runtime=runtime, frozen=True)  # pyright: ignore[reportArgumentType]
        setting = config.setting(10, "cuda")
        assert (setting.device, setting.runtime, setting.frozen) == ("cpu", runtime, True)
    assert SearchConfig().changed(runtime="compile").setting(10, "cuda").device == "cuda"
