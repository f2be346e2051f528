"""Fixtures of every test: one seed, memory that shows when nobody wrote to it, and small data sets."""

import functools
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from figures import RENDER, leave_blank
from folders import fill, fill_parts
from matplotlib.figure import Figure
from torch import Tensor

from hadaptive.search import table_cache


def pytest_configure() -> None:
    """No test asserts on a time: proofs and latencies are of few calls, and the wait for lost workers is brief.

    Trainings take turns. Figures stay blank, but for tests with the mark `rendered`. No test cuts the power:
    files need not reach the disk. The ONNX exporter reads its table of operators once, not for every graph, and
    the C++ compiler is called by processes of tests themselves, not by more that would have to import PyTorch.
    """
    from torch.onnx._internal._lazy_import import onnxscript_apis
    from torch.utils import data

    from hadaptive.export import proof
    from hadaptive.jobs import run
    from hadaptive.search import latency

    proof.CALLS = 6
    latency.ROUNDS = 5
    latency.NETWORKS.update(dict.fromkeys(latency.NETWORKS, 3))
    run.places = functools.wraps(run.places)(lambda cpu=False: 1)  # other processes know no recipe of a test
    data._utils.MP_STATUS_CHECK_INTERVAL = 0.5
    leave_blank()
    os.fsync = lambda file: None
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    table = type(onnxscript_apis).__getattr__
    onnxscript_apis.get_torchlib_ops = functools.cache(lambda: table(onnxscript_apis, "get_torchlib_ops")())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begins first: begun last, it would leave the other process with nothing to do."""
    items.sort(key=lambda item: item.name != "test_in_the_interpreter")


def pytest_collection_finish() -> None:
    """What is there by now stays: an eighth of the time went into looking through all of it for garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(autouse=True)
def _seed() -> None:
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # a millisecond less: it asks no other kind of device
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def _rendered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("rendered"):
        monkeypatch.setattr(Figure, "savefig", RENDER)


@pytest.fixture(autouse=True)
def _own_tables(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test measures for itself."""
    own = tmp_path_factory.getbasetemp() / f"tables-{time.monotonic_ns()}"
    monkeypatch.setattr(table_cache, "folder", lambda: own)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of three classes, 20 images each."""
    return fill(tmp_path / "pets", {"cat": 20, "dog": 20, "fox": 20})


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """A folder with a training and a test part."""
    return fill_parts(tmp_path / "parted")


@pytest.fixture
def nan_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill floating tensors made by torch.empty and its like with NaN, so that an unwritten output fails."""

    def filled(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_nan(*args: object, **kwargs: object) -> Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return allocate_nan

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))


@pytest.fixture
def tiny_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a recipe for a training of a second."""
    from tiny import tiny_config

    from hadaptive.engine.recipes import RECIPES, Recipe

    keep = ("epochs", "batch_size", "image_size", "train_size", "shift", "cpu")
    settings = {name: tiny_config(tmp_path, epochs=1).flat()[name] for name in keep}
    monkeypatch.setitem(RECIPES, "tiny", Recipe("for tests", settings))
    return "tiny"
