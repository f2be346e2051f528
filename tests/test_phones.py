"""Files for phones: ncnn, proved as the others are, and Core ML, which is written here and runs on macOS."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import card_of, deployed
from test_export_passes import fixed, network
from tiny import tiny_config

from hadaptive.cli import main
from hadaptive.export.proof import compare
from hadaptive.measure.lowering import write
from hadaptive.measure.sessions import load
from hadaptive.train import train

# Libraries' own, while they export.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained one, beside a picture."""
    folder = tmp_path_factory.mktemp("phones")
    train(tiny_config(folder, epochs=1, train_size=64), quiet=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).save(folder / "image.png")
    return folder / "run"


def test_ncnn_is_proved_and_predicts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "ncnn", "--images", "8"]) == 1
    assert "ncnn has no operators that select channels for each image: pass --freeze" in capsys.readouterr().err
    words = ["export", str(run), "--freeze", "--force", "--calibration", "16", "--images", "20"]
    assert main([*words, "--format", "ncnn"]) == 0
    proof = json.loads((run / "frozen.ncnn.param.proof.json").read_text())
    assert (proof["holds"], proof["images"], proof["top1"]) == (True, 20, 1)
    assert proof["bytes"] == sum((run / f"frozen.ncnn.{end}").stat().st_size for end in ("param", "bin"))
    assert main([*words, "--format", "safetensors"]) == 0
    said = []
    for name in ("frozen.ncnn.param", "frozen.safetensors"):
        capsys.readouterr()
        assert main(["predict", str(run / name), str(run.parent / "image.png"), "--json"]) == 0
        said.append(dict(json.loads(capsys.readouterr().out)["classes"]))
    assert said[0] == pytest.approx(said[1], abs=1e-5)
    assert main(["export", str(run), "--format", "ncnn", "--freeze", "--output", str(run / "net.param")]) == 1
    assert "ends in .ncnn.param" in capsys.readouterr().err


def test_networks_of_others_in_ncnn_and_what_it_lacks(tmp_path: Path, capsys) -> None:
    words = ["--format", "ncnn", "--image-size", "32", "--num-classes", "3", "--images", "2"]
    assert main(["export", "test_resnet", *words, "--output", str(tmp_path / "net.ncnn.param")]) == 0
    words[3] = "160"
    assert main(["export", "test_vit", *words, "--output", str(tmp_path / "vit.ncnn.param")]) == 1
    assert "ncnn has no operator" in capsys.readouterr().err
    assert not (tmp_path / "vit.ncnn.param").exists()


def test_damage_to_ncnn_files_is_noticed(tmp_path: Path) -> None:
    model, path = fixed(network()), tmp_path / "net.ncnn.param"
    write(deployed(model), path, "ncnn", card_of(model), {})
    for part in (path, path.with_suffix(".bin")):
        content = part.read_bytes()
        part.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
        with pytest.raises(ValueError, match="checksum does not fit"):
            load(path)
        part.write_bytes(content)
    load(path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(ValueError, match="needs its weights beside it"):
        load(path)


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is proved there as any other format")
def test_core_ml_is_written_and_says_that_it_is_not_proved(run: Path, capsys) -> None:
    assert main(["export", str(run), "--format", "coreml", "--images", "8"]) == 0
    sentence = "converted, and not proved: Core ML runs networks on macOS only"
    assert sentence in capsys.readouterr().out.replace("\n", " ")
    proof = json.loads((run / "network.mlpackage.proof.json").read_text())
    assert (proof["holds"], proof["not_proved"]) == (None, sentence)
    assert sentence in (run / "network.mlpackage.proof.md").read_text()
    assert main(["predict", str(run / "network.mlpackage"), str(run.parent / "image.png")]) == 1
    assert "cannot be run here: Core ML runs networks on macOS only" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "coreml", "--images", "8"]) == 1
    assert "never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("order", ["rank", "index"])
def test_a_core_ml_package_says_what_it_is_and_is_asked_so(order: str, tmp_path: Path, monkeypatch) -> None:
    """What macOS would compute is not known here: a network stands in for it."""
    from coremltools.models import MLModel

    dynamic = network(order=order)
    for model in (dynamic, fixed(network())):
        path = tmp_path / f"{order}-{model is dynamic}.mlpackage"
        write(deployed(model), path, "coreml", card_of(model), {})
        spec = MLModel(str(path), skip_model_load=True).get_spec()
        (read,), (made,) = spec.description.input, spec.description.output
        assert (read.name, list(read.type.multiArrayType.shape), made.name) == ("images", [1, 3, 16, 16], "logits")
        (block,) = spec.mlProgram.functions["main"].block_specializations.values()
        kinds = {op.type for op in block.operations}
        assert {"conv", "linear"} <= kinds
        assert ("topk" in kinds) is ("gather" in kinds) is (model is dynamic)

        def predict(self: MLModel, data: dict, model=model) -> dict:
            with torch.no_grad():
                return {"logits": model(torch.from_numpy(data["images"])).numpy()}

        monkeypatch.setattr(MLModel, "predict", predict)
        monkeypatch.setattr("hadaptive.measure.formats.cannot_run", lambda name: None)
        found, card = load(path)
        assert card == card_of(model)
        assert compare(model, found, [torch.randn(3, 3, 16, 16)]).holds
