"""What this machine offers, which backend each operator would use and why, and whether it computes right."""

import importlib.util
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch import Tensor

from hadaptive import ops
from hadaptive.console import console
from hadaptive.errors import first_line
from hadaptive.ops import num_pairs, reference
from hadaptive.packages import EXTRAS, obstacle
from hadaptive.provenance import device_name

PACKAGES = ("hadaptive", "torch", "torchvision", "timm", "accelerate", "numba", "triton")
TOLERANCE = 1e-4  # float32 against float64, relative to the largest value


@dataclass(frozen=True)
class Check:
    """One operator on one device.

    Attributes:
        device: "cpu", "cuda:0"...
        operator: its name in :mod:`hadaptive.ops`.
        backend: the one the dispatcher takes for float32.
        reason: why that one.
        error: largest error of value and gradients relative to the reference in float64, or NaN.
        milliseconds: of forward and backward, the first call not counted.
        problem: what went wrong, or "".
    """

    device: str
    operator: str
    backend: str
    reason: str
    error: float
    milliseconds: float
    problem: str

    @property
    def passed(self) -> bool:
        return not self.problem and self.error < TOLERANCE


def installed() -> dict[str, str]:
    """Versions of what the library uses; "not installed" where it is missing."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            # A source tree that was never installed is importable all the same.
            found[package] = "source tree" if importlib.util.find_spec(package) else "not installed"
    return found


def extras() -> dict[str, str]:
    """Of each extra, "ready" or why one of its packages cannot be used."""
    found = {}
    for extra, modules in EXTRAS.items():
        reasons = ((module.split(".")[0], obstacle(module)) for module in modules)
        found[extra] = next((f"{package} {why}" for package, why in reasons if why is not None), "ready")
    return found


def devices() -> list[str]:
    """The devices PyTorch can compute on here: the CPU, and each GPU."""
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def _problems(device: str) -> dict[str, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    batch, channels, k, side = 4, 24, 12, 7
    x = torch.randn(batch, channels, side, side, generator=generator)
    index = torch.rand(batch, channels, generator=generator).topk(k).indices
    gate = torch.rand(batch, k, generator=generator)
    weight, bias = (torch.randn(num_pairs(k), generator=generator) for _ in range(2))
    alpha = torch.tensor([0.5])
    products = torch.randn(batch, num_pairs(k), side, side, generator=generator)
    inputs = {
        "cross_hadamard_expand": (x, index, gate, alpha, weight, bias),
        "cross_hadamard": (x[:, :k],),
        "dysoft": (products, alpha, weight, bias),
    }
    return {name: tuple(t.to(device) for t in tensors) for name, tensors in inputs.items()}


def _leaves(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype, copy=True).requires_grad_() if t.is_floating_point() else t for t in inputs]


def _results(function, inputs: list[Tensor]) -> list[Tensor]:
    y = function(*inputs)
    wanted = [t for t in inputs if t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, torch.ones_like(y))]


def _check(device: str, operator: str, inputs: tuple[Tensor, ...]) -> Check:
    backend, reason = ops.explain(operator, inputs[0])
    error = milliseconds = float("nan")
    problem = ""
    try:
        mine = _leaves(inputs, torch.float32)
        found = _results(getattr(ops, operator), mine)
        if device != "cpu":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        _results(getattr(ops, operator), mine)
        if device != "cpu":
            torch.cuda.synchronize(device)
        milliseconds = 1e3 * (time.perf_counter() - start)
        true = _results(getattr(reference, operator), _leaves(inputs, torch.float64))
        errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, true, strict=True)]
        error = float(np.max(errors))  # unlike max(), NaN where one of them is
    except Exception as failure:  # a driver's or a compiler's, of any kind: it is the diagnosis
        problem = f"{type(failure).__name__}: {first_line(failure)}"
    return Check(device, operator, backend, reason, error, milliseconds, problem)


def diagnose() -> list[Check]:
    """Run every operator on every device, forward and backward, against the reference in float64."""
    return [_check(device, name, inputs) for device in devices() for name, inputs in _problems(device).items()]


def print_diagnosis(checks: list[Check]) -> None:
    """Versions, devices, and a line for each check."""
    from rich.table import Table

    out = console()
    out.print("  ".join(f"{name} {number}" for name, number in installed().items()))
    for extra, state in extras().items():
        out.print(f"extra {extra}: {state}", soft_wrap=True)
    for device in devices():
        threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
        out.print(f"{device}: {device_name(device)}{threads}")
    if not torch.cuda.is_available():
        out.print("no GPU that PyTorch can use")
    table = Table()
    for column in ("device", "operator", "backend", "why", "error", "ms", ""):
        table.add_column(column, justify="right" if column in ("error", "ms") else "left")
    for check in checks:
        verdict = "ok" if check.passed else "ERROR" if check.problem else "WRONG"
        figures = (f"{check.error:.0e}", f"{check.milliseconds:.2f}")
        table.add_row(check.device, check.operator, check.backend, check.reason, *figures, verdict)
    out.print(table)
    for check in checks:
        if check.problem:
            out.print(f"{check.operator} on {check.device}: {check.problem}", soft_wrap=True)
