"""The registered operators in every mode of PyTorch: transforms, tracers, profilers, copies."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from convolutions import Seen
from problems import leaves, problem
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from hadaptive import ops
from hadaptive.nn import AdaptiveCrossHadamard
from hadaptive.ops import library, reference

pytestmark = pytest.mark.skipif(library._unusable("cpu") is not None, reason="Numba is not installed")
LAYOUTS = ("contiguous", "channels_last")
forward_mode_scripts = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # PyTorch does so itself
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def small(layout: str = "contiguous", dtype: torch.dtype = torch.float32) -> tuple:
    return problem((2, 5, 3, 2), 3, dtype, layout)


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def dependent(operator: Any, dtype: torch.dtype, *, create_graph: bool) -> list[Tensor]:
    """First or second gradients where index, gate, alpha, weight and bias all depend on x."""
    torch.manual_seed(0)
    x, index, _, alpha, weight, bias = leaves(problem((2, 5, 3, 2), 3, torch.float32), dtype)
    gate = x.mean((2, 3)).gather(1, index).tanh()
    parameters = (x.mean() * alpha, x.std() * weight, x.square().mean() * bias)
    y = operator(x, index, gate, *parameters)
    first = torch.autograd.grad(y.square().sum(), (x, alpha, weight, bias), create_graph=create_graph)
    if not create_graph:
        return list(first)
    return list(torch.autograd.grad(sum(g.square().sum() for g in first), (x, alpha, weight)))


@pytest.mark.parametrize("create_graph", [False, True], ids=["first", "second"])
def test_gradients_where_the_arguments_depend_on_each_other(create_graph: bool) -> None:
    true = dependent(reference.cross_hadamard_expand, torch.float64, create_graph=create_graph)
    mine = dependent(library.cross_hadamard_expand, torch.float32, create_graph=create_graph)
    for a, b in zip(mine, true, strict=True):
        close(a.double() / b.abs().max(), b / b.abs().max())


@every_layout
def test_the_plain_backward_pass_is_that_of_the_plain_forward_pass(layout: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for gated in (True, False):
            inputs = leaves(problem((2, 5, 3, 2), 3, dtype, layout, gated))
            y = reference.cross_hadamard_expand(*inputs)
            grad = torch.randn_like(y)
            found = reference.cross_hadamard_expand_backward(grad, *inputs[:5])
            names = [n for n in (0, 2, 3, 4, 5) if inputs[n] is not None]
            true = torch.autograd.grad(y, [inputs[n] for n in names], grad)
            mine = [g for g, n in zip(found, (0, 2, 3, 4, 5), strict=True) if n in names]
            for a, b in zip(mine, true, strict=True):
                assert a.dtype == b.dtype
                tolerance = (
                    {"rtol": 2e-2, "atol": 2e-1} if dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
                )
                torch.testing.assert_close(a, b, **tolerance)


def test_gradients_of_the_backward_operator_itself() -> None:
    x, index, gate, alpha, weight, _ = leaves(small())
    grad = torch.randn(2, 8, 3, 2, requires_grad=True)
    arguments = (grad, x, index, gate, alpha, weight)
    wanted = [t for t in arguments if t.requires_grad]
    results = []
    for operator in (library._expand_backward, reference.cross_hadamard_expand_backward):
        total = sum(t.square().sum() for t in operator(*arguments))
        results.append(torch.autograd.grad(total, wanted))
    for a, b in zip(*results, strict=True):
        close(a / b.abs().max(), b / b.abs().max())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
@pytest.mark.parametrize(("layout", "gated"), [("contiguous", True), ("channels_last", False)])
def test_opcheck(layout: str, gated: bool) -> None:
    arguments = leaves(problem((2, 6, 3, 5), 4, torch.float32, layout, gated))
    torch.library.opcheck(library._expand, tuple(arguments))
    grad = torch.randn(2, 12, 3, 5, requires_grad=True)
    torch.library.opcheck(library._expand_backward, (grad, *arguments[:5]))


# torch.func


FUNCTIONS = {
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda t: f(t).square().sum())(x),
    "jacrev-of-jacrev": lambda f, x: torch.func.jacrev(torch.func.jacrev(lambda t: f(t).sum()))(x),
    "grad": lambda f, x: torch.func.grad(lambda t: f(t).square().sum())(x),
    "vmap-of-grad": lambda f, x: torch.vmap(torch.func.grad(lambda t: f(t).square().sum()))(
        torch.stack([x, 2 * x, -x])
    ),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones_like(f(x))),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
    "jacobian-vectorised": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
}


@forward_mode_scripts
@pytest.mark.parametrize("transform", FUNCTIONS.values(), ids=FUNCTIONS.keys())
@every_layout
def test_transforms(transform: Any, layout: str) -> None:
    x, *others = small(layout)
    with torch.no_grad() if transform is FUNCTIONS["functionalize"] else torch.enable_grad():
        found = transform(lambda t: ops.cross_hadamard_expand(t, *others), x)
    expected = transform(lambda t: reference.cross_hadamard_expand(t, *others), x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mapped", [(0,), (0, 1, 2), (2,), (3, 4, 5), (0, 1, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("operator", [ops.cross_hadamard_expand, library._expand], ids=["door", "registered"])
def test_vmap_over_any_of_the_arguments(operator: Any, mapped: tuple[int, ...]) -> None:
    many = [small() for _ in range(3)]
    many = [
        tuple(a if n in mapped else b for n, (a, b) in enumerate(zip(args, many[0], strict=True))) for args in many
    ]
    in_dims = tuple(-1 if n in mapped else None for n in range(6))
    arguments = [torch.stack([a[n] for a in many], -1) if n in mapped else many[0][n] for n in range(6)]
    y = torch.vmap(operator, in_dims=in_dims)(*arguments)
    for n, alone in enumerate(many):
        close(y[n], reference.cross_hadamard_expand(*alone))


@every_layout
def test_vmap_over_the_smaller_operators(layout: str) -> None:
    x, *_, weight, bias = small(layout)
    z, alpha = torch.stack([x[:, :3], x[:, 2:]]), torch.tensor([0.5])
    for n in range(2):
        close(torch.vmap(ops.cross_hadamard)(z)[n], reference.cross_hadamard(z[n]))
        soft = torch.vmap(lambda t: ops.dysoft(t, alpha, weight, bias))(z)[n]
        close(soft, reference.dysoft(z[n], alpha, weight, bias))


@forward_mode_scripts
def test_forward_mode_carries_the_tangent() -> None:
    forward_mode = torch.autograd.forward_ad
    arguments = small()
    for n in (0, 2, 3, 4, 5):
        tangents = []
        for operator in (ops.cross_hadamard_expand, reference.cross_hadamard_expand):
            with forward_mode.dual_level():
                mine = list(arguments)
                mine[n] = forward_mode.make_dual(mine[n], torch.ones_like(mine[n]))
                tangents.append(forward_mode.unpack_dual(operator(*mine)).tangent)
        assert tangents[0] is not None
        close(*tangents)


@forward_mode_scripts
def test_a_forced_kernel_says_that_it_has_no_forward_mode() -> None:
    forward_mode = torch.autograd.forward_ad
    x, *others = small()
    with forward_mode.dual_level(), pytest.raises(ValueError, match="forward-mode"):
        ops.cross_hadamard_expand(forward_mode.make_dual(x, x), *others, backend="fused")


# Tracers, profilers, modes


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_what_was_computed(mode: str) -> None:
    arguments = small()
    graph = make_fx(lambda *a: ops.cross_hadamard_expand(*a) + 1, tracing_mode=mode)(*arguments)
    others = small()
    close(graph(*others), reference.cross_hadamard_expand(*others) + 1)


def test_the_profiler_has_a_row_for_each_direction() -> None:
    inputs = leaves(small())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.cross_hadamard_expand(*inputs).sum().backward()
        with torch.no_grad():
            ops.cross_hadamard_expand(*inputs)
    rows = {row.key: row.count for row in profile.key_averages()}
    assert rows["hadaptive::cross_hadamard_expand"] == 2
    assert rows["hadaptive::cross_hadamard_expand_backward"] == 1


def test_a_dispatch_mode_sees_the_operator() -> None:
    with Seen() as seen:
        ops.cross_hadamard_expand(*small())
    assert "hadaptive.cross_hadamard_expand.default" in seen.names


class Labelled(Tensor):
    """A subclass that survives PyTorch's functions."""


def test_a_subclass_stays_one() -> None:
    x, *others = small()
    y = ops.cross_hadamard_expand(x.as_subclass(Labelled), *others)
    assert type(y) is Labelled
    close(y.as_subclass(Tensor), ops.cross_hadamard_expand(x, *others))


def test_lazily_negated_maps() -> None:
    """The imaginary part of a conjugate is a plain real tensor whose memory holds the opposite sign."""
    x, *others = small()
    lazy = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert lazy.is_neg()
    close(ops.cross_hadamard_expand(lazy, *others), ops.cross_hadamard_expand(x, *others))


def test_inference_mode_and_what_comes_out_of_it() -> None:
    x, *others = small()
    with torch.inference_mode():
        y = ops.cross_hadamard_expand(x, *others)
        again = ops.cross_hadamard_expand(x.clone(), *(t.clone() for t in others))
    assert y.is_inference()
    close(y.clone(), ops.cross_hadamard_expand(x, *others))
    close(again.clone(), y.clone())


# Modules


def test_copies_and_pickles_of_a_module_compute_the_same() -> None:
    module = AdaptiveCrossHadamard(6, 4, selection="sample").eval()
    x = torch.randn(2, 6, 3, 3)
    module(x).sum().backward()  # kernels have run, gradients are there
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other(x).equal(module(x))


@pytest.mark.filterwarnings("ignore")  # DataParallel is deprecated
def test_data_parallel_without_a_gpu() -> None:
    module = AdaptiveCrossHadamard(6, 4, selection="sample").eval()
    x = torch.randn(2, 6, 3, 3)
    assert nn.DataParallel(module)(x).equal(module(x))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_data_parallel_on_two_gpus() -> None:
    module = AdaptiveCrossHadamard(6, 4, selection="sample").eval().cuda()
    x = torch.randn(4, 6, 3, 3, device="cuda")
    close(nn.DataParallel(module, device_ids=[0, 1])(x), module(x))


def test_traced_and_scripted_modules_take_the_plain_path() -> None:
    module = AdaptiveCrossHadamard(6, 4, selection="sample").eval()
    x = torch.randn(2, 6, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        close(torch.jit.trace(module, x)(x), module(x))


# Arguments in the wrong place


@pytest.mark.parametrize("place", range(6))
def test_an_argument_on_another_device_is_named(place: int) -> None:
    arguments = list(small())
    arguments[place] = arguments[place].to("meta")
    name = ("index", "index", "gate", "alpha", "weight", "bias")[place]
    with pytest.raises(ValueError, match=f"{name} is on .* and the map on .*; move one to the other"):
        ops.cross_hadamard_expand(*arguments)


def test_select_channels_and_dysoft_name_it_too() -> None:
    x, index, gate, *affine = small()
    with pytest.raises(ValueError, match="gate is on meta"):
        ops.select_channels(x, index, gate.to("meta"))
    with pytest.raises(ValueError, match="bias is on meta"):
        ops.dysoft(x[:, :3], *affine[:2], affine[2].to("meta"))


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantized tensor:UserWarning")
@pytest.mark.parametrize(
    "strange",
    [
        lambda x: x.to_sparse(),
        lambda x: torch.nested.nested_tensor(list(x)),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        lambda x: x.to(torch.complex64),
        lambda x: x.to_mkldnn(),
    ],
    ids=["sparse", "nested", "quantised", "complex", "mkldnn"],
)
def test_strange_maps_get_a_sentence(strange: Any) -> None:
    x, *others = small()
    with pytest.raises(ValueError, match=r"x must be a (dense|floating-point) tensor"):
        ops.cross_hadamard_expand(strange(x), *others)


def test_the_old_name_still_answers_and_says_so() -> None:
    arguments = small()
    with pytest.warns(DeprecationWarning, match="cross_hadamard_expand"):
        assert ops.expand(*arguments).equal(ops.cross_hadamard_expand(*arguments))
