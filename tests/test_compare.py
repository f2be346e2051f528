"""Runs side by side."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny import TINY, stopped_after, tiny_config

from hadaptive.cli import main
from hadaptive.compare import find_runs
from hadaptive.errors import UserError
from hadaptive.runs import RunFolder
from hadaptive.search import SearchConfig, search
from hadaptive.train import train

VERSION_1 = Path(__file__).parent / "version_1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training, an interrupted one in a folder below, a finished search, and what is no run."""
    folder = tmp_path_factory.mktemp("compare") / "runs"
    (folder / "deep").mkdir(parents=True)
    train(tiny_config(folder, "done", epochs=2), quiet=True)
    with pytest.MonkeyPatch.context() as patched:
        stopped_after(8, tiny_config(folder, "deep/cut", epochs=3, seed=4), patched)
    from hadaptive.models.layer_spec import ach, ghost
    from hadaptive.search import SearchSpace

    space = SearchSpace("own", (TINY.stem,), (), (((ghost(2, 3, 8), ach(4, 3, 8)),),), 8, 8)
    space.save(folder.parent / "own.json")
    settings = {"space": str(folder.parent / "own.json"), "epochs": 1, "image_size": 8, "train_size": 200}
    search(SearchConfig.from_recipe("quick", output=folder / "searched", cpu=True, **settings), quiet=True)
    (folder / "hub").mkdir()
    (folder / "hub/config.json").write_text('{"architecture": "resnet18"}')
    return folder


def test_what_is_there_is_found(runs: Path) -> None:
    found = {Path(run.path).name: run for run in find_runs([runs, runs / "done"])}
    assert set(found) == {"done", "cut", "searched"}
    summary = json.loads((runs / "done/summary.json").read_text())
    done, cut, searched = (found[name] for name in ("done", "cut", "searched"))
    assert (done.kind, done.state, done.model, done.data, done.seed) == ("training", "done", "tiny", "digits", 0)
    assert done.test_accuracy == summary["test"]["accuracy"]
    assert done.parameters == summary["parameters"]
    assert (cut.state, cut.seed, cut.test_accuracy, cut.epochs) == ("1 of 3 epochs", 4, None, 1)
    assert (searched.kind, searched.state, searched.model) == ("search", "done", "own")
    assert [run.changed for run in find_runs([runs])] == sorted(run.changed for run in found.values())


@pytest.mark.rendered
def test_the_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(runs.parent)
    assert main(["runs"]) == 0
    said = capsys.readouterr().out
    assert "done" in said
    assert "1 of 3" in said
    picture = tmp_path / "runs.png"
    assert main(["runs", "runs", "--json", "--plot", str(picture)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    with Image.open(picture) as image:
        assert image.width > 400
    assert main(["runs", "--plot", str(picture)]) == 1
    assert "is not overwritten" in capsys.readouterr().err


def test_damaged_and_old_runs_are_listed(runs: Path, tmp_path: Path) -> None:
    for old in find_runs([VERSION_1]):
        assert old.model
    train(tiny_config(tmp_path, epochs=1), quiet=True)
    (tmp_path / "run/summary.json").write_text("{")
    (run,) = find_runs([tmp_path])
    assert "is damaged" in run.state
    (tmp_path / "run/summary.json").write_text("[]")
    assert find_runs([tmp_path])[0].state == "damaged"
    RunFolder(tmp_path / "run").metrics.write_bytes(b"epoch,val_accuracy\n0,\xff\n")
    assert find_runs([tmp_path])[0].epochs == 0
    RunFolder(tmp_path / "run").metrics.unlink()
    assert find_runs([tmp_path])[0].epochs == 0


def test_nothing_to_list_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="there are no runs in"):
        find_runs([tmp_path])
    assert main(["runs", str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err
