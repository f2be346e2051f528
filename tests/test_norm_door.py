"""Batch normalisation with an activation: what tools make of it, who takes it, and what is refused."""

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from norms import each_act, each_layout, in_float64, problem
from problems import arranged
from torch import Tensor
from torch.autograd import forward_ad

from hadaptive import ops
from hadaptive.ops import norm, reference

pytestmark = pytest.mark.skipif(norm.unsupported_reason(torch.zeros(2, 1, 4, 4)) is not None, reason="no Numba")
quiet = pytest.mark.filterwarnings("ignore:.torch.jit")  # PyTorch's forward mode calls it
# opcheck asks fake tensors for gradients that they have not
checked = pytest.mark.filterwarnings("ignore:The .grad attribute")


# Everything that looks at operators.


@checked
@each_layout
@each_act
def test_opcheck(layout: str, act: str) -> None:
    x, _, _, weight, bias = problem((2, 17, 4, 4), layout)
    for affine in ((weight, bias), (None, None)):
        torch.library.opcheck(torch.ops.hadaptive.batch_norm_act.default, (x, *affine, 1e-5, act))


@checked
@each_layout
def test_opcheck_of_the_gradient(layout: str) -> None:
    x, _, _, weight, bias = problem((2, 17, 4, 4), layout)
    _, mean, var = torch.ops.hadaptive.batch_norm_act(x, weight, bias, 1e-5, "relu6")
    grad = torch.randn_like(x).requires_grad_()
    arguments = (grad, x, weight, bias, mean, var, 1e-5, "relu6")
    torch.library.opcheck(torch.ops.hadaptive.batch_norm_act_backward.default, arguments)


@each_act
def test_the_plain_gradient_is_the_gradient(act: str) -> None:
    x, _, _, weight, bias = in_float64(problem((2, 3, 4, 2)))
    grad = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    y = reference.batch_norm_act(x, None, None, weight, bias, True, 0.1, 1e-3, act)
    found = reference.batch_norm_act_backward(grad, x, weight, bias, 1e-3, act)
    for a, b in zip(found, torch.autograd.grad(y, (x, weight, bias), grad), strict=True):
        torch.testing.assert_close(a, b)


@each_layout
@each_act
def test_second_derivatives(layout: str, act: str) -> None:
    arguments = problem((2, 16, 4, 4), layout)
    seconds = []
    for inputs, backend in ((arguments, "fused"), (in_float64(arguments), "reference")):
        x, _, _, weight, bias = inputs
        y = ops.batch_norm_act(x.sin(), None, None, weight, bias, True, act=act, backend=backend)
        first = torch.autograd.grad(y.pow(3).sum(), (x, weight, bias), create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight, bias)))
    for a, b in zip(*seconds, strict=True):
        torch.testing.assert_close(a.double() / b.abs().max(), b / b.abs().max(), rtol=1e-4, atol=1e-4)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.batch_norm_act(x, None, None, weight, bias, True, 0.1, 1e-5, "hardswish")


@pytest.fixture
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FROM_NCHW", "FROM_NHWC"):
        monkeypatch.setattr(norm, name, 0)


@quiet
@pytest.mark.usefixtures("of_any_size")
def test_transforms() -> None:
    mine = functools.partial(ops.batch_norm_act, training=True, act="hardswish")
    x, _, _, weight, bias = (None if t is None else t.detach() for t in problem((2, 2, 4, 4)))

    def norms(function):
        return lambda x, w, b: function(x, w, b).square().sum((2, 3))

    def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return mine(x, None, None, weight, bias)

    assert ops.explain("batch_norm_act", x, None, None, weight, bias)[0] == "fused"
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        for a, b in zip(
            transform(norms(fused), (0, 1, 2))(x, weight, bias),
            transform(norms(plain), (0, 1, 2))(x, weight, bias),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
    many = torch.randn(3, 2, 2, 4, 4)
    rest = (weight, bias)
    torch.testing.assert_close(
        torch.vmap(fused, (0, None, None))(many, *rest), torch.vmap(plain, (0, None, None))(many, *rest)
    )
    torch.testing.assert_close(torch.func.functionalize(fused)(x, *rest), plain(x, *rest))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.randn_like(x))
        found, true = (forward_ad.unpack_dual(f(dual, *rest)).tangent for f in (fused, plain))
    torch.testing.assert_close(found, true)


@pytest.mark.usefixtures("of_any_size")
def test_compilers_see_plain_operators() -> None:
    seen: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def fused(*arguments: Tensor) -> Tensor:
        return ops.batch_norm_act(*arguments, training=True, act="hardswish")

    arguments = problem((2, 16, 4, 4))
    y = torch.compile(fused, backend=keep, fullgraph=True)(*arguments)
    torch.testing.assert_close(y, plain(arguments[0], *arguments[3:]))
    assert not any("hadaptive" in name for name in seen)
    exported = torch.export.export(_Module(), (arguments[0],))
    assert not any("hadaptive" in str(node.target) for node in exported.graph.nodes)


class _Module(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ops.batch_norm_act(x, None, None, training=True, act="hardswish")


@quiet
@pytest.mark.usefixtures("of_any_size")
def test_scripts_and_traces_are_plain() -> None:
    x = torch.randn(2, 16, 4, 4)
    scripted = torch.jit.script(_Module())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # PyTorch counts the numbers of a channel
        traced = torch.jit.trace(_Module(), x)
    for graph in (scripted, traced):
        torch.testing.assert_close(graph(x), _Module()(x))
        assert "hadaptive" not in str(graph.graph)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@each_layout
def test_default_dtype_and_device_change_nothing(default: torch.dtype, layout: str) -> None:
    arguments = problem((2, 20, 5, 6), layout)
    expected = ops.batch_norm_act(*arguments, True, 0.0, act="relu", backend="fused")
    grads = torch.autograd.grad(expected.square().sum(), arguments[0])
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        with torch.device("meta"):
            y = ops.batch_norm_act(*arguments, True, 0.0, act="relu", backend="fused")
            found = torch.autograd.grad(y.square().sum(), arguments[0])
    finally:
        torch.set_default_dtype(before)
    assert y.equal(expected)
    assert found[0].equal(grads[0])


# The door.


@pytest.mark.usefixtures("of_any_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_pytorchs(dtype: torch.dtype) -> None:
    x = torch.randn(2, 16, 4, 4).to(dtype)
    mine, theirs = ([torch.zeros(16, dtype=dtype), torch.ones(16, dtype=dtype)] for _ in range(2))
    assert ops.batch_norm_act(x, *mine, training=True).equal(F.batch_norm(x, *theirs, training=True))
    assert mine[0].equal(theirs[0])
    assert mine[1].equal(theirs[1])


@pytest.mark.usefixtures("of_any_size")
@pytest.mark.parametrize("layout", ["sliced", "batch last"])
def test_other_layouts_are_pytorchs(layout: str) -> None:
    x = arranged(torch.randn(3, 16, 4, 5), layout)
    assert norm.pytorch_reason(x) is not None
    assert ops.batch_norm_act(x, None, None, training=True).equal(F.batch_norm(x, None, None, training=True))


def test_running_statistics_are_used_without_training() -> None:
    arguments = problem((2, 16, 4, 4))
    y = ops.batch_norm_act(*arguments, False, act="relu6")
    assert y.equal(F.relu6(F.batch_norm(*arguments)))


def test_mistakes_are_one_sentence() -> None:
    x = torch.randn(1, 16, 4, 4)
    with pytest.raises(ValueError, match="act must be one of none, relu, relu6, hardswish; got 'gelu'"):
        ops.batch_norm_act(x, None, None, training=True, act="gelu")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ops.batch_norm_act(torch.randn(1, 16, 1, 1), None, None, training=True)
    with pytest.raises(ValueError, match="cannot take this input: torch"):
        ops.batch_norm_act(x.double(), None, None, training=True, backend="fused")
    with pytest.raises(ValueError, match="cannot take this input: with running statistics"):
        ops.batch_norm_act(x, torch.zeros(16), torch.ones(16), backend="fused")
    with pytest.raises(RuntimeError, match="16"):
        ops.batch_norm_act(x, torch.zeros(15), torch.ones(16), training=True)
    with pytest.raises(ValueError, match="the kernel cannot take this map"):
        torch.ops.hadaptive.batch_norm_act(x.double(), None, None, 1e-5, "none")


@pytest.mark.usefixtures("of_any_size")
def test_misplaced_arguments_are_pytorchs_to_refuse() -> None:
    x = torch.randn(2, 16, 4, 4)
    for place in range(1, 5):
        arguments: list[Tensor] = [x, torch.zeros(16), torch.ones(16), torch.ones(16), torch.zeros(16)]
        arguments[place] = arguments[place].to("meta")
        assert norm.pytorch_reason(*arguments) is not None
    assert ops.batch_norm_act(x.to("meta"), None, None, training=True).is_meta


def test_saves_the_input_and_no_other_map() -> None:
    arguments = problem((2, 16, 8, 8))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.batch_norm_act(*arguments, True, act="hardswish", backend="fused")
    assert sum(t.numel() >= arguments[0].numel() for t in kept) == 1


def test_only_what_needs_a_gradient_gets_one() -> None:
    arguments = problem((2, 16, 4, 4))
    for wanted in (0, 3, 4):
        leaves = [t.detach().requires_grad_(n == wanted) for n, t in enumerate(arguments)]
        ops.batch_norm_act(*leaves, True, act="relu", backend="fused").sum().backward()
        assert [n for n, t in enumerate(leaves) if t.grad is not None] == [wanted]


def test_a_norm_may_run_more_than_once_before_the_gradient() -> None:
    x, mean, var, weight, bias = problem((2, 16, 4, 4))
    versions = mean._version, var._version
    kinds = ("reference", "fused", "reference")
    ys = [ops.batch_norm_act(x, mean, var, weight, bias, True, backend=backend) for backend in kinds]
    sum(ys[1:], ys[0]).square().sum().backward()
    assert (mean._version, var._version) == versions


def test_the_rule_and_how_it_is_explained() -> None:
    assert norm.kernel_is_faster(False, 2**18, "none")
    assert not norm.kernel_is_faster(False, 2**18 - 1, "hardswish")
    assert norm.kernel_is_faster(True, 2**19, "relu")
    assert not norm.kernel_is_faster(True, 2**30, "none")
    x = torch.randn(4, 64, 32, 32)
    assert ops.explain("batch_norm_act", x)[0] == "fused"
    assert ops.explain("batch_norm_act", x[:1]) == (
        "reference",
        "PyTorch is as fast for a map of this size and layout",
    )
    statistics = torch.zeros(64), torch.ones(64)
    assert "running statistics" in ops.explain("batch_norm_act", x, *statistics, None, None, False)[1]
    with ops.backend("fused"):  # a network has maps that no kernel takes
        assert ops.batch_norm_act(x, *statistics).equal(F.batch_norm(x, *statistics))
    with ops.backend("reference"):
        y = ops.batch_norm_act(x, None, None, training=True)
        assert y.equal(F.batch_norm(x, None, None, training=True))
