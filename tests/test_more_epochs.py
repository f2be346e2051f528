"""A run that is given more epochs: nothing of what it was is lost, and it ends the same however it is cut."""

import json
import shutil
from pathlib import Path

import pytest
from processes import launch
from test_train import assert_same_weights, rows_without_times
from tiny import stopped_after, tiny_config

from hadaptive import cli
from hadaptive.engine.stopping import StopRequest
from hadaptive.errors import TrainingInterruptedError, UserError
from hadaptive.files import read_csv
from hadaptive.train import extend as extending
from hadaptive.train import resume, train, trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 epochs that is done."""
    folder = tmp_path_factory.mktemp("finished")
    train(tiny_config(folder, ema=0.9), quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def extended(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with 4 epochs in all."""
    run = shutil.copytree(finished, tmp_path_factory.mktemp("extended") / "run")
    assert cli.main(["train", "--resume", str(run), "--epochs", "4"]) == 0
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_it_was_is_kept_as_a_run_of_its_own(finished: Path, extended: Path) -> None:
    kept = extended / "finished-2"
    assert contents(kept) == contents(finished)
    assert len(read_csv(extended / "metrics.csv")) == 4
    rows = rows_without_times(finished)
    assert all(row in rows_without_times(extended) for row in rows)
    summary = json.loads((extended / "summary.json").read_text())
    assert summary["epochs"] == 4
    assert summary["extended"] == [{"epoch": 2, "step": 0, "epochs": 2, "finished": True}]
    assert (
        summary["best_validation_accuracy"]
        >= json.loads((kept / "summary.json").read_text())["best_validation_accuracy"]
    )
    assert cli.main(["evaluate", str(kept), "--cpu"]) == 0


def test_its_learning_rate_is_that_of_a_training_of_so_many_epochs(extended: Path, tmp_path: Path) -> None:
    train(tiny_config(tmp_path, ema=0.9, epochs=4), quiet=True)
    rates = [[row["lr"] for row in read_csv(run / "metrics.csv")] for run in (extended, tmp_path / "run")]
    assert rates[0][2:] == rates[1][2:]


def test_cut_off_in_between_it_ends_with_the_same_weights(
    finished: Path, extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    with monkeypatch.context() as patched:
        left = iter([False] * 9)
        patched.setattr(StopRequest, "agreed", lambda self: next(left, True))
        with pytest.raises(TrainingInterruptedError):
            resume(run, epochs=4, quiet=True)
    assert not (run / "summary.json").exists()
    resume(run, quiet=True)
    assert_same_weights(extended, run)
    assert_same_weights(extended, run, "best")
    assert rows_without_times(extended) == rows_without_times(run)


def test_a_failure_on_the_way_leaves_the_run_as_it_was(
    finished: Path, extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")

    def full(*_: object) -> None:
        raise UserError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(extending, "write_json", full)
        with pytest.raises(UserError, match="no room"):
            resume(run, epochs=4, quiet=True)
    again = shutil.copytree(run, tmp_path / "again")
    resume(run, quiet=True)  # finishes as before
    assert_same_weights(finished, run, "best")
    assert json.loads((run / "summary.json").read_text())["epochs"] == 2
    resume(again, epochs=4, quiet=True)
    assert_same_weights(extended, again)
    assert contents(again / "finished-2") == contents(finished)


def test_a_run_that_is_not_finished_goes_on_to_more_or_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    stopped_after(9, config, monkeypatch)  # in the second epoch
    run = tmp_path / "run"
    fewer = shutil.copytree(run, tmp_path / "fewer")
    assert resume(run, epochs=3, quiet=True)["epochs"] == 3
    assert not list(run.glob("finished-*"))
    assert json.loads((run / "config.json").read_text())["optimisation"]["epochs"] == 3
    with pytest.raises(UserError, match="has learned for 1 epochs already and begun another"):
        resume(fewer, epochs=1, quiet=True)
    assert resume(fewer, epochs=2, quiet=True)["extended"] == []  # as it was begun


def test_patience_begins_to_count_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "_rank", lambda accuracy, loss: accuracy >= 0)  # the first epoch is the best
    assert train(tiny_config(tmp_path, epochs=9, patience=2), quiet=True)["epochs"] == 3
    assert resume(tmp_path / "run", epochs=9, quiet=True)["epochs"] == 5
    assert {path.name for path in tmp_path.glob("run/finished-*")} == {"finished-3"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "1"], "has learned for 2 epochs already: --epochs says how many there are to be in all, at"),
        (["--epochs", "2"], "at least 3"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--epochs", "4", "--lr", "1"], "leave out --lr"),
        ([], "unless --epochs asks for more"),
    ],
    ids=" ".join,
)
def test_mistakes_are_one_sentence(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    assert cli.main(["train", "--resume", str(run), *flags]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert words in said
    assert contents(run) == contents(finished)


def test_without_its_checkpoint_it_is_begun_anew_by_init(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match=r"without a checkpoint to go on from.*--init"):
        resume(run, epochs=4, quiet=True)


def test_two_processes_go_on_after_patience_ended_a_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, epochs=20, patience=1, lr=0.1)
    ended = train(config, quiet=True)["epochs"]
    assert ended < 20
    done = launch(2, ["train", "--resume", str(tmp_path / "run"), "--epochs", str(ended + 1)])
    assert done.returncode == 0, done.stderr
    assert len(read_csv(tmp_path / "run" / "metrics.csv")) == ended + 1
