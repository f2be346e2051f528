"""The Triton kernels against the reference in float64: every schedule, both layouts, values and all gradients.

They run on a GPU where there is one, and elsewhere in Triton's interpreter, which must be switched on before
Triton is imported: hence the process of its own.
"""

import itertools
import os
import re
import subprocess
import sys

import pytest
import torch
from problems import arranged, problem
from tolerances import TOLERANCES

from hadaptive.ops import reference

triton = pytest.importorskip("triton")
tl = triton.language
triton_kernels = pytest.importorskip("hadaptive.ops.triton_kernels")
triton_launch = pytest.importorskip("hadaptive.ops.triton_launch")
_pair_of = triton_kernels._pair_of

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCHEDULES = ("native", "direct", "balanced", "tiled", "flat")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
needs_kernels = pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="run by test_in_the_interpreter")


# NumPy takes all pairs at once. A compiled kernel of so large a block takes the compiler minutes.
PAIRS_AT_ONCE = 131_072 if INTERPRETED else 1024


@triton.jit
def _all_pairs_kernel(out, k, pairs, block: tl.constexpr):
    p = tl.program_id(0) * block + tl.arange(0, block)
    i, j = _pair_of(tl.where(p < pairs, p, 0), k, 1)
    tl.store(out + p, i, mask=p < pairs)
    tl.store(out + pairs + p, j, mask=p < pairs)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the tests below run here")
def test_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found
    assert int(found[1]) > 60, done.stdout[-400:]  # they were not skipped


SHAPES = [
    ((1, 2, 1, 1), 2),
    ((1 if INTERPRETED else 2, 9, 5, 13), 8),
    ((2, 7, 33), 6),
    ((4, 8), 3),
    ((0, 6, 5, 5), 3),
    ((2, 5, 7, 7), 5),
    ((1, 11, 3, 11), 9),
][: 5 if INTERPRETED else 7]
LAYOUTS = ["contiguous", "channels_last"]
# The interpreter takes seconds for each, and so does a compiler: a third, in which any two values of two meet.
CASES = [
    (*SHAPES[a], SCHEDULES[b], LAYOUTS[c], DTYPES[d])
    for a, b, c, d in itertools.product(*(range(len(v)) for v in (SHAPES, SCHEDULES, LAYOUTS, DTYPES)))
    if (a + b + c + d) % 3 == 0 and (SCHEDULES[b] != "flat" or LAYOUTS[c] == "contiguous")  # else it is direct
]


@needs_kernels
@pytest.mark.usefixtures("nan_empty")
@pytest.mark.parametrize(
    ("shape", "k", "schedule", "layout", "dtype"),
    CASES,
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else str(value).removeprefix("torch."),
)
def test_awkward_shapes(shape: tuple[int, ...], k: int, schedule: str, layout: str, dtype: torch.dtype) -> None:
    check(problem(shape, k, dtype, layout), schedule, "contiguous")


@needs_kernels
@pytest.mark.parametrize("layout", ["sliced", "batch last", "channels_last"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_strided_inputs_and_gradients(schedule: str, layout: str) -> None:
    check(problem((2, 6, 3, 5), 4, torch.float32, layout, gated=False), schedule, layout)


@needs_kernels
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_channel_selected_twice(schedule: str) -> None:
    arguments = list(problem((2, 6, 3, 5), 4, torch.float32))
    arguments[1] = torch.tensor([[3, 3, 0, 3], [1, 2, 1, 5]])
    check(tuple(arguments), schedule, "contiguous")


@needs_kernels
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # the interpreter is NumPy
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_products_that_overflow_stay_finite(schedule: str) -> None:
    arguments = problem((2, 6, 3, 5), 4, torch.float32, scale=1e30)
    check(arguments, schedule, "contiguous", torch.float32)


@needs_kernels
def test_many_selected_channels() -> None:
    check(problem((1, 70, 2), 70, torch.float32), None, "contiguous")


@needs_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_distances_of_64_bits(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = triton_launch.Sizes.constants.fget
    monkeypatch.setattr(triton_launch.Sizes, "constants", property(lambda s: {**constants(s), "far": True}))
    for schedule in SCHEDULES:
        check(problem((2, 6, 3, 5), 4, torch.float32, layout), schedule, layout)


@needs_kernels
@pytest.mark.parametrize("batch", [3, 8, 10])
def test_rows_of_odd_size_end_anywhere_in_a_vector(batch: int) -> None:
    """3 + 3 rows of 9 are 54 elements: four samples until one begins where a vector does."""
    check(problem((batch, 3, 9), 3, torch.float32), "flat", "contiguous")
    check(problem((batch, 3, 9), 3, torch.bfloat16, gated=False), "flat", "contiguous")


@needs_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_many_parts_as_a_gpu_has_room_for(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "multiprocessors", lambda device: 132)
    check(problem((1, 6, 3, 11), 5, torch.float32, layout), None, layout)


@needs_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "k", "block", "dtype", "gated"),
    [
        ((2, 9, 7, 7), 6, 2, torch.float32, True),
        ((1, 13, 3, 11), 12, 4, torch.bfloat16, False),
        ((3, 8, 9), 6, 3, torch.float16, True),
        ((2, 16, 5, 8), 16, 8, torch.float32, False),
        ((2, 7), 6, 3, torch.float32, True),
    ],
    ids=str,
)
def test_whole_blocks(
    shape: tuple[int, ...], k: int, block: int, dtype: torch.dtype, gated: bool, layout: str
) -> None:
    schedules = (None, "direct", "flat", "balanced")  # the last cannot, and becomes direct
    for schedule in schedules[gated::2] if INTERPRETED else schedules:
        check(problem(shape, k, dtype, layout, gated, block=block), schedule, layout, block=block)


@needs_kernels
def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="native, direct, balanced, tiled, flat; got 'zigzag'"):
        triton_launch.expand_forward(*problem((1, 4, 2), 2, torch.float32), schedule="zigzag")


@needs_kernels
def test_direct_indexing_is_right_for_every_k() -> None:
    """In float32 the root is off by one here and there, as far as k = 512."""
    for k in range(2, 513, 3 if INTERPRETED else 1):
        pairs = k * (k - 1) // 2
        out = torch.zeros(2, pairs, dtype=torch.int32, device=DEVICE)
        block = min(triton.next_power_of_2(pairs), PAIRS_AT_ONCE)
        _all_pairs_kernel[(triton.cdiv(pairs, block),)](out, k, pairs, block)
        assert out.long().cpu().equal(torch.triu_indices(k, k, 1)), k


def check(
    arguments: tuple,
    schedule: str | None,
    layout_of_gradient: str,
    truth_in: torch.dtype = torch.float64,
    block: int = 1,
) -> None:
    x = arguments[0]
    mine = [a if a is None else a.to(DEVICE) for a in arguments]
    true = [
        a.to(truth_in, copy=True).requires_grad_() if a is not None and a.is_floating_point() else a
        for a in arguments
    ]
    y, expected = (
        triton_launch.expand_forward(*mine, block, schedule=schedule).cpu(),
        reference.cross_hadamard_expand(*true, block),
    )
    tolerance = TOLERANCES[x.dtype]
    assert y.dtype == x.dtype
    torch.testing.assert_close(y.double(), expected.double(), **tolerance)
    assert y[:, : x.shape[1]].equal(x)
    grad = arranged(torch.randn(y.shape).to(y.dtype), layout_of_gradient)
    found = triton_launch.expand_backward(grad.to(DEVICE), *mine[:5], block)
    assert len({a.untyped_storage().data_ptr() for a in found if a.numel()}) == sum(
        map(bool, map(torch.numel, found))
    )
    wanted = [a for a in true if a is not None and a.requires_grad]
    truth = torch.autograd.grad(expected, wanted, grad.to(truth_in))
    if arguments[2] is None:
        found = (found[0], *found[2:])
    for a, b in zip(found, truth, strict=True):
        assert a.shape == b.shape
        room = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.cpu().double() / room, b.double() / room, **tolerance)
