"""kill -9 at any moment, then --resume: the same weights, architecture and rows, to the bit."""

from pathlib import Path

import pytest
import torch
from dying import kill_at_random
from processes import forked
from safetensors.torch import load_file
from tiny import tiny_config, tiny_spec

from hadaptive.files import read_csv
from hadaptive.models.layer_spec import ConvSpec, ach, ghost
from hadaptive.search import SearchConfig, SearchSpace, Skip, search
from hadaptive.train import train


def killed(kind: str, folder: Path, settings: dict) -> list[Path]:
    """Ten runs that were killed at random moments and resumed."""
    done = forked(kill_at_random, kind, folder, settings, f"{kind} 13")
    assert done.returncode == 0, done.stderr[-3000:]
    runs = sorted(folder.glob("killed-*"))
    assert len(runs) == 10
    return runs


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
        "train_size": 64,
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
    settings = {"space": str(tmp_path / "space.json"), "epochs": 2, "image_size": 16, "train_size": 64}
    settings |= {"checkpoint_every": 2, "batch_size": 16, "cpu": True}
    search(SearchConfig.from_recipe("quick", output=tmp_path / "whole", **settings), quiet=True)
    for run in killed("search", tmp_path, settings):
        for name in ("confidence.csv", "metrics.csv", "split.csv"):  # alpha itself, to the last digit
            assert rows(tmp_path / "whole" / name) == rows(run / name), run
        assert (tmp_path / "whole/found.json").read_bytes() == (run / "found.json").read_bytes()
