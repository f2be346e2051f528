"""Work that is killed on the way, for a process of its own (processes.forked)."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures import leave_blank
from tiny import tiny_config

import hadaptive.engine.loop as loop
import hadaptive.runs as runs
import hadaptive.search.searcher as searcher
import hadaptive.train.trainer as trainer
from hadaptive.cli import main
from hadaptive.engine.accelerator import create_accelerator
from hadaptive.engine.config import Execution
from hadaptive.engine.processes import on_main
from hadaptive.errors import MainProcessError
from hadaptive.search import SearchConfig, resume_search, search
from hadaptive.train import resume, train

leave_blank()
_count = [0]


def counted(work: Callable[..., Any], at: int, sent: int = signal.SIGKILL) -> Callable[..., Any]:
    """`work` that counts its calls with all others, and sends this process a signal at number `at`."""

    def wrapper(*args: Any, **how: Any) -> Any:
        _count[0] += 1
        if _count[0] == at:
            os.kill(os.getpid(), sent)
        return work(*args, **how)

    return wrapper


def command(arguments: list[str], at: int = 0) -> int:
    """What a person types, killed in its step `at`."""
    for cls in (trainer.Trainer, searcher.Searcher):
        cls.micro_step = counted(cls.micro_step, at)
    return main(arguments)


def train_and_die(folder: Path, name: str, sent: int, at: int, changes: dict[str, Any]) -> None:
    """Train the tiny network until step `at`."""
    trainer.Trainer.micro_step = counted(trainer.Trainer.micro_step, at, sent)
    train(tiny_config(folder, name, **changes), quiet=True)


def search_and_die(at: int, settings: dict[str, Any]) -> None:
    """Search until step `at` of the architecture."""
    searcher.Searcher._alpha_step = counted(searcher.Searcher._alpha_step, at)
    search(SearchConfig.from_recipe("quick", **settings), quiet=True)


def fail_in_the_main_process(folder: Path) -> None:
    """Leave in `folder` what each process is told."""
    accelerator = create_accelerator(Execution())

    def fail() -> None:
        raise OSError(28, "no space left on device")

    try:
        on_main(accelerator, fail)
    except MainProcessError as error:
        (folder / "other").write_text(str(error), encoding="utf-8")
    except OSError as error:
        (folder / "main").write_text(str(error), encoding="utf-8")
    assert on_main(accelerator, lambda: 7) == 7


# -- kill -9 at any moment --------------------------------------------------------------------------------------


def begin(kind: str, output: Path, settings: dict[str, Any]) -> None:
    if kind == "train":
        train(tiny_config(output.parent, output.name, **settings), quiet=True)
    else:
        search(SearchConfig.from_recipe("quick", output=output, **settings), quiet=True)


def watch(moment: int) -> None:
    """Count what happens before and after every file that is put in place, every row and every step."""
    for owner, name in ((os, "replace"), (os, "fsync"), (os, "rename"), (runs, "append_csv")):
        setattr(owner, name, counted(getattr(owner, name), moment))
    for cls in loop.Engine.__subclasses__():
        for name in ("micro_step", "save_epoch", "after_step"):
            setattr(cls, name, counted(getattr(cls, name), moment))


def child(work: Callable[[], object]) -> int:
    """Wait for a forked child; its status as os.waitpid gives it."""
    number = os.fork()
    if not number:
        work()
        os._exit(0)
    return os.waitpid(number, 0)[1]


def kill_at_random(kind: str, folder: Path, settings: dict[str, Any], seed: str) -> None:
    """Run, be killed and resume in folder/killed-<moment>, at ten random moments, always the same of as many."""
    begin(kind, folder / "warm", settings)  # so that no child has to load kernels

    def count_events() -> None:
        watch(-1)
        begin(kind, folder / "counted", settings)
        (folder / "events").write_text(str(_count[0]))

    assert child(count_events) == 0
    events = int((folder / "events").read_text())
    for moment in random.Random(seed).sample(range(1, events + 1), 10):
        output = folder / f"killed-{moment}"

        def dying(moment: int = moment, output: Path = output) -> None:
            watch(moment)
            begin(kind, output, settings)

        def resuming(output: Path = output) -> None:
            # Killed before the folder was in its place: nothing to resume, and nothing in the way.
            again = resume if kind == "train" else resume_search
            if output.exists():
                again(output, quiet=True)
            else:
                begin(kind, output, settings)

        status = child(dying)
        assert os.WIFSIGNALED(status), (moment, status)
        assert os.WTERMSIG(status) == signal.SIGKILL, moment
        assert child(resuming) == 0, moment
