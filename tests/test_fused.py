"""The fused expansion against the reference in float64: values, every gradient, layouts, threads, processes."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import LAYOUTS, arranged, leaves, problem
from processes import forked, run_python
from tolerances import TOLERANCES, dtype_id
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import hadaptive
from hadaptive import ops
from hadaptive.nn import AdaptiveCrossHadamard
from hadaptive.ops import library, reference

pytestmark = pytest.mark.skipif(library._unusable("cpu") is not None, reason="Numba is not installed")
DTYPES = library.DTYPES
ALPHA = 3  # its place among the arguments


def terms_of_alpha(arguments: list, grad: Tensor) -> Tensor:
    """What each product adds to alpha's gradient, (B, P, S...). They nearly cancel, and each has its rounding."""
    x, index, gate, alpha, weight, bias = arguments
    products = reference.pair_products(reference.select_channels(x, index, gate)).detach()
    each = alpha.detach().expand(products.shape).clone().requires_grad_()
    y = reference.softsign_affine(products, each, weight, bias)
    return torch.autograd.grad(y, each, grad[:, x.shape[1] :].to(y.dtype))[0]


def test_terms_of_alpha_add_up_to_its_gradient() -> None:
    true = leaves(problem((2, 7, 3, 3), 4, torch.float64))
    y = reference.cross_hadamard_expand(*true)
    grad = torch.randn_like(y)
    torch.testing.assert_close(
        terms_of_alpha(true, grad).sum().view(1), torch.autograd.grad(y, true[ALPHA], grad)[0]
    )


def check(arguments: tuple, layout_of_gradient: str = "contiguous") -> None:
    """Values and gradients of the fused backend within the dtype's tolerance of the reference in float64."""
    x = arguments[0]
    mine, true = leaves(arguments), leaves(arguments, torch.float64)
    y, expected = ops.cross_hadamard_expand(*mine, backend="fused"), reference.cross_hadamard_expand(*true)
    assert y.dtype == x.dtype
    assert y.shape == expected.shape
    tolerance = TOLERANCES[x.dtype]
    torch.testing.assert_close(y.double(), expected, **tolerance)
    assert y[:, : x.shape[1]].equal(x)
    grad = arranged(torch.randn(y.shape).to(y.dtype), layout_of_gradient)
    wanted = [i for i, a in enumerate(mine) if a is not None and a.requires_grad]
    found = torch.autograd.grad(y, [mine[i] for i in wanted], grad)
    truth = torch.autograd.grad(expected, [true[i] for i in wanted], grad.double())
    for i, a, b in zip(wanted, found, truth, strict=True):
        assert a.dtype == mine[i].dtype
        assert a.shape == mine[i].shape
        # A sum of many float32 terms is as exact as its largest terms are; alpha's is of all products.
        room = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        if i == ALPHA:
            room = max(room, float(terms_of_alpha(true, grad).norm()))
        torch.testing.assert_close(a.double() / room, b / room, **tolerance)


@pytest.mark.usefixtures("nan_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "k"),
    [
        ((1, 2, 1, 1), 2),
        ((2, 5, 7, 7), 5),
        ((3, 17, 15, 17), 16),
        ((1, 33, 4, 4), 33),
        ((5, 13, 31), 7),
        ((2, 9, 3, 2, 5), 4),
        ((4, 8), 3),
        ((0, 6, 5, 5), 3),
        ((2, 6, 0, 5), 3),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else f"k{value}",
)
def test_awkward_shapes(shape: tuple[int, ...], k: int, layout: str, dtype: torch.dtype) -> None:
    check(problem(shape, k, dtype, layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layout_of_gradient", LAYOUTS)
def test_gradients_of_any_layout(layout: str, layout_of_gradient: str) -> None:
    check(problem((3, 11, 6, 5), 6, torch.float32, layout), layout_of_gradient)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_expanded_gradient(layout: str) -> None:
    x, *others = leaves(problem((2, 7, 3, 3), 4, torch.float32, layout))
    y = ops.cross_hadamard_expand(x, *others, backend="fused")
    y.sum().backward()
    expected = leaves((x, *others))
    reference.cross_hadamard_expand(*expected).sum().backward()
    torch.testing.assert_close(x.grad, expected[0].grad)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    channels = data.draw(st.integers(2, 40), "channels")
    k = data.draw(st.integers(2, min(channels, 36)), "k")
    spatial = data.draw(st.lists(st.integers(1, 9), max_size=3), "spatial")
    shape = (data.draw(st.integers(0, 6), "batch"), channels, *spatial)
    check(
        problem(
            shape,
            k,
            data.draw(st.sampled_from(DTYPES)),
            data.draw(st.sampled_from(LAYOUTS)),
            data.draw(st.booleans(), "gated"),
            data.draw(st.sampled_from([1e-3, 1.0, 30.0])),
        ),
        data.draw(st.sampled_from(LAYOUTS), "gradient"),
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_channel_selected_twice(layout: str) -> None:
    x, _, gate, *rest = problem((2, 6, 4, 4), 4, torch.float32, layout)
    check((x, torch.tensor([[1, 1, 3, 5], [0, 2, 2, 2]]), gate, *rest))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [1e15, 1e19, -1e30])
def test_products_that_overflow_stay_finite(layout: str, value: float) -> None:
    x, *rest = problem((2, 6, 4, 4), 4, torch.float32, layout)
    mine = leaves((torch.full_like(x, value), *rest))
    y = ops.cross_hadamard_expand(*mine, backend="fused")
    y.sum().backward()
    assert y.isfinite().all()
    assert all(a.grad.isfinite().all() for a in mine if a is not None and a.requires_grad)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_passes(layout: str) -> None:
    x, index, *rest = problem((1, 6, 4, 4), 4, torch.float32, layout)
    x[0, int(index[0, 0]), 1, 2] = float("nan")
    y = ops.cross_hadamard_expand(x, index, *rest, backend="fused")
    assert y[:, :, 1, 2].isnan().sum() == 1 + 3  # the channel itself and its three products
    assert y.isnan().sum() == 4


@pytest.mark.parametrize("bad", [-1, 6])
def test_index_out_of_range_is_refused(bad: int) -> None:
    x, index, *rest = problem((1, 6, 4, 4), 4, torch.float32)
    index[0, 0] = bad
    with pytest.raises(IndexError, match="outside 0 to 5"):
        ops.cross_hadamard_expand(x, index, *rest, backend="fused")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_second_derivatives(layout: str) -> None:
    arguments = problem((2, 5, 3, 2), 3, torch.float32, layout)
    mine, true = leaves(arguments), leaves(arguments, torch.float64)
    seconds = []
    for inputs, operator in ((mine, library.cross_hadamard_expand), (true, reference.cross_hadamard_expand)):
        floating = [a for a in inputs if a.is_floating_point()]
        first = torch.autograd.grad(operator(*inputs).square().sum(), floating, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), floating))
    for a, b in zip(*seconds, strict=True):
        torch.testing.assert_close(a.double() / b.abs().max(), b / b.abs().max(), rtol=1e-4, atol=1e-5)


def test_only_what_needs_a_gradient_gets_one() -> None:
    arguments = list(problem((2, 5, 3, 2), 3, torch.float32))
    for wanted in (0, 2, 3, 4, 5):
        inputs = [
            a.detach().requires_grad_(i == wanted) if a.is_floating_point() else a for i, a in enumerate(arguments)
        ]
        ops.cross_hadamard_expand(*inputs, backend="fused").sum().backward()
        assert [i for i, a in enumerate(inputs) if a.grad is not None] == [wanted]


def test_saves_the_inputs_and_nothing_else() -> None:
    saved: list[int] = []
    inputs = leaves(problem((4, 32, 7, 7), 16, torch.float32))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        ops.cross_hadamard_expand(*inputs, backend="fused")
    assert set(saved) <= {a.data_ptr() for a in inputs}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_do_not_depend_on_the_threads(layout: str) -> None:
    arguments = problem((13, 40, 14, 14), 24, torch.float32, layout)
    grad = torch.randn(13, 40 + 276, 14, 14)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            inputs = leaves(arguments)
            y = ops.cross_hadamard_expand(*inputs, backend="fused")
            y.backward(grad)
            results.append([y, *(a.grad for a in inputs if a.is_floating_point())])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


def test_several_python_threads_at_once() -> None:
    arguments = problem((8, 40, 14, 14), 24, torch.float32)
    expected = ops.cross_hadamard_expand(*arguments, backend="fused")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: ops.cross_hadamard_expand(*arguments, backend="fused"), range(64)))
    finally:
        torch.set_num_threads(threads)
    assert all(y.equal(expected) for y in results)


def _send_expansion(pipe, arguments: tuple) -> None:
    # By NumPy: PyTorch's own sum may hang in a forked process, whose OpenMP threads are gone.
    pipe.send(float(ops.cross_hadamard_expand(*arguments, backend="fused").numpy().sum()))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on forking with threads
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_forked_process_makes_its_own_threads() -> None:
    arguments = problem((8, 40, 14, 14), 24, torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = float(
            ops.cross_hadamard_expand(*arguments, backend="fused").numpy().sum()
        )  # the pool exists now
        mine, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(
            target=_send_expansion, args=(theirs, arguments), daemon=True
        )
        child.start()
        assert mine.poll(60)
        assert mine.recv() == pytest.approx(expected, rel=1e-6)
        child.join()
    finally:
        torch.set_num_threads(threads)


class _Expansions(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: int) -> Tensor:
        torch.manual_seed(item)
        return ops.cross_hadamard_expand(*problem((2, 9, 5, 5), 4, torch.float32), backend="fused")


def test_in_loader_processes() -> None:
    alone = [item.clone() for item in DataLoader(_Expansions(), batch_size=None)]
    both = list(DataLoader(_Expansions(), batch_size=None, num_workers=2))
    assert all(a.equal(b) for a, b in zip(alone, both, strict=True))


@pytest.mark.slow
def test_read_only_install_without_a_home(tmp_path: Path) -> None:
    """Numba finds no folder for its cache: it compiles anew, and works."""
    package = tmp_path / "hadaptive"
    shutil.copytree(Path(hadaptive.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import torch\nfrom hadaptive import ops\n"
        "x, i = torch.ones(1, 3, 2, 2), torch.tensor([[0, 1, 2]])\n"
        "ones = torch.ones(3)\n"
        "y = ops.cross_hadamard_expand(x, i, None, ones[:1], ones, 0 * ones, backend='fused')\n"
        "assert y[0, 3:].eq(0.5).all(), y\n"
    )
    # A file in the place of the cache folder cannot be made a folder, by root neither.
    (package / "ops" / "__pycache__").write_text("")
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.update({name: str(tmp_path / "file") for name in ("HOME", "XDG_CACHE_HOME")})
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1500:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor and dynamo warn about what they import
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles_without_a_graph_break_for_any_batch(layout: str) -> None:
    compiled = torch.compile(
        lambda *a: ops.cross_hadamard_expand(*a).square(), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for batch in (2, 5):
        arguments = problem((batch, 9, 4, 3), 5, torch.float32, layout)
        mine, true = leaves(arguments), leaves(arguments)
        y, expected = compiled(*mine), ops.cross_hadamard_expand(*true, backend="reference").square()
        torch.testing.assert_close(y, expected)
        y.sum().backward()
        expected.sum().backward()
        for a, b in zip(mine, true, strict=True):
            if a.is_floating_point():
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_autocast_keeps_the_inputs_dtype() -> None:
    arguments = problem((2, 9, 4, 3), 5, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.cross_hadamard_expand(*arguments)
    assert y.dtype == torch.bfloat16
    assert y.equal(ops.cross_hadamard_expand(*arguments))


def test_a_whole_module_agrees_and_exports_take_the_plain_path() -> None:
    module = AdaptiveCrossHadamard(12, 5, selection="sample").eval()
    x = torch.randn(2, 12, 6, 6)
    with ops.backend("reference"):
        expected = module(x)
    torch.testing.assert_close(module(x), expected)
    program = torch.export.export(module, (x,))
    assert "hadaptive" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and the shape checks are traced as constants
        traced = torch.jit.trace(module, x)
    assert "PythonOp" not in str(traced.graph)


@pytest.mark.parametrize(
    ("x", "words"),
    [(torch.ones(1, 3, 2, 2, dtype=torch.float64), "float64"), (torch.ones(1, 3, 2, 2, device="meta"), "meta")],
    ids=["float64", "meta"],
)
def test_a_forced_backend_says_why_it_cannot(x: Tensor, words: str) -> None:
    index = torch.tensor([[0, 1, 2]], device=x.device)
    ones = torch.ones(3, device=x.device)
    with pytest.raises(ValueError, match=words):
        ops.cross_hadamard_expand(x, index, None, ones[:1], ones, ones, backend="fused")


def test_without_numba_the_reference_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_unusable", lambda device: "Numba is not installed")
    monkeypatch.setattr(library, "cross_hadamard_expand", None)  # calling it would fail
    arguments = problem((2, 5, 3, 2), 3, torch.float32)
    assert ops.cross_hadamard_expand(*arguments).equal(reference.cross_hadamard_expand(*arguments))
    with pytest.raises(ValueError, match="Numba is not installed"):
        ops.cross_hadamard_expand(*arguments, backend="fused")


GRADIENTS = """
import hashlib
import torch
from problems import arranged, problem
from hadaptive import ops

torch.manual_seed(0)
for layout in ("contiguous", "channels_last"):
    x, index, gate, alpha, weight, bias = problem((6, 12, 9, 9), 7, torch.float32, layout)
    inputs = [t.requires_grad_() for t in (x, gate, alpha, weight, bias)]
    y = ops.cross_hadamard_expand(inputs[0], index, *inputs[1:])
    y.backward(arranged(torch.randn(y.shape), layout))
    for t in (y, *(t.grad for t in inputs)):
        print(hashlib.md5(t.detach().contiguous().numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_kernels_from_the_cache_compute_what_fresh_ones_do(tmp_path) -> None:
    # To the last bit: otherwise a resumed run differs from a whole one.
    fresh, cached = (run_python(GRADIENTS, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert fresh.returncode == cached.returncode == 0, fresh.stderr + cached.stderr
    assert list(tmp_path.rglob("*.nbc"))
    assert len(fresh.stdout.split()) == 12
    assert fresh.stdout == cached.stdout


# ---------------------------------------------------------------- PyTorch's own defaults


def defaults_do_not_matter() -> str:
    """Compare forward and backward under each default dtype and device; what differs. In a process of its own:
    an address on the meta device is none, and would kill it."""
    differ = []
    for layout in LAYOUTS:
        for gated in (False, True):
            arguments = problem((3, 6, 2, 2), 4, torch.float32, layout, gated)
            grad, results = torch.randn(3, 12, 2, 2), []
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                for device in ("cpu", "meta"):
                    torch.set_default_dtype(dtype)
                    torch.set_default_device(device)
                    mine = leaves(arguments)
                    y = ops.cross_hadamard_expand(*mine, backend="fused")
                    wanted = [a for a in mine if a is not None and a.requires_grad]
                    results.append([y.detach(), *torch.autograd.grad(y, wanted, grad)])
                    torch.set_default_dtype(torch.float32)
                    torch.set_default_device("cpu")
                    if not all(map(torch.equal, results[0], results[-1])):
                        differ.append(f"{layout} {gated} {dtype} {device}")
    return ", ".join(differ)


def test_the_default_dtype_and_device_do_not_matter() -> None:
    assert forked(defaults_do_not_matter).returncode == 0
