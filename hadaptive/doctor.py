"""What this machine offers, which backend each operator would use and why, and whether it computes right."""

import importlib.util
import inspect
import itertools
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from hadaptive import ops
from hadaptive.console import console
from hadaptive.errors import first_line
from hadaptive.measure.timing import synchronise
from hadaptive.ops import num_pairs, reference
from hadaptive.packages import EXTRAS, obstacle
from hadaptive.provenance import device_name

PACKAGES = ("hadaptive", "torch", "torchvision", "timm", "accelerate", "numba", "triton")
# The largest error that each dtype allows, relative to the largest value, against float64. In bfloat16 PyTorch's
# own gradients are off by 0.012 on processors without AVX-512.
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 2**-6, torch.float16: 2e-3, torch.float64: 1e-9}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # of (B, C, H, W)
    "NCHW": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2),
}


@dataclass(frozen=True)
class Problem:
    """What an operator is tried on.

    Attributes:
        inputs: its arguments, the map (B, C, H, W) first, in float32 on the CPU; made with a generator.
        plain: the same function in plain PyTorch, compared with in float64.
        layouts: of :data:`LAYOUTS`, those it takes.
        dtypes: of :data:`ALLOWED`, those in which PyTorch itself is as exact.
    """

    inputs: Callable[[torch.Generator], tuple[Any, ...]]
    plain: Callable[..., Tensor]
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    dtypes: tuple[torch.dtype, ...] = tuple(ALLOWED)


_SHAPE, _K = (4, 24, 9, 9), 16  # as many products as two threads are taken for


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def _affine(generator: torch.Generator) -> tuple[Tensor, ...]:
    pairs = num_pairs(_K)
    return torch.tensor([0.5]), _random(generator, pairs), _random(generator, pairs)


def _expansion(generator: torch.Generator) -> tuple[Tensor, ...]:
    batch, channels = _SHAPE[:2]
    index = torch.rand(batch, channels, generator=generator).topk(_K).indices
    gate = torch.rand(batch, _K, generator=generator)
    return _random(generator, *_SHAPE), index, gate, *_affine(generator)


def _convolution(generator: torch.Generator) -> tuple[Any, ...]:
    x, channels = _random(generator, *_SHAPE), _SHAPE[1]
    return x, _random(generator, channels, 1, 5, 5), _random(generator, channels), 1, 2, 1


def _products(generator: torch.Generator) -> Tensor:
    return _random(generator, _SHAPE[0], num_pairs(_K), *_SHAPE[2:])


def _normalisation(generator: torch.Generator) -> tuple[Any, ...]:
    x = _random(generator, 4, 64, 48, 48)  # so large that it has a kernel
    weight, bias = torch.full((64,), 0.3), torch.ones(64)  # no number is where hardswish has kinks
    return x, None, None, weight, bias, True, 0.1, 1e-5, "hardswish"


# Every operator of the door.
PROBLEMS = {
    "cross_hadamard_expand": Problem(_expansion, reference.cross_hadamard_expand),
    "cross_hadamard": Problem(lambda g: (_random(g, _SHAPE[0], _K, *_SHAPE[2:]),), reference.cross_hadamard),
    "selected_products": Problem(lambda g: _expansion(g)[:3], reference.selected_products),
    "dysoft": Problem(lambda g: (_products(g), *_affine(g)), reference.dysoft),
    "depthwise": Problem(_convolution, reference.depthwise, ("NCHW", "channels_last")),
    "append": Problem(lambda g: (_random(g, *_SHAPE), _products(g)), lambda *maps: torch.cat(maps, 1)),
    "batch_norm_act": Problem(_normalisation, reference.batch_norm_act, dtypes=(torch.float32, torch.float64)),
}


@dataclass(frozen=True)
class Check:
    """One operator on one device, in every layout and dtype.

    Attributes:
        device: "cpu", "cuda:0"...
        operator: its name in :mod:`hadaptive.ops`.
        backend: the one the dispatcher takes for float32.
        reason: why that one.
        error: largest error of value and gradients as a share of what the dtype allows; NaN where one is none.
        worst: where it was met, as in "bfloat16, tokens, gradient of gate".
        milliseconds: of forward and backward in float32, the first call not counted.
        problem: what went wrong, or "".
    """

    device: str
    operator: str
    backend: str
    reason: str
    error: float
    worst: str
    milliseconds: float
    problem: str

    @property
    def passed(self) -> bool:
        return not self.problem and self.error < 1


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


def _arguments(inputs: tuple, device: str, dtype: torch.dtype, layout: str) -> list[Any]:
    """Leaves on the device: what is floating in the dtype, and every map of the first one's size in the layout."""
    size, found = inputs[0].shape, []
    for value in inputs:
        if isinstance(value, Tensor):
            if value.dim() == 4 and (value.shape[0], value.shape[2:]) == (size[0], size[2:]):
                value = LAYOUTS[layout](value)
            value = value.to(device, dtype if value.is_floating_point() else None, copy=True)
            value.requires_grad_(value.is_floating_point())
        found.append(value)
    return found


def _results(function: Callable[..., Tensor], arguments: list[Any]) -> list[Tensor]:
    """The value, and the gradients of all that want one."""
    y = function(*arguments)
    wanted = [t for t in arguments if isinstance(t, Tensor) and t.requires_grad]
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, wanted, grad)]


def _errors(operator: str, arguments: list[Any]) -> dict[str, float]:
    """The largest error of value and gradients, by their names, as a share of what the dtype allows."""
    function = getattr(ops, operator)
    named = zip(inspect.signature(function).parameters, arguments, strict=False)
    names = [f"gradient of {name}" for name, t in named if isinstance(t, Tensor) and t.requires_grad]
    exact = [
        t.detach().double().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t
        for t in arguments
    ]
    pairs = zip(_results(function, arguments), _results(PROBLEMS[operator].plain, exact), strict=True)
    errors = [float((found - true).abs().max() / true.abs().max()) for found, true in pairs]
    allowed = ALLOWED[arguments[0].dtype]
    return {name: error / allowed for name, error in zip(["value", *names], errors, strict=True)}


def _milliseconds(operator: str, arguments: list[Any]) -> float:
    synchronise(str(arguments[0].device))
    start = time.perf_counter()
    _results(getattr(ops, operator), arguments)
    synchronise(str(arguments[0].device))
    return 1e3 * (time.perf_counter() - start)


def _check(device: str, operator: str) -> Check:
    problem, case = PROBLEMS[operator], ""
    inputs = problem.inputs(torch.Generator().manual_seed(0))
    backend, reason = "reference", "made of PyTorch's own operators"
    if operator in ops.OPERATORS:
        backend, reason = ops.explain(operator, *_arguments(inputs, device, torch.float32, "NCHW"))
    error, worst, milliseconds, failure = 0.0, "", float("nan"), ""
    try:
        for dtype, layout in itertools.product(problem.dtypes, problem.layouts):
            case = f"{str(dtype).removeprefix('torch.')}, {layout}"
            arguments = _arguments(inputs, device, dtype, layout)
            for name, found in _errors(operator, arguments).items():
                if math.isnan(found) or found > error:  # never greater than NaN, the worst there is
                    error, worst = found, f"{case}, {name}"
            if math.isnan(milliseconds):
                milliseconds = _milliseconds(operator, arguments)
    except Exception as raised:  # a driver's or a compiler's, of any kind: it is the diagnosis
        failure = f"{case}: {type(raised).__name__}: {first_line(raised)}"
    return Check(device, operator, backend, reason, error, worst, milliseconds, failure)


def diagnose() -> list[Check]:
    """Run every operator on every device in every layout and dtype, forward and backward, against float64."""
    return [_check(device, operator) for device in devices() for operator in PROBLEMS]


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
    for column in ("device", "operator", "backend", "why", "error / allowed", "ms", ""):
        table.add_column(column, justify="right" if column in ("error / allowed", "ms") else "left")
    for check in checks:
        verdict = "ok" if check.passed else "ERROR" if check.problem else "WRONG"
        figures = (f"{check.error:.2g}", f"{check.milliseconds:.2f}")
        table.add_row(check.device, check.operator, check.backend, check.reason, *figures, verdict)
    out.print(table)
    for check in checks:
        if not check.passed:
            wrong = f"{check.worst} is no number" if math.isnan(check.error) else f"{check.worst} is off the most"
            out.print(f"{check.operator} on {check.device}: {check.problem or wrong}", soft_wrap=True)
