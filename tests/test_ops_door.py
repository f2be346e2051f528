"""The door to the operators: what it refuses, which backend it takes, and what compilers make of it."""

import threading
import warnings
from types import SimpleNamespace

import pytest
import torch
from tolerances import assert_close
from torch import Tensor, nn
from transcription import (
    CASES,
    differentiable,
    every_dtype,
    expand_inputs,
)

from hadaptive import ops

pytestmark = pytest.mark.usefixtures("nan_empty")


# Errors


def wrong(**change) -> dict:
    arguments = {
        "x": torch.randn(2, 5, 4),
        "index": torch.zeros(2, 3, dtype=torch.int64),
        "gate": torch.ones(2, 3),
        "alpha": torch.ones(1),
        "weight": torch.ones(3),
        "bias": torch.ones(3),
    }
    return {**arguments, **change}


WRONG_EXPAND = {
    "x-too-few-dims": (wrong(x=torch.randn(5)), r"x must have shape \(B, C, S...\), got \(5,\)"),
    "x-integer": (wrong(x=torch.ones(2, 5, 4, dtype=torch.int64)), "x must be a floating-point tensor"),
    "index-dims": (wrong(index=torch.zeros(3, dtype=torch.int64)), r"index must have shape \(B, k\)"),
    "index-batch": (wrong(index=torch.zeros(3, 3, dtype=torch.int64)), "B = 2, got"),
    "index-dtype": (wrong(index=torch.zeros(2, 3, dtype=torch.int32)), "index must be int64, got torch.int32"),
    "k-too-large": (wrong(index=torch.zeros(2, 6, dtype=torch.int64)), "k = 6 of only 5 channels"),
    "k-too-small": (
        wrong(index=torch.zeros(2, 1, dtype=torch.int64), gate=None),
        "at least 2 channels, got k = 1",
    ),
    "gate-shape": (wrong(gate=torch.ones(2, 4)), r"gate must have index's shape \(2, 3\), got \(2, 4\)"),
    "alpha-size": (wrong(alpha=torch.ones(2)), "alpha must hold one number"),
    "weight-shape": (wrong(weight=torch.ones(4)), r"weight must have shape \(3,\), got \(4,\)"),
    "bias-shape": (wrong(bias=torch.ones(3, 1)), r"bias must have shape \(3,\), got \(3, 1\)"),
    "backend": (wrong(backend="cuda"), "unknown backend 'cuda'; choose one of .*reference"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_EXPAND.values(), ids=WRONG_EXPAND.keys())
def test_expand_rejects(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.cross_hadamard_expand(**arguments)


def test_expand_accepts_what_the_wrong_arguments_change() -> None:
    assert ops.cross_hadamard_expand(**wrong()).shape == (2, 8, 4)


WRONG_OTHERS = {
    "products-dims": (lambda: ops.cross_hadamard(torch.randn(4)), "z must have shape"),
    "products-integer": (lambda: ops.cross_hadamard(torch.ones(2, 3, dtype=torch.int32)), "z must be a floating"),
    "products-one-channel": (lambda: ops.cross_hadamard(torch.randn(2, 1, 4)), "at least 2 channels .* got 1"),
    "products-backend": (lambda: ops.cross_hadamard(torch.randn(2, 3), backend="tpu"), "unknown backend 'tpu'"),
    "dysoft-dims": (lambda: ops.dysoft(torch.ones(3), *[torch.ones(1)] * 3), "x must have shape"),
    "dysoft-alpha": (lambda: ops.dysoft(torch.ones(2, 3), *[torch.ones(3)] * 3), "alpha must hold one number"),
    "dysoft-alpha-dims": (
        lambda: ops.dysoft(torch.ones(2, 3), torch.ones(1, 1, 1), *[torch.ones(3)] * 2),
        "alpha must hold one number",
    ),
    "dysoft-weight": (
        lambda: ops.dysoft(torch.ones(2, 3), torch.ones(1), torch.ones(1), torch.ones(3)),
        r"weight must have shape \(3,\)",
    ),
    "dysoft-backend": (
        lambda: ops.dysoft(torch.ones(2, 1), *[torch.ones(1)] * 3, backend=""),
        "unknown backend ''",
    ),
    "select-index": (lambda: ops.select_channels(torch.ones(2, 3), torch.zeros(2)), "index must have shape"),
    "select-gate": (
        lambda: ops.select_channels(torch.ones(2, 3), torch.zeros(2, 2, dtype=torch.int64), torch.ones(2)),
        "gate must have index's shape",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG_OTHERS.values(), ids=WRONG_OTHERS.keys())
def test_other_operators_reject(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Backends


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A registered backend "spy" that answers with a constant, so that a test sees who was asked."""

    def answer(*args: object) -> str:
        return "spy"

    backend = SimpleNamespace(**dict.fromkeys(ops.OPERATORS, answer), unsupported_reason=lambda *arguments: None)
    monkeypatch.setitem(ops._BACKENDS, "spy", backend)
    return backend


def asked() -> str:
    answer = ops.cross_hadamard(torch.ones(1, 2))
    return answer if isinstance(answer, str) else "other"


def test_reference_is_always_available() -> None:
    assert "reference" in ops.available_backends()


@pytest.mark.usefixtures("spy")
def test_backend_argument_reaches_every_operator() -> None:
    x, *rest = expand_inputs(CASES["map"], torch.float32)
    assert ops.cross_hadamard(x, backend="spy") == "spy"
    assert ops.dysoft(x, torch.ones(1), torch.ones(5), torch.ones(5), backend="spy") == "spy"
    assert ops.cross_hadamard_expand(x, *rest, backend="spy") == "spy"


@pytest.mark.usefixtures("spy")
def test_backend_context_nests_and_yields_to_the_argument() -> None:
    with ops.backend("spy"):
        assert asked() == "spy"
        with ops.backend("reference"):
            assert asked() == "other"
        assert asked() == "spy"
        assert isinstance(ops.cross_hadamard(torch.ones(1, 2), backend="reference"), Tensor)
    assert asked() == "other"


@pytest.mark.usefixtures("spy")
def test_backend_context_ends_with_an_exception() -> None:
    with pytest.raises(RuntimeError, match="inside"), ops.backend("spy"):
        raise RuntimeError("inside")
    assert asked() == "other"


def test_unknown_backend_is_rejected_before_the_block_runs() -> None:
    with pytest.raises(ValueError, match="unknown backend 'nope'; choose one of"), ops.backend("nope"):
        pytest.fail("the block ran")
    assert asked() == "other"


@pytest.mark.usefixtures("spy")
def test_backend_context_holds_for_its_own_thread_only() -> None:
    answers = []
    with ops.backend("spy"):
        thread = threading.Thread(target=lambda: answers.append(asked()))
        thread.start()
        thread.join()
    assert answers == ["other"]


def test_preferred_backend_is_used_where_it_supports_the_input(spy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_PREFERENCE", ("spy",))
    assert asked() == "spy"
    spy.unsupported_reason = lambda *arguments: "it would rather not"
    assert asked() == "other"


# Compilers


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_expand_compiles_without_a_graph_break(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the compiler allocates for itself
    torch.compiler.reset()
    x, index, *floats = expand_inputs(CASES["map"], torch.float32)
    compiled = torch.compile(ops.cross_hadamard_expand, fullgraph=True, backend=compiler)
    results = []
    for function in (compiled, ops.cross_hadamard_expand):
        inputs = differentiable(x, *floats)
        y = function(inputs[0], index, *inputs[1:])
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)
    torch.compiler.reset()


class EveryOperator(nn.Module):
    """Uses all four operators, with and without a gate."""

    def forward(
        self, x: Tensor, index: Tensor, gate: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        products = ops.cross_hadamard(ops.select_channels(x, index, gate))
        return (
            ops.dysoft(products, alpha, weight, bias),
            ops.cross_hadamard_expand(x, index, gate, alpha, weight, bias),
            ops.cross_hadamard_expand(x, index, None, alpha, weight, bias),
        )


@every_dtype
def test_operators_script(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this PyTorch deprecates torch.jit
        scripted = torch.jit.script(EveryOperator())
    inputs = expand_inputs(CASES["map"], dtype)
    with ops.backend("reference"):
        plain = EveryOperator()(*inputs)
    for actual, expected in zip(scripted(*inputs), plain, strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
