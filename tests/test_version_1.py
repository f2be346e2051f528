"""Folders that the first version left behind: flat settings, and no list of their images."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hadaptive.cli import main
from hadaptive.evaluate import evaluate_run
from hadaptive.runs import RunFolder
from hadaptive.search import SearchConfig, StudyConfig, resume
from hadaptive.train import TrainConfig, read_config
from hadaptive.train import resume as resume_training

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FOLDERS = Path(__file__).parent / "version_1"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders, where their relative paths lead, and the images they are of."""
    shutil.copytree(FOLDERS, tmp_path, dirs_exist_ok=True)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "newt"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_evaluates_to_the_figures_it_had(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then = json.loads((old / "folder-finished/summary.json").read_text())["test"]
    evaluation = evaluate_run("folder-finished", cpu=True)[0]
    assert evaluation.total == then["images"]
    assert evaluation.correct == round(then["accuracy"] * then["images"])
    assert evaluation.loss == pytest.approx(then["loss"], rel=1e-4)
    assert main(["evaluate", "folder-finished", "--cpu"]) == 0
    assert f"accuracy {evaluation.correct} of {then['images']} (" in capsys.readouterr().out
    assert main(["report", "folder-finished", "--cpu"]) == 0
    assert f"{evaluation.correct} of {then['images']} (" in Path("folder-finished/report.html").read_text()


def test_a_run_predicts_and_is_exported(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "folder-finished", "pets/cat/0.png", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert {name for name, _ in row["classes"]} == {"cat", "dog", "newt"}
    flags = ["--format", "safetensors", "--images", "8", "--freeze", "--finetune", "1", "--force"]
    assert main(["export", "folder-finished", *flags]) == 0
    tuned = RunFolder.open("folder-finished/finetuned").open_data().manifest
    drawn = RunFolder.open("folder-finished").open_data().manifest
    assert set(tuned.names("test")) == set(drawn.names("test"))
    begun = ["train", "--init", "folder-finished", "--data", "pets", "--epochs", "1", "--batch-size", "8",
             "--image-size", "8", "--cpu", "--quiet"]  # fmt: skip
    assert main([*begun, "--output", "next"]) == 0
    assert set(RunFolder.open("next").open_data().manifest.names("test")) == set(drawn.names("test"))
    shutil.copy("pets/cat/0.png", "pets/cat/a.png")
    assert main([*begun, "--output", "other"]) == 1
    assert "cannot be told from others" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_to_the_weights_it_would_have_had(old: Path) -> None:
    resume_training("folder-interrupted", quiet=True)
    assert RunFolder.open("folder-interrupted").read_manifest() is not None  # from now on it has a list
    runs = (RunFolder.open(name) for name in ("folder-interrupted", "folder-finished"))
    ours, theirs = (run.load_model("last")[0] for run in runs)
    # A later BatchNorm takes these biases away: their gradients are rounding, and Adam makes them large.
    idle = without_gradient(theirs)
    assert idle
    assert all(name.endswith("1.bias") for name in idle)
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        if name not in idle:
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def without_gradient(model: torch.nn.Module) -> set[str]:
    """The parameters that no loss depends on, as float64 shows it."""
    exact = copy.deepcopy(model).double().train()
    images, targets = torch.randn(16, 3, 8, 8, dtype=torch.float64), torch.randint(3, (16,))
    torch.nn.functional.cross_entropy(exact(images), targets).backward()
    gradients = {name: p.grad for name, p in exact.named_parameters()}
    return {name for name, grad in gradients.items() if grad is not None and grad.abs().max() < 1e-14}


@pytest.mark.parametrize("command", ["evaluate", "resume", "export"])
def test_a_folder_that_has_grown_since_is_refused(
    old: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(12):
        shutil.copy(old / f"pets/cat/{i}.png", old / f"pets/dog/new{i}.png")
    flags = {
        "evaluate": ["evaluate", "folder-finished", "--cpu"],
        "resume": ["train", "--resume", "folder-interrupted"],
        "export": ["export", "folder-finished", "--format", "safetensors"],
    }
    assert main(flags[command]) == 1
    assert "cannot be told from others" in capsys.readouterr().err


def test_an_interrupted_search_goes_on(old: Path) -> None:
    summary = resume("search-interrupted", quiet=True)
    assert (old / "search-interrupted/found.json").is_file()
    assert len(summary["choice"]) == 3


def test_flat_settings_are_read_into_their_parts(old: Path) -> None:
    stored = json.loads((old / "folder-finished/config.json").read_text())
    config = TrainConfig.from_dict(stored)
    assert config.data.data == "pets"
    assert config.optimisation.batch_size == stored["batch_size"]
    assert {k: v for k, v in config.flat().items() if k in stored}.keys() == stored.keys()
    assert TrainConfig.from_dict(config.to_dict()) == config
    begun = TrainConfig.from_dict({**stored, "init": "elsewhere", "model": "ignored", "stem_strides": [1, 1]})
    assert begun.network.init == Path("elsewhere")
    assert begun.network.model is None
    search = json.loads((old / "search-interrupted/config.json").read_text())
    assert SearchConfig.from_dict(search).data.train_size == 256
    study = StudyConfig.from_dict({**search, "seeds": 2, "baseline": ["random", 3], "retrain_seeds": 1})
    assert (study.seeds, study.baseline, study.search.space) == (2, (("random", 3),), "space.json")
    assert StudyConfig.from_dict(study.to_dict()) == study
    with pytest.raises(ValueError, match="there is no setting novelty"):
        TrainConfig.from_dict({**stored, "novelty": 1})


def test_runs_without_the_setting_take_each_images_own_white(old: Path) -> None:
    """As they were trained; new ones have one rule for all images, and say in their card and settings which."""
    assert RunFolder.open("folder-finished").read_card().preprocessing.white == 0
    for name in ("folder-finished", "folder-interrupted"):
        assert read_config(RunFolder.open(name)).preprocessing.white == 0
    stored = json.loads((old / "folder-finished/config.json").read_text())
    new = TrainConfig()
    assert new.to_dict()["preprocessing"]["white"] is None
    older = new.to_dict()
    del older["preprocessing"]["white"], older["preprocessing"]["max_pixels"]
    assert TrainConfig.from_dict(older).preprocessing.white == 0
    assert "white" not in stored
    assert TrainConfig.from_recipe("quick", white=4095.0, max_pixels=9).to_dict()["preprocessing"]["white"] == 4095
