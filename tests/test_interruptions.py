"""A disk that is full, a reader that has seen enough, and Ctrl-C: one line each, and nothing is lost."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import forked
from tiny import tiny_config

import hadaptive.engine.loop as loop
from hadaptive.cli import main
from hadaptive.errors import UserError
from hadaptive.files import append_csv, write_json
from hadaptive.runs import RunFolder
from hadaptive.train import Trainer, train

NO_SPACE = r"cannot be written: .*; make room on the disk of .*, where nothing written before was lost"


def write_beyond_the_limit(folder: Path) -> None:
    """Everything a run writes, where files may have 4 kB."""
    run = RunFolder(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    rows = [{"epoch": 1, "text": "x" * 5000}]
    network = torch.nn.Linear(100, 100)
    said = []
    for write in (
        lambda: run.save_checkpoint({"x": torch.zeros(5000)}),
        lambda: run.save_weights(network, "best"),
        lambda: append_csv(run.metrics, rows),
        lambda: write_json(run.summary, rows),
    ):
        with pytest.raises(UserError, match=NO_SPACE) as caught:
            write()
        said.append(str(caught.value))
    print("\n".join(said))


def test_a_full_disk_is_one_sentence_and_what_was_there_stays(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.save_checkpoint({"x": torch.ones(3)})
    append_csv(run.metrics, [{"epoch": 0, "text": "first"}])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = forked(write_beyond_the_limit, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.strip().splitlines()) == 4
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_training_that_finds_the_disk_full_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, full = Trainer.save_epoch, [True]

    def save(self: Trainer, folder: RunFolder) -> None:
        if full[0] and self.epoch == 2:
            raise UserError("x cannot be written: no space") from OSError(errno.ENOSPC, "no space")
        write(self, folder)

    monkeypatch.setattr(Trainer, "save_epoch", save)
    with pytest.raises(UserError, match=r"no space; then go on with: hadaptive train --resume .*run$"):
        train(tiny_config(tmp_path), quiet=True)
    full[0] = False
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0


@pytest.mark.parametrize("command", [["recipes"], ["--help"], ["train", "--help"]])
def test_a_closed_pipe_ends_a_command_as_shells_have_it(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "hadaptive", *command],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_is_acknowledged_at_once_and_a_second_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    step, count = Trainer.micro_step, [0]

    def interrupted(self: Trainer, *args: object) -> float:
        count[0] += 1
        if count[0] == 8:
            os.kill(os.getpid(), signal.SIGINT)
            assert "stopping after this step" in capfd.readouterr().err
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Trainer, "micro_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(tmp_path), quiet=True)
    assert f"hadaptive train --resume {tmp_path / 'run'}" in capfd.readouterr().err
    saved = RunFolder(tmp_path / "run").load_checkpoint()
    assert (saved["epoch"], saved["step"]) == (1, 0)


def test_ctrl_c_while_a_run_is_concluded_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "provenance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(tmp_path, epochs=1), quiet=True)
    monkeypatch.undo()
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
