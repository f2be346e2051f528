"""Every command as a person types it."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_spec

import hadaptive
from hadaptive import cli
from hadaptive.data import DataConfig, open_data
from hadaptive.engine.stopping import StopRequest
from hadaptive.runs import RunFolder


def train_flags(folder: Path, name: str = "run") -> list[str]:
    flags = {
        "model": tiny_spec(folder),
        "output": folder / name,
        "epochs": 1,
        "batch-size": 32,
        "image-size": 8,
        "train-size": 200,
    }
    return ["train", "--cpu", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run and some digits as files."""
    folder = tmp_path_factory.mktemp("cli")
    assert cli.main([*train_flags(folder), "--quiet"]) == 0
    test = open_data(DataConfig("digits")).test
    assert test is not None
    (folder / "images").mkdir()
    for i in range(3):
        test.read(i)[0].save(folder / "images" / f"{i}.png")
    return folder


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]], ids=str)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == hadaptive.__version__


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "bench"])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"hadaptive {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["train", "--epochs", "many"], ["train", "--nope"], ["evaluate"], ["predict", "run", "a.png", "--top", "x"]],
    ids=" ".join,
)
def test_bad_flags_exit_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--data", "nowhere"], "no data set 'nowhere'"),
        (["train", "--recipe", "nope"], "no recipe 'nope'"),
        (["train", "--recipe=nope"], "no recipe 'nope'"),
        (["train", "--recipe", "quick", "--recipe", "nope"], "no recipe 'nope'"),  # the last counts
        (["train", "--model", "hadaptive_net_x"], "did you mean hadaptive_net"),
        (["train", "--resume", "nowhere"], "there is no run folder nowhere"),
        (["train", "--resume", "nowhere", "--epochs", "3"], "there is no run folder nowhere"),
        (["train", "--resume", "nowhere", "--lr", "3"], "leave out --lr"),
        (["search", "--resume", "nowhere", "--epochs", "3"], "leave out --epochs"),
        (["evaluate", "nowhere"], "there is no run folder nowhere"),
        (["evaluate", str(Path(__file__).parent)], "is not a run folder: it has no config.json"),
        (["predict", "nowhere", str(Path(__file__))], "there is no run folder nowhere"),
        (["info", "resnet_nope"], "no model 'resnet_nope'"),
        (["info", "spec.json"], "no network spec file"),
        (["bench"], "hadaptive bench accuracy"),
        (["bench", "accuracy", "--recipe", "nope"], "no recipe 'nope'"),
        (["bench", "networks", "--models", "nope"], "no model 'nope'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    assert words in one_sentence(capsys)
    assert not list(tmp_path.iterdir())


def test_traceback_on_demand() -> None:
    with pytest.raises(ValueError, match="there is no run folder nowhere"):
        cli.main(["--traceback", "evaluate", "nowhere"])


@pytest.mark.parametrize("error", [ValueError("shape"), KeyError("k"), OSError(5, "input/output")], ids=repr)
def test_a_fault_of_ours_shows_where_it_is_and_what_to_do(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **how: object) -> None:
        raise error

    monkeypatch.setattr("hadaptive.evaluate.evaluate_run", fail)
    assert cli.main(["evaluate", "run"]) == cli.FAULT_STATUS
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("Traceback")
    assert "please report it" in said[-1]


@pytest.mark.parametrize("command", sorted(set(cli.COMMANDS) - {*cli.IN_PROCESSES, "recipes"}))
def test_commands_for_one_process_say_so_under_torchrun(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main([command]) == 1
    assert "start it without torchrun" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--fit", "crop", "--pad", "2"], "--pad has no effect here, for --fit crop does not use it"),
        (["--erase", "0.1"], "--erase has no effect here, for --fit stretch"),
        (["--recipe", "folder", "--data", "digits", "--shift", "2"], "--shift has no effect here, for --fit crop"),
        (["--sched", "none", "--warmup", "0.2"], "--warmup has no effect here, for --sched none leaves the rate"),
        (["--sched", "step", "--min-lr", "1e-6"], "--min-lr has no effect here, for --sched step does not use it"),
        (["--warmup", "0", "--warmup-lr", "1e-5"], "--warmup-lr has no effect here, for --warmup 0"),
        (["--init", "x", "--stem-strides", "1"], "--stem-strides has no effect here, for --init has its own"),
        (["--num-classes", "3"], "--num-classes has no effect here"),
        (["--train-samples", "3"], "--train-samples has no effect here"),
        (["--val-split", "val"], "--val-split has no effect here"),
        (["--data", "wds/d", "--split", "x"], "--split has no effect here, for --data is a stream"),
        (["--data", "wds/d", "--train-size", "5"], "--train-size has no effect here, for --data is a stream"),
        (["--test-fraction", "0.3"], "--test-fraction has no effect here, for digits is divided already"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_without_an_effect_are_refused(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *flags]) == 1
    assert sentence in one_sentence(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--tau-end", "0.2"], "--tau-end has no effect here, for --estimator rloo"),
        (["--estimator", "gdas", "--paths", "3"], "--paths has no effect here, for --estimator gdas"),
        (["--latency-table", "t.json"], "--latency-table has no effect here, for --latency-target is not there"),
        (["--threads", "1"], "--threads has no effect here, for --latency-target is not there"),
        (["--retrain-seeds", "2"], "--retrain-seeds has no effect here, for --baseline is not there"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_of_a_search_without_an_effect_are_refused(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["search", *flags]) == 1
    assert sentence in one_sentence(capsys)
    assert not list(tmp_path.iterdir())


def test_predictions_are_of_the_weights_that_were_tested(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was to be tested with its last weights predicts, evaluates and is exported with these."""
    run = shutil.copytree(folder / "run", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "select": "last"}))
    network, _ = RunFolder(run).load_model("last")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    RunFolder(run).save_weights(network, "last")

    def prediction(*flags: str) -> str:
        assert cli.main(["predict", str(run), str(folder / "images/0.png"), "--json", *flags]) == 0
        return capsys.readouterr().out

    assert prediction() == prediction("--weights", "last") != prediction("--weights", "best")
    assert cli.main(["evaluate", str(run), "--cpu"]) == 0
    assert json.loads((run / "evaluation-test.json").read_text())["weights"] == "last"
    export = ["export", str(run), "--format", "safetensors", "--images", "8"]
    assert cli.main(export) == 0
    written = load_file(run / "network.safetensors")
    assert all(torch.equal(written[name], value) for name, value in network.state_dict().items())


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "all"]) == 0
    text = capsys.readouterr().out
    assert "paper" in text
    assert '"epochs": 200' in text


def test_recipe_gives_the_defaults_and_flags_change_them(folder: Path) -> None:
    config = json.loads((folder / "run" / "config.json").read_text())
    assert (config["recipe"], config["augmentation"]["shift"], config["optimisation"]["epochs"]) == ("quick", 1, 1)


@pytest.mark.rendered
def test_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(folder / "run"), "--cpu"]) == 0
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert f"accuracy {summary['test']['accuracy']:.2%}" in capsys.readouterr().out
    with Image.open(folder / "run" / "confusion-test.png") as picture:
        assert min(picture.size) > 100


def test_predict_table_and_sheet(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    arguments = ["predict", str(folder / "run"), str(folder / "images"), "--sheet", str(sheet)]
    assert cli.main(arguments) == 0
    assert "probability" in capsys.readouterr().out
    before = sheet.read_bytes()
    assert cli.main(arguments) == 1
    assert "not overwritten" in one_sentence(capsys)
    assert sheet.read_bytes() == before


def test_predict_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = folder / "images-bad.png"
    bad.write_bytes(b"not an image")
    assert (
        cli.main(["predict", str(folder / "run"), str(bad), str(folder / "images"), "--json", "--top", "99"]) == 0
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 4
    assert rows[0]["error"]
    assert rows[0]["classes"] == []
    for row in rows[1:]:
        assert len(row["classes"]) == 10
        assert sum(p for _, p in row["classes"]) == pytest.approx(1, abs=1e-5)


def test_info_of_a_run_and_its_spec(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = folder / "saved.json"
    assert cli.main(["info", str(folder / "run"), "--json", "--save-spec", str(spec)]) == 0
    of_run = json.loads(capsys.readouterr().out)
    assert spec.is_file()
    assert cli.main(["info", str(spec), "--json", "--image-size", "8", "--num-classes", "10"]) == 0
    of_spec = json.loads(capsys.readouterr().out)
    assert of_run["parameters"] == of_spec["parameters"]
    assert cli.main(["info", str(folder / "run"), "--save-spec", str(spec)]) == 1


def test_resume_of_a_finished_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--resume", str(folder / "run")]) == 1
    assert "finished" in one_sentence(capsys)


def test_interrupted_training_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As printed, whatever the shell does with the characters of its name."""
    tmp_path = tmp_path / "my [runs]; it's"
    tmp_path.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "agreed", lambda self: True)
        assert cli.main([*train_flags(tmp_path), "--quiet"]) == 130
    words = shlex.split(one_sentence(capsys).removeprefix("stopped; go on with: "))
    assert words == ["hadaptive", "train", "--resume", str(tmp_path / "run")]
    assert cli.main(words[1:]) == 0
    assert "test accuracy" in capsys.readouterr().out
