"""The doctor: what it says; a wrong kernel is noticed, and a broken one is a line and not a traceback."""

import pytest
import torch

from hadaptive import doctor, ops
from hadaptive.cli import main
from hadaptive.ops import library


def test_every_operator_on_every_device_passes() -> None:
    checks = doctor.diagnose()
    assert [(c.device, c.operator) for c in checks if c.device == "cpu"] == [
        ("cpu", "cross_hadamard_expand"),
        ("cpu", "cross_hadamard"),
        ("cpu", "dysoft"),
    ]
    assert all(check.passed for check in checks)
    assert [c.backend for c in checks if c.device == "cpu"] == ["fused", "reference", "reference"]


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


def test_a_gradient_that_is_no_number_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest of several errors is NaN where one of them is, wherever it stands among them."""
    sound = doctor._results
    monkeypatch.setattr(doctor, "_results", lambda f, x: [*sound(f, x)[:-1], sound(f, x)[-1] * float("nan")])
    assert not any(check.passed for check in doctor.diagnose())


def test_explanations(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 4, 2, 2)
    assert ops.explain("cross_hadamard_expand", x.double()) == (
        "reference",
        "torch.float64 is left to plain PyTorch",
    )
    monkeypatch.setattr(library, "_unusable", lambda device: "Numba is not installed")
    assert ops.explain("cross_hadamard_expand", x) == ("reference", "Numba is not installed")
