"""Optional packages that are there but cannot be imported: a sentence, or plain PyTorch with one warning."""

import os
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from folders import fill
from problems import problem
from processes import forked

from hadaptive import ops, packages
from hadaptive.cli import main
from hadaptive.ops import reference

PROJECT = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
FAILURES = {
    "ImportError": "raise ImportError('numpy.core.multiarray failed to import')",
    "AttributeError": "import math; math.no_such_function",
    "SystemExit": "raise SystemExit('no licence')",
}
# What needs an extra, as a person types it.
COMMANDS = {
    "evolution": "search --space published --method evolution --output run",
    "wds": "train --data wds/shards --val-split validation --num-classes 2 --train-samples 8 --output run",
    "hfds": "train --data hfds/pets --output run",
    "parquet": "train --data broken/labels.parquet --output run",
    "duplicates": "train --data broken/pets --group-by duplicates --output run",
    "ray": "bench accuracy --recipe quick --executor ray",
    "track": "train --data digits --epochs 1 --track tensorboard --output run",
    "onnx": "export hadaptive_net_s --format onnx --output net.onnx",
    "executorch": "export hadaptive_net_s --format executorch --output net.pte",
    "coreml": "export hadaptive_net_s --format coreml --output net.mlpackage",
    "ncnn": "export hadaptive_net_s --format ncnn --freeze --output net.ncnn.param",
    "openvino": "export hadaptive_net_s --format openvino --freeze --int8 --output net.xml",
}

AT_EASE = {"heic", "cam"}  # without it, its images, or maps, are left out and a line says so


def extras() -> dict[str, list[str]]:
    """Every extra of pyproject.toml for users, with the names its packages are imported by."""
    table = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    found = dict(re.findall(r"^(\w+) = \[(.*?)\]", table, re.MULTILINE | re.DOTALL))
    del found["dev"], found["docs"]  # for those who work on it
    return {extra: re.findall(r'"([\w-]+)>', listed.replace("-", "_")) for extra, listed in found.items()}


def test_every_extra_is_known() -> None:
    known = {extra: {module.split(".")[0] for module in modules} for extra, modules in packages.EXTRAS.items()}
    assert known == {extra: set(listed) for extra, listed in extras().items()}
    assert {*COMMANDS, *AT_EASE} == set(known)


def breaks(folder: Path, package: str, failure: str = "ImportError") -> None:
    """Put a package first on the path that is found and cannot be imported, whatever was imported before."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(FAILURES[failure], encoding="utf-8")
    sys.path.insert(0, str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


def command_without(folder: Path, package: str, failure: str, command: str) -> int:
    os.chdir(folder)
    fill(folder / "broken/pets", {"cat": 3, "dog": 3})
    (folder / "broken/labels.parquet").touch()
    breaks(folder / "broken", package, failure)
    return main(command.split())


@pytest.mark.parametrize(
    ("extra", "package"), [(extra, package) for extra in COMMANDS for package in extras()[extra]]
)
def test_a_broken_package_of_an_extra_is_one_sentence(extra: str, package: str, tmp_path: Path) -> None:
    failure = list(FAILURES)[len(package) % len(FAILURES)]
    done = forked(command_without, tmp_path, package, failure, COMMANDS[extra])
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    said = re.escape(f"needs the package {package}, which is installed but cannot be imported ({failure}")
    assert re.search(said + rf'.*\): pip install "hadaptive\[{extra}\]"', done.stderr), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def forward_without_numba(folder: Path, failure: str) -> None:
    for name in [name for name in sys.modules if name.startswith("hadaptive.ops.cpu")]:
        del sys.modules[name]
    breaks(folder, "numba", failure)
    arguments = problem((2, 5, 3, 2), 3, torch.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert ops.cross_hadamard_expand(*arguments).equal(reference.cross_hadamard_expand(*arguments))
    assert [str(w.message).split(" (")[0] for w in caught] == ["Numba is installed but cannot be imported"]
    assert f"({failure}" in str(caught[0].message)
    reason = str(caught[0].message).split(": operators")[0]
    assert ops.explain("cross_hadamard_expand", arguments[0]) == ("reference", reason)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_broken_numba_is_plain_pytorch_and_one_warning(failure: str, tmp_path: Path) -> None:
    done = forked(forward_without_numba, tmp_path / "broken", failure)
    assert done.returncode == 0, done.stderr


def doctor_without(folder: Path, *broken: str) -> int:
    for package in broken:
        breaks(folder, package)
    return main(["doctor"])


def test_the_doctor_names_what_is_broken_and_ends_well(tmp_path: Path) -> None:
    done = forked(doctor_without, tmp_path, "numba", "onnx")
    assert done.returncode == 0, done.stderr
    cells = [line.split("│")[4].strip() for line in done.stdout.splitlines() if line.startswith("│")]
    assert "Numba is installed but cannot be imported (ImportError" in " ".join(cells)  # a cell of several lines
    assert "extra onnx: onnx is installed but cannot be imported (ImportError: numpy.core" in done.stdout
    assert "extra executorch: " in done.stdout


def test_what_is_not_installed_is_not_called_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.obstacle("no_such_package.part") == "is not installed"
    assert packages.obstacle("json") is None
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert packages.obstacle("onnx") == "is not installed"
