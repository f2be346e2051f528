"""The doctor: what it says; a wrong kernel is noticed, and a broken one is a line and not a traceback."""

import inspect

import pytest
import torch
from torch import Tensor

from hadaptive import doctor, ops
from hadaptive.cli import main
from hadaptive.ops import library


def test_every_operator_on_every_device_passes() -> None:
    checks = doctor.diagnose()
    assert [c.operator for c in checks if c.device == "cpu"] == list(doctor.PROBLEMS)
    assert all(check.passed for check in checks)
    backends = {c.operator: c.backend for c in checks if c.device == "cpu"}
    assert backends["cross_hadamard_expand"] == "fused"
    assert backends["dysoft"] == "reference"


# Of what takes a map: on every backend the same lines, and a name that goes.
NOT_TRIED = {"select_channels", "expand"}


def test_every_operator_of_the_door_has_a_problem() -> None:
    takes_a_map = set()
    for name in ops.__all__:
        operator = getattr(ops, name)
        if inspect.isroutine(operator):
            first = next(iter(inspect.signature(operator).parameters.values()), None)
            takes_a_map |= {name} if first is not None and first.annotation is Tensor else set()
    assert set(doctor.PROBLEMS) == takes_a_map - NOT_TRIED
    assert set(doctor.PROBLEMS) >= set(ops.OPERATORS)


def test_versions_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    found = doctor.installed()
    assert found["torch"].startswith(torch.__version__.split("+")[0])
    assert found["no-such-package"] == "not installed"


@pytest.mark.parametrize("broken", ["wrong", "raises"])
def test_a_broken_kernel_is_named(
    broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = library.cross_hadamard_expand

    def expand(*arguments: torch.Tensor) -> torch.Tensor:
        if broken == "raises":
            raise RuntimeError("the driver is too old\nand more lines")
        return sound(*arguments) * 1.001

    monkeypatch.setattr(library, "cross_hadamard_expand", expand)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert "cross_hadamard_expand on cpu failed the check" in printed.err
    assert ("the driver is too old" if broken == "raises" else "WRONG") in printed.out.replace("\n", " ")


# One fault in one result of one kernel: of which dtype, in which layout, in which gradient.
FAULTS = [
    (torch.float32, "NCHW", 0, "x"),
    (torch.float32, "tokens", 1, "gate"),
    (torch.bfloat16, "channels_last", 2, "alpha"),
    (torch.float16, "NCHW", 3, "weight"),
    (torch.float16, "channels_last", 4, "bias"),
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e3], ids=["nan", "inf", "wrong"])
@pytest.mark.parametrize(("dtype", "layout", "place", "name"), FAULTS, ids=[fault[-1] for fault in FAULTS])
def test_one_fault_in_one_gradient_is_found(
    dtype: torch.dtype, layout: str, place: int, name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_launch = pytest.importorskip("hadaptive.ops.cpu_launch")
    sound = cpu_launch.expand_backward

    def faulty(grad: Tensor, x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        found = sound(grad, x, *others)
        if x.dtype == dtype and (
            x.stride() == doctor.LAYOUTS[layout](x).stride() if x.dim() == 4 else layout == "tokens"
        ):
            found[place].view(-1)[-1:].fill_(value) if found[place].is_contiguous() else found[place].fill_(value)
        return found

    monkeypatch.setattr(cpu_launch, "expand_backward", faulty)
    check = doctor._check("cpu", "cross_hadamard_expand")
    assert not check.passed
    assert check.worst == f"{str(dtype).removeprefix('torch.')}, {layout}, gradient of {name}"


def test_kernels_are_tried_on_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_launch = pytest.importorskip("hadaptive.ops.cpu_launch")
    tried = set()

    def run(worker: object, task: object, arrays: object, threads: int) -> None:
        tried.add(threads)
        sound(worker, task, arrays, threads)

    sound = cpu_launch.run
    monkeypatch.setattr(cpu_launch, "run", run)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert doctor._check("cpu", "cross_hadamard_expand").passed
    finally:
        torch.set_num_threads(before)
    assert tried == {2}


def test_explanations(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 4, 2, 2)
    assert ops.explain("cross_hadamard_expand", x.double()) == (
        "reference",
        "torch.float64 is left to plain PyTorch",
    )
    monkeypatch.setattr(library, "_unusable", lambda device: "Numba is not installed")
    assert ops.explain("cross_hadamard_expand", x) == ("reference", "Numba is not installed")
