"""kill -9 at any moment, then --resume: the same weights, architecture and rows, to the bit."""

import random
from pathlib import Path

import pytest
import torch
from processes import run_python
from safetensors.torch import load_file
from tiny import tiny_config, tiny_spec

from hadaptive.files import read_csv
from hadaptive.models.spec import ConvSpec, ach, ghost
from hadaptive.search import SearchConfig, SearchSpace, Skip, search
from hadaptive.train import train

# One process loads everything and forks: a child that works and dies, then one that resumes, for each moment.
SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import hadaptive.engine.loop as loop
import hadaptive.files as files
import hadaptive.runs as runs
from hadaptive.search import SearchConfig, resume_search, search
from hadaptive.train import TrainConfig, resume, train
from tiny import tiny_config

# Pictures are drawn from rows, and take most of the time of runs as short as these.
import hadaptive.search.searcher as searcher, hadaptive.search.plots, hadaptive.train.trainer as trainer
trainer.plot_curves = searcher.plot_search = searcher.plot_confidence = searcher.draw_network = lambda *_: None

kind, folder, settings = sys.argv[1], Path(sys.argv[2]), eval(sys.argv[3])
moments = [int(text) for text in sys.argv[4].split(",")]
count = [0]

def counted(work, moment):
    def wrapper(*args, **how):
        count[0] += 1
        if count[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*args, **how)
    return wrapper

def watch(moment):
    # Before and after every file that is put in place, every row, and every step.
    os.replace, os.fsync = counted(os.replace, moment), counted(os.fsync, moment)
    os.rename = counted(os.rename, moment)
    runs.append_csv = counted(runs.append_csv, moment)
    for cls in loop.Engine.__subclasses__():
        cls.micro_step = counted(cls.micro_step, moment)
        cls.save_epoch = counted(cls.save_epoch, moment)
        cls.after_step = counted(cls.after_step, moment)

def begin(output):
    if kind == "train":
        return train(tiny_config(folder, output.name, **settings), quiet=True)
    return search(SearchConfig.from_recipe("quick", output=output, **settings), quiet=True)

begin(folder / f"warm-{moments[0]}")  # so that no child has to load kernels

def child(work):
    number = os.fork()
    if not number:
        work()
        os._exit(0)
    return os.waitpid(number, 0)[1]

def count_events():
    watch(-1)
    begin(folder / "counted")
    (folder / "events").write_text(str(count[0]))

if moments == [0]:
    assert child(count_events) == 0
else:
    for moment in moments:
        output = folder / f"killed-{moment}"
        def dying():
            watch(moment)
            begin(output)
        status = child(dying)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (moment, status)
        def resuming():
            # Killed before the folder was in its place: nothing to resume, and nothing in the way.
            again = resume if kind == "train" else resume_search
            again(output, quiet=True) if output.exists() else begin(output)
        assert child(resuming) == 0, moment
"""


def killed(kind: str, folder: Path, settings: dict) -> list[Path]:
    """Ten runs that were killed at random moments and resumed."""
    done = run_python(SCRIPT, kind, str(folder), repr(settings), "0", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    events = int((folder / "events").read_text())
    moments = random.Random(f"{kind} 13").sample(range(1, events + 1), 10)
    chosen = ",".join(map(str, moments))
    done = run_python(SCRIPT, kind, str(folder), repr(settings), chosen, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    return [folder / f"killed-{moment}" for moment in moments]


def rows(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_csv(path)]


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_training_killed_at_ten_random_moments(tmp_path: Path, one_thread) -> None:
    settings = {
        "checkpoint_every": 4,
        "ema": 0.9,
        "mixup": 0.2,
        "accumulate": 2,
        "epochs": 2,
        "train_size": 96,
        "batch_size": 16,
    }
    tiny_spec(tmp_path)
    train(tiny_config(tmp_path, "whole", **settings), quiet=True)
    for run in killed("train", tmp_path, settings):
        assert not [path.name for path in run.iterdir() if path.suffix == ".tmp"], run
        for which in ("best", "last"):
            whole, cut = (load_file(folder / f"{which}.safetensors") for folder in (tmp_path / "whole", run))
            assert [name for name in whole if not torch.equal(whole[name], cut[name])] == [], run
        for name in ("metrics.csv", "selection.csv", "split.csv"):
            assert rows(tmp_path / "whole" / name) == rows(run / name), run


@pytest.mark.slow
def test_a_search_killed_at_ten_random_moments(tmp_path: Path, one_thread) -> None:
    stage = ((ghost(2, 3, 12), ach(4, 3, 12)), (ghost(2, 3, 12), ach(5, 3, 12), Skip()))
    SearchSpace("tiny", (ConvSpec(8, 2, 2), ConvSpec(8, 3, 2)), (), (stage,), 16, 16).save(tmp_path / "space.json")
    settings = {"space": str(tmp_path / "space.json"), "epochs": 2, "image_size": 16, "train_size": 128}
    settings |= {"checkpoint_every": 2, "batch_size": 16, "cpu": True}
    search(SearchConfig.from_recipe("quick", output=tmp_path / "whole", **settings), quiet=True)
    for run in killed("search", tmp_path, settings):
        for name in ("confidence.csv", "metrics.csv", "split.csv"):  # alpha itself, to the last digit
            assert rows(tmp_path / "whole" / name) == rows(run / name), run
        assert (tmp_path / "whole/found.json").read_bytes() == (run / "found.json").read_bytes()
