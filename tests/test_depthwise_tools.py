"""Depthwise convolutions with gradients of ours under PyTorch's transforms, tracers and compilers."""

import warnings
from typing import Any

import pytest
import torch
from convolutions import close, image, layers, plain, small, take_the_smallest
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hadaptive import ops
from hadaptive.ops import library

pytestmark = pytest.mark.skipif(library._unusable("cpu") is not None, reason="Numba is not installed")
quiet = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _kernels_for_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    take_the_smallest(monkeypatch)


TRANSFORMS = {
    "jacrev": lambda f, *a: torch.func.jacrev(f, argnums=(0, 1))(*a),
    "jacfwd": lambda f, *a: torch.func.jacfwd(f, argnums=1)(*a),
    "hessian": lambda f, *a: torch.func.hessian(lambda *t: f(*t).square().sum(), argnums=1)(*a),
    "vmap": lambda f, *a: torch.vmap(f)(*(torch.stack([t, 2 * t]) for t in a)),
    "vmap-of-grad": lambda f, *a: torch.vmap(torch.func.grad(lambda *t: f(*t).square().sum(), argnums=(0, 1)))(
        *(torch.stack([t, 2 * t]) for t in a)
    ),
    "jvp": lambda f, *a: torch.func.jvp(f, a, tuple(map(torch.ones_like, a))),
    "functionalize": lambda f, *a: torch.func.functionalize(f)(*a),
    "jacobian": lambda f, *a: torch.autograd.functional.jacobian(f, a, vectorize=True),
}


@quiet
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms(transform: Any) -> None:
    x, weight, bias, *sizes = small()
    arguments = [t.detach()[:2] for t in (x[:, :2, :4, :5], weight, bias)]
    found, expected = (transform(lambda *t, f=f: f(*t, *sizes), *arguments) for f in (ops.depthwise, plain))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode: str) -> None:
    def gradients(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y = ops.depthwise(x, weight, bias, 1, (2, 1), 1)
        return torch.autograd.grad(y.square().sum(), (x, weight, bias))

    graph = make_fx(gradients, tracing_mode=mode)(*small()[:3])
    others = small()[:3]
    close(graph(*others), gradients(*others))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiled_training(layout: str) -> None:
    net, x = layers(), image(layout).requires_grad_()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    wanted = [x, *net.parameters()]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = torch.autograd.grad(compiled(x).square().sum(), wanted)
    assert "hadaptive::depthwise_backward" in {row.key for row in profile.key_averages()}
    close(found, torch.autograd.grad(net(x).square().sum(), wanted))


def test_scripts_and_traces_are_pytorchs() -> None:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        return ops.depthwise(x, weight, None, (1, 1), (2, 1), (1, 1))

    x, weight, *_ = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [torch.jit.trace(function, (x, weight)), torch.jit.script(function)]
    for run in made:
        assert "hadaptive::" not in str(run.inlined_graph)
        assert torch.equal(run(x, weight), function(x, weight))


def test_it_is_one_node_of_an_fx_graph() -> None:
    graph = torch.fx.symbolic_trace(lambda x, w: ops.depthwise(x, w, padding=2))
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [ops.depthwise]
