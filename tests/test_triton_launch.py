"""What the Triton kernels are launched with, and what the compiler makes of it, where there is no GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from problems import problem

triton = pytest.importorskip("triton")
triton_launch = pytest.importorskip("hadaptive.ops.triton_launch")
from triton.backends.compiler import GPUTarget  # noqa: E402 (Triton may be missing)

from benchmarks import kernels  # noqa: E402
from hadaptive.ops.triton_launch import Launch, Sizes  # noqa: E402

H100 = 132  # multiprocessors
LAYOUTS = ("nchw", "channels_last")
pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="an interpreted kernel is not compiled"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset:UserWarning"),
]


def launched(shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype = torch.bfloat16) -> dict:
    """By name, what is launched by default."""
    return {name: launch for name, default, launch in kernels.launches(shape, layout, dtype, H100) if default}


def taken(launch: Launch, capability: int) -> dict:
    return kernels.figures(kernels.compiled(launch, GPUTarget("cuda", capability, 32)), capability)


# ---------------------------------------------------------------- what is launched


def test_kernels_run_on_the_device_of_their_input(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.Tensor] = []
    guarded: list[bool] = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    arguments = problem((2, 6, 3, 5), 4, torch.float32)
    monkeypatch.setattr(Launch, "run", lambda self: guarded.append(current[-1:] == [arguments[0]]))
    y = triton_launch.expand_forward(*arguments)
    triton_launch.expand_backward(y, *arguments[:5])
    assert guarded == [True] * 4


def test_a_gpu_is_asked_for_its_multiprocessors_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Properties:
        multi_processor_count = H100

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: asked.append(number) or Properties)
    triton_launch._multiprocessors.cache_clear()
    found = [triton_launch.multiprocessors(torch.device("cuda", number)) for number in (0, 1, 0, 1)]
    triton_launch._multiprocessors.cache_clear()
    assert found == [H100] * 4
    assert asked == [0, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(128, 32, 14, 1), (96, 16, 14, 1), (192, 36, 7, 1)], ids=str)
def test_one_sample_is_spread_over_the_gpu(shape: tuple, layout: str) -> None:
    for name, launch in launched(shape, layout).items():
        assert launch.programs >= (H100 if name.startswith("forward") else H100 // 2), name


def test_positions_fewer_than_lanes_are_shared_with_pairs() -> None:
    def default(positions: int, cols: bool) -> str:
        return triton_launch.default_schedule(Sizes(64, 96, 24, positions, cols, H100))

    assert [default(n, cols=False) for n in (1, 16, 49, 196)] == ["direct", "direct", "flat", "balanced"]
    assert {default(n, cols=True) for n in (1, 16, 49, 196)} == {"direct"}


def test_only_samples_beyond_two_to_the_31_have_distances_of_64_bits() -> None:
    def far(positions: int) -> bool:
        return Sizes(1, 64, 64, positions, False, H100).constants["far"]

    width = 64 + 64 * 63 // 2
    assert not far(2**31 // width)
    assert far(2**31 // width + 1)


# ---------------------------------------------------------------- what is compiled


@pytest.mark.slow
@pytest.mark.parametrize("target", [("cuda", 90, 32), ("hip", "gfx942", 64)], ids=["sm90", "gfx942"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("number", range(8))
def test_compiles_for_gpus_that_are_not_here(number: int, gated: bool, target: tuple) -> None:
    found = list(kernels.launches((96, 24, 7, 32), "nchw", torch.bfloat16, H100, gated))
    assert len(found) == 8
    binary = kernels.compiled(found[number][2], GPUTarget(*target))
    assert binary.asm["cubin" if target[0] == "cuda" else "hsaco"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_beyond_two_to_the_31_compile(layout: str) -> None:
    for what, _, launch in kernels.launches((8192, 16, 512, 1), layout, torch.bfloat16, H100, gated=False):
        if "far" in launch.constants:
            assert launch.constants["far"], what
            assert kernels.compiled(launch, GPUTarget("cuda", 90, 32)).asm["cubin"]


@pytest.mark.parametrize(
    ("shape", "layout", "dtype", "capability"),
    [
        ((128, 32, 14, 256), "nchw", torch.bfloat16, 90),
        ((192, 36, 7, 256), "nchw", torch.float32, 80),
        ((128, 32, 14, 256), "channels_last", torch.float32, 90),
        ((192, 36, 7, 256), "channels_last", torch.float16, 80),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_no_kernel_spills_and_sums_are_reduced_outside_of_loops(
    shape: tuple, layout: str, dtype: torch.dtype, capability: int
) -> None:
    for name, launch in launched(shape, layout, dtype).items():
        found = taken(launch, capability)
        assert found["spilled_bytes"] == 0, name
        assert found["occupancy"] >= 0.125, name
        if layout == "nchw":  # elsewhere lanes exchange what they have loaded
            assert found["shuffles_in_loops"] == 0, name


def test_rows_that_four_divides_are_loaded_and_stored_in_vectors() -> None:
    for dtype, size in ((torch.bfloat16, 8), (torch.float32, 16)):
        found = taken(launched((128, 32, 14, 256), "nchw", dtype)["forward, balanced"], 90)
        assert found["stores_x_bytes"] == f"4 x {size}"


def test_rows_of_odd_size_are_stored_in_vectors() -> None:
    """Where y as a whole is a number of vectors; elsewhere elements have masks of their own."""
    for batch, stores in ((256, "1 x 16"), (255, "8 x 2")):
        found = taken(launched((192, 36, 7, batch), "nchw")["forward, flat"], 90)
        assert found["stores_x_bytes"] == stores


def test_a_spill_is_seen() -> None:
    launch = launched((192, 36, 7, 256), "nchw")["backward, pairs"]
    too_large = Launch(launch.kernel, 1, launch.arguments, {**launch.constants, "block_p": 16, "block_n": 64})
    assert taken(too_large, 90)["spilled_bytes"] > 0


def test_the_report_has_a_row_for_each_kernel(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SHAPES", kernels.SHAPES[:1])
    monkeypatch.setattr(kernels, "PROCESSORS", {90: H100})
    monkeypatch.setattr(kernels, "LAYOUTS", {"nchw": torch.contiguous_format})
    monkeypatch.setattr(kernels, "DTYPES", {"bfloat16": torch.bfloat16})
    path = tmp_path / "results" / "kernels.csv"
    rows = kernels.bench_kernels(kernels.KernelsConfig(path))
    names = [f"forward, {name}" for name in triton_launch.SCHEDULES]
    assert [row["kernel"] for row in rows] == [*names, "backward, slots", "backward, pairs", "backward, input"]
    assert len(path.read_text().splitlines()) == 9
    assert all(row["commit"] and row["triton"] and row["target"] == "sm_90" for row in rows)
