"""Exported files: the same classes in every runtime, ties as in PyTorch, and what a person is told."""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_export_passes import fixed, network
from tiny import tiny_config

from hadaptive.cards import ModelCard
from hadaptive.cli import main
from hadaptive.data import Preprocessing
from hadaptive.export.config import ExportConfig
from hadaptive.export.proof import TRAINED, compare
from hadaptive.measure.formats import SUFFIXES, WEIGHTS
from hadaptive.measure.lowering import write
from hadaptive.measure.passes import prepare
from hadaptive.measure.runtimes import Run
from hadaptive.measure.sessions import load
from hadaptive.models import HadaptiveNet
from hadaptive.nn import expansions, top_k_channels
from hadaptive.train import train

# Libraries' own, while they export.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def card_of(model, size: int = 16) -> ModelCard:
    preprocessing = Preprocessing(image_size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    return ModelCard("tiny", model.spec, ["é", "b", "c", "d"], preprocessing, 0.3)


def deployed(model):
    return prepare(model, 16)[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], tuple[HadaptiveNet, Path]]:
    """A network and its file in a format, with selections of each image or fixed ones: written once."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def get(name: str, frozen: bool) -> tuple[HadaptiveNet, Path]:
        model = fixed(network()) if frozen else network()
        model.to(memory_format=torch.channels_last)  # as training lays weights out: pooling would gather then
        path = folder / f"{frozen}{SUFFIXES[name]}"
        about = {"commit": "abc", "source": "tiny"}
        write(model if name in WEIGHTS else deployed(model), path, name, card_of(model), about)
        return model, path

    return get


@pytest.mark.parametrize("frozen", [False, True], ids=["dynamic", "frozen"])
@pytest.mark.parametrize("name", sorted({*SUFFIXES} - {"coreml"}))
def test_every_format_computes_the_same_for_any_batch(name: str, frozen: bool, exported) -> None:
    if name == "ncnn" and not frozen:
        with pytest.raises(ValueError, match="selects nothing by scores: pass --freeze"):
            exported(name, frozen)
        return
    model, path = exported(name, frozen)
    run, card = load(path, threads=1, trust=True)
    assert card == card_of(model)
    agreement = compare(model, run, [torch.randn(n, 3, 16, 16) for n in (1, 2, 7)])
    assert agreement.images == 10
    assert agreement.top1 == 1
    assert agreement.holds


def test_a_frozen_graph_gathers_and_concatenates_nothing(exported) -> None:
    for frozen in (False, True):
        graph = onnx.load(exported("onnx", frozen)[1])
        kinds = [node.op_type for node in graph.graph.node]
        assert kinds.count("Softsign") == 2
        assert kinds.count("GlobalAveragePool") == 1
        assert "Concat" not in kinds
        read = {name for node in graph.graph.node for name in node.input}
        assert {tensor.name for tensor in graph.graph.initializer} <= read
        assert ("TopK" in kinds) is not frozen
        assert bool({"Gather", "GatherND", "GatherElements"} & set(kinds)) is not frozen
        assert [opset.version for opset in graph.opset_import if opset.domain in ("", "ai.onnx")] == [18]


@pytest.mark.parametrize("name", ["onnx", "openvino", "executorch", "torch"])
def test_equal_scores_choose_the_lower_channel_everywhere(name: str, tmp_path: Path) -> None:
    model = network(order="rank")
    for layer in expansions(model).values():
        torch.nn.init.zeros_(layer.score.conv.weight)  # every score is equal
    run_path = tmp_path / f"net{SUFFIXES[name]}"
    write(deployed(model), run_path, name, card_of(model), {})
    assert top_k_channels(torch.zeros(1, 12), 5).tolist() == [[0, 1, 2, 3, 4]]
    images = torch.randn(5, 3, 16, 16)
    run, _ = load(run_path, trust=True)
    lower = network(order="rank")
    for layer in expansions(lower).values():
        layer.freeze(torch.arange(layer.k))
    assert compare(lower, run, [images]).holds
    # It could fail: with the upper channels it does.
    for layer in expansions(lower).values():
        layer.freeze(torch.arange(layer.channels - layer.k, layer.channels))
    assert not compare(lower, run, [images]).holds


@pytest.mark.parametrize("order", ["rank", "index"])
def test_only_differences_at_near_ties_are_excused(order: str) -> None:
    model, images = network(order=order), torch.randn(24, 3, 16, 16)

    def differing(other: torch.nn.Module, row: int) -> Run:
        def run(x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                logits = other(torch.from_numpy(x)).numpy()
            logits[row : row + 1] += 1
            return logits

        return run

    agreement = compare(model, differing(copy.deepcopy(model), 2), [images[:12], images[12:]])
    assert (agreement.first, agreement.near_ties) == (2, 0)
    for layer in expansions(model).values():
        torch.nn.init.zeros_(layer.score.conv.weight)  # every score is equal
    run, halves = differing(copy.deepcopy(model), 2), [images[:12], images[12:]]
    agreement = compare(model, run, halves, dataclasses.replace(TRAINED, excused=0.1))
    assert (agreement.first, agreement.near_ties) == (None, 2)
    assert agreement.relative_error < 1e-5
    assert agreement.near_tie_error > 1e-3
    assert compare(model, run, halves, dataclasses.replace(TRAINED, excused=0.05)).first == 2
    moved = compare(model, lambda x: model(torch.from_numpy(x)).detach().numpy() + 1, [images])
    assert (moved.first, moved.near_ties) == (0, 24)  # too many for chance
    frozen = fixed(model)  # nothing is selected by scores: nothing is excused
    agreement = compare(frozen, differing(copy.deepcopy(frozen), 2), [images])
    assert (agreement.first, agreement.near_ties) == (2, 0)


def test_a_run_is_exported_proved_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_config(tmp_path), quiet=True)
    run = tmp_path / "run"
    assert main(["export", str(run), "--images", "40"]) == 0
    proof = json.loads((run / "network.onnx.proof.json").read_text())
    assert proof["holds"] is True
    assert proof["images"] == 40
    assert proof["top1"] == 1
    assert set(proof["latency"]) == {"1 threads", "2 threads"}
    assert "| top1 | 1.0 |" in (run / "network.onnx.proof.md").read_text()
    assert main(["export", str(run), "--images", "40"]) == 1
    assert "never overwritten" in capsys.readouterr().err
    frozen = ["export", str(run), "--freeze", "--images", "40", "--calibration", "64"]
    assert main([*frozen, "--force"]) == 0
    proof = json.loads((run / "frozen.onnx.proof.json").read_text())
    assert len(proof["layers"]) == 2
    assert 0 <= proof["accuracy_frozen"] <= 1
    # The file alone predicts what the run does.
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / "image.png")
    capsys.readouterr()
    answers = []
    select = json.loads((run / "config.json").read_text())["select"]
    for source, *flags in ((run, "--weights", select), (run / "network.onnx",)):
        assert main(["predict", str(source), str(tmp_path / "image.png"), "--json", *flags]) == 0
        answers.append(json.loads(capsys.readouterr().out)["classes"])
    assert [name for name, _ in answers[0]] == [name for name, _ in answers[1]]
    assert main(["predict", str(run / "network.onnx"), str(tmp_path), "--weights", "last"]) == 1
    assert "--weights is of a run folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--image-size is that of the run"):
        ExportConfig(str(run), image_size=64)
    with pytest.raises(ValueError, match="pass --finetune as well"):
        ExportConfig(str(run), finetune_lr=0.1)


def test_a_file_that_computes_something_else_is_kept_and_said(tmp_path: Path, monkeypatch, capsys) -> None:
    train(tiny_config(tmp_path), quiet=True)
    from hadaptive.measure import passes

    def spoiled(net) -> str:
        net.layers[0].bias.add_(0.5) if hasattr(net.layers[0], "bias") else net.layers[0][0].bias.add_(0.5)
        return "spoiled"

    monkeypatch.setattr(passes, "absorb", spoiled)
    assert main(["export", str(tmp_path / "run"), "--images", "8", "--format", "torch"]) == 1
    assert "image 0 is the first to differ, most in output " in capsys.readouterr().err
    assert (tmp_path / "run" / "network.pt2").is_file()
    assert json.loads((tmp_path / "run" / "network.pt2.proof.json").read_text())["holds"] is False


def test_bare_names_have_seeded_weights(tmp_path: Path) -> None:
    flags = ["--image-size", "32", "--num-classes", "7", "--images", "4", "--format", "torch"]
    assert main(["export", "hadaptive_net_s", *flags, "--output", str(tmp_path / "a.pt2")]) == 0
    assert main(["export", "test_resnet", *flags, "--output", str(tmp_path / "b.pt2")]) == 0
    run, card = load(tmp_path / "a.pt2", trust=True)
    assert run(np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 7)
    assert card.preprocessing.image_size == 32


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["nowhere"], "no model 'nowhere'"),
        (["runs/nowhere"], "there is no run folder runs/nowhere"),
        (["net.onnx"], "would be an exported file"),
        (["hadaptive_net_s", "--output", "net.txt"], "ends in .onnx"),
        (["hadaptive_net_s", "--output", "no/such/net.onnx"], "no folder"),
        (["mobilenetv3_small_050", "--freeze"], "no selections to freeze"),
        (["hadaptive_net_s", "--data", "wds/nowhere", "--format", "torch"], "stream"),
    ],
)
def test_mistakes(flags: list[str], sentence: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *flags]) == 1
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (tmp_path / "bad" / name).mkdir(parents=True)
        for number in range(9):
            (tmp_path / "bad" / name / f"{number}.png").write_text(f"no image {name}{number}")
    flags = ["--image-size", "32", "--num-classes", "2", "--data", str(tmp_path / "bad"), "--format", "torch"]
    assert main(["export", "hadaptive_net_s", *flags, "--output", str(tmp_path / "net.pt2")]) == 1
    assert "not one of the images to export with could be read" in capsys.readouterr().err
    assert not (tmp_path / "net.pt2").exists()


def test_fixed_selections_are_fixed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_config(tmp_path, epochs=1), quiet=True)
    flags = ["--freeze", "--force", "--finetune", "1", "--images", "8", "--format", "safetensors"]
    assert main(["export", str(tmp_path / "run"), *flags]) == 0
    assert main(["export", str(tmp_path / "run" / "finetuned"), *flags]) == 1
    assert "fixed already: leave out --freeze" in capsys.readouterr().err


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "alone.xml").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"needs its weights beside it, and .*alone.bin is not there"):
        load(tmp_path / "alone.xml")
    (tmp_path / "broken.bin").write_bytes(b"nothing")
    (tmp_path / "broken.ncnn.bin").write_bytes(b"nothing")
    for suffix in SUFFIXES.values():
        (tmp_path / f"broken{suffix}").write_bytes(b"nothing")
        if suffix == ".mlpackage":
            continue  # which is a folder, and runs on macOS only: tests/test_phones.py
        with pytest.raises(ValueError, match="damaged or was not written by"):
            load(tmp_path / f"broken{suffix}", trust=True)
    with pytest.raises(ValueError, match="can run code"):
        load(tmp_path / "broken.pt2")
    with pytest.raises(ValueError, match="there is no file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="must end in one of"):
        load(tmp_path / "net.h5")


def test_executorch_files_are_checked_and_run_in_any_batch(exported, tmp_path: Path) -> None:
    model, path = exported("executorch", True)
    one, _ = load(path, 1)
    two, _ = load(path, 2)  # the pool stays as it is: changing it would end the process
    images = torch.randn(70, 3, 16, 16)
    for run in (one, two, one):
        assert compare(model, run, [images]).holds
    with pytest.raises(ValueError, match="expected images of shape"):
        one(np.zeros((1, 3, 8, 8), np.float32))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # a bit of a weight, which the runtime would not notice
    (tmp_path / "damaged.pte").write_bytes(content)
    with pytest.raises(ValueError, match="checksum does not fit"):
        load(tmp_path / "damaged.pte")


def test_metadata_names_classes_and_preprocessing(exported) -> None:
    props = {p.key: p.value for p in onnx.load(exported("onnx", False)[1]).metadata_props}
    data = json.loads(props["hadaptive"])
    assert data["card"]["classes"][0] == "é"
    assert data["about"] == {"commit": "abc", "source": "tiny"}
