"""What a CPU kernel may be given, and what it may meet: addresses, forks, threads, files, no memory."""

import contextlib
import ctypes
import errno
import itertools
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import arranged, problem, reference_because
from processes import forked
from torch import Tensor

from hadaptive import ops
from hadaptive.ops import cpu_run, reference

numba = pytest.importorskip("numba")
from hadaptive.ops import cpu_compile, cpu_launch  # noqa: E402
from hadaptive.ops.cpu_compile import compiled, task_fields, worker  # noqa: E402

NAMES = ("x", "index", "gate", "alpha", "weight", "bias")
LAYOUTS = ("contiguous", "channels_last")


# ---------------------------------------------------------------- addresses


@contextlib.contextmanager
def defaults(dtype: torch.dtype, device: str | None, inside: bool) -> Iterator[None]:
    """PyTorch's defaults, the device's set for good or for a block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        if inside and device is not None:
            with torch.device(device):
                yield
        else:
            torch.set_default_device(device)
            yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


def both_ways(arguments: list, grad: Tensor) -> list[Tensor]:
    mine = [a.detach().requires_grad_(a.is_floating_point()) for a in arguments]
    y = ops.cross_hadamard_expand(*mine)
    return [y.detach(), *torch.autograd.grad(y, [a for a in mine if a.requires_grad], grad)]


def defaults_and_misplaced_arguments() -> str:
    """Every default dtype and device with every argument on another device; what went wrong. An address on
    the meta device is none, so in a process of its own."""
    wrong = []
    for layout in LAYOUTS:
        arguments = list(problem((3, 6, 2, 2), 4, torch.float32, layout))
        grad = arranged(torch.randn(3, 12, 2, 2), layout)
        expected = both_ways(arguments, grad)
        dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        for case in itertools.product(dtypes, (None, "cpu", "meta"), (False, True), (None, *NAMES, "grad")):
            dtype, device, inside, misplaced = case
            given = [a.to("meta") if n == misplaced else a for n, a in zip(NAMES, arguments, strict=True)]
            with defaults(dtype, device, inside):
                try:
                    found = both_ways(given, grad.to("meta") if misplaced == "grad" else grad)
                except (ValueError, RuntimeError) as refused:
                    if misplaced is None or "meta" not in str(refused):
                        wrong.append(f"{layout} {case}: {refused}")
                    continue
            if misplaced is not None or not all(map(torch.equal, found, expected)):
                wrong.append(f"{layout} {case}")
    return "\n".join(wrong)


def test_default_dtypes_default_devices_and_misplaced_arguments() -> None:
    done = forked(defaults_and_misplaced_arguments)
    assert done.returncode == 0, done.stderr


def resized(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() - tensor.itemsize)
    return tensor


def freed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def zeros_without_memory(tensor: Tensor) -> Tensor:
    return torch._efficientzerotensor(tensor.shape)


def masked(tensor: Tensor) -> Tensor:
    return torch.masked.masked_tensor(tensor, torch.ones_like(tensor, dtype=torch.bool))


def sign_pending(tensor: Tensor) -> Tensor:
    return torch._neg_view(-tensor)


def same_memory(tensor: Tensor) -> Tensor:
    return tensor[:1].expand(tensor.shape)


def in_inference_mode(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


# Of each: the tensor, and whether it has a value; where it has none, the answer is one sentence.
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "freed": (freed, False),
    "resized": (resized, False),
    "zeros without memory": (zeros_without_memory, True),
    "masked": (masked, True),
    "sparse": (Tensor.to_sparse, True),
    "mkldnn": (Tensor.to_mkldnn, True),
    "sign pending": (sign_pending, True),
    "same memory": (same_memory, True),
    "inference": (in_inference_mode, True),
    "double": (Tensor.double, True),
    "half": (Tensor.half, True),
    "whole numbers": (Tensor.int, True),
    "complex": (lambda tensor: torch.complex(tensor, tensor), False),
    "nested": (lambda tensor: torch.nested.nested_tensor([tensor[0], tensor[0]]), False),
    "none": (lambda tensor: None, False),
    "a list": (Tensor.tolist, False),
    "every other": (lambda tensor: torch.stack([tensor, tensor], -1)[..., 0], True),
}


OF_INDEX = ("freed", "resized", "same memory", "nested", "none", "a list", "every other")
NOT_TRIED = {("gate", "none"), ("alpha", "nested"), ("weight", "nested"), ("bias", "nested")}


def kinds_of_tensors() -> str:
    """Each argument as each kind of tensor: a right value or one clear sentence, in a process that may die."""
    wrong = []
    for layout, (kind, (make, valued)) in itertools.product(LAYOUTS, KINDS.items()):
        arguments = list(problem((3, 6, 2, 2), 4, torch.float32, layout))
        for n, name in enumerate(NAMES):
            if (name == "index" and kind not in OF_INDEX) or (name, kind) in NOT_TRIED:
                continue
            print(layout, kind, name, flush=True)
            given = [make(a) if i == n else a for i, a in enumerate(arguments)]
            try:
                y = ops.cross_hadamard_expand(*given)
            except (ValueError, TypeError, RuntimeError, NotImplementedError) as refused:
                if not str(refused) or "Internal error" in str(refused):
                    wrong.append(f"{layout} {kind} {name}: {refused!r}")
                continue
            plain = [a.to_dense() if a.layout is not torch.strided else a for a in given]
            expected = (
                reference.cross_hadamard_expand(*(a.clone().resolve_neg() for a in plain)) if valued else None
            )
            if expected is None or not torch.allclose(y.double(), expected.double(), rtol=1e-3, atol=1e-3):
                wrong.append(f"{layout} {kind} {name}")
    return "\n".join(wrong)


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_tensor_gives_its_value_or_one_sentence() -> None:
    done = forked(kinds_of_tensors)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-1500:]


def calls_past_the_door() -> str:
    """The operators as torch.ops has them, with sizes and dtypes that do not fit; what was not refused."""
    x, index, gate, alpha, weight, bias = problem((3, 6, 2, 2), 4, torch.float32)
    grad, forward = torch.randn(3, 12, 2, 2), torch.ops.hadaptive.cross_hadamard_expand
    wrong = {
        "weight": (x, index, gate, alpha, weight[:3], bias),
        "long weight": (x, index, gate, alpha, torch.ones(600), torch.ones(600)),
        "bias": (x, index, gate, alpha, weight, bias[:2]),
        "alpha": (x, index, gate, alpha[:0], weight, bias),
        "index": (x, index[0], gate, alpha, weight, bias),
        "short index": (x, index[:2], gate, alpha, weight, bias),
        "int32": (x, index.int(), gate, alpha, weight, bias),
        "negative": (x, index - 100, gate, alpha, weight, bias),
        "far": (x, index + 2**62, gate, alpha, weight, bias),
        "gate": (x, index, gate[:1], alpha, weight, bias),
        "double": (x.double(), index, gate, alpha, weight, bias),
        "one dimension": (x[0, 0, 0], index, gate, alpha, weight, bias),
        "no channel": (x[:, :0], index, gate, alpha, weight, bias),
    }
    calls = {name: lambda arguments=arguments: forward(*arguments) for name, arguments in wrong.items()}
    backward = torch.ops.hadaptive.cross_hadamard_expand_backward
    for name, arguments in wrong.items():
        if name != "bias":
            calls[f"{name}, backward"] = lambda arguments=arguments: backward(grad, *arguments[:5])
    for name, given in {"samples": grad[:2], "channels": grad[:, :7], "one": grad[:0, 0]}.items():
        calls[f"grad of other {name}"] = lambda given=given: backward(given, x, index, gate, alpha, weight)
    for name, call in calls.items():
        with contextlib.suppress(ValueError, IndexError):
            call()
            return f"{name} was not refused"
    return ""


def test_the_registered_operators_refuse_what_does_not_fit() -> None:
    done = forked(calls_past_the_door)
    assert done.returncode == 0, done.stderr


def without_memory() -> str:
    """A million pairs, whose backward pass works in 144 MB of which there are 80."""
    import resource  # Windows has none

    x, index, gate, alpha, weight, bias = problem((1, 1500, 1, 1), 1500, torch.float32)
    mine = [t.requires_grad_() for t in (x, gate, alpha, weight, bias)]
    y = ops.cross_hadamard_expand(mine[0], index, *mine[1:])
    y.sum().backward()  # compiled now
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 80_000_000, -1))
    try:
        ops.cross_hadamard_expand(mine[0], index, *mine[1:]).sum().backward()
    except MemoryError:
        return ""
    return "it went on without its memory"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much memory is held is read from /proc")
def test_no_memory_is_an_error_and_not_an_answer() -> None:
    done = forked(without_memory)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- forks and threads


def first_in_a_child() -> int:
    """A forked child is the first to run a kernel, once PyTorch has started its threads here; its status."""
    cpu_run._Process.forked = False  # this process was forked from one that had computed nothing
    torch.set_num_threads(2)
    torch.randn(1000, 1000).sin().sum()
    arguments = problem((8, 40, 14, 14), 24, torch.float32)
    if os.fork() == 0:
        signal.alarm(60)  # ends it where it hangs
        os._exit(ops.cross_hadamard_expand(*arguments, backend="fused").shape[1] != 316)
    return os.wait()[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_may_be_the_first_to_run_a_kernel() -> None:
    done = forked(first_in_a_child)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_while_python_ends_no_thread_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = problem((8, 40, 14, 14), 24, torch.float32)
    expected = ops.cross_hadamard_expand(*arguments, backend="fused")
    ended = ThreadPoolExecutor(3)
    ended.shutdown()
    monkeypatch.setattr(cpu_run, "_openmp", lambda: None)
    monkeypatch.setattr(cpu_run, "_executor", lambda threads: ended)
    assert ops.cross_hadamard_expand(*arguments, backend="fused").equal(expected)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_one_thread_does_is_not_cut(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, sound = [], cpu_launch.run

    def run(worker: Any, task: Any, arrays: Any, threads: int) -> None:
        chunks.append((task.chunks, threads))
        sound(worker, task, arrays, threads)

    monkeypatch.setattr(cpu_launch, "run", run)
    for k in (12, 36):  # 12,936 products, and 123,480
        ops.cross_hadamard_expand(*problem((1, 40, 14, 14), k, torch.float32, layout), backend="fused")
    assert chunks[0] == (1, 1)
    assert chunks[1][0] > 4
    assert chunks[1][1] == 4


# ---------------------------------------------------------------- kernels on disk


class Task(ctypes.Structure):
    _fields_ = task_fields("of_chunk_0")


@compiled
def doubled_kernel(task, chunk):
    if chunk == 1:
        np.empty(1 << 60)  # no memory
    task.of_chunk_0 = 2 * task.of_chunk_0


def made_anew(kernel: Any) -> int:
    """1 where a kernel is found on disk, 0 where it is compiled; and it computes."""
    made, task = worker.__wrapped__(kernel, Task), Task(chunks=1, of_chunk_0=21)
    cpu_run.run(made, task, {}, 1)
    assert task.of_chunk_0 == 42
    return made.cache_hits


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def test_an_edited_source_makes_kernels_anew(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [made_anew(doubled_kernel) for _ in range(2)] == [0, 1]
    monkeypatch.setattr(cpu_compile, "sources", lambda: "edited")
    assert [made_anew(doubled_kernel) for _ in range(2)] == [0, 1]


def test_every_file_that_kernels_are_made_of_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(Path(ops.__file__).parent.glob("*.py"))
    for file in files:
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(cpu_compile.resources, "files", lambda package: tmp_path)
    made_of = {f.name for f in files if re.search(r"^(import|from) (numba|llvmlite)", f.read_text(), re.MULTILINE)}
    assert made_of >= {"cpu_kernels.py", "cpu_compile.py", "simd.py"}
    for name in made_of:
        before = cpu_compile.sources.__wrapped__()
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n# edited\n")
        assert cpu_compile.sources.__wrapped__() != before, name


@pytest.mark.parametrize("suffix", ["nbc", "nbi"])
@pytest.mark.parametrize("left", [0, 40], ids=["empty", "cut short"])
def test_a_broken_file_is_made_anew(suffix: str, left: int, kept: Path) -> None:
    made_anew(doubled_kernel)
    for path in kept.rglob(f"*.{suffix}"):
        path.write_bytes(path.read_bytes()[:left])
    assert [made_anew(doubled_kernel) for _ in range(2)] == [0, 1]


def test_a_full_disk_keeps_nothing(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_data", full)
    assert [made_anew(doubled_kernel) for _ in range(2)] == [0, 0]


def test_a_chunk_without_memory_is_told(kept: Path) -> None:
    made = worker.__wrapped__(doubled_kernel, Task)
    with pytest.raises(MemoryError, match="no memory"):
        cpu_run.run(made, Task(chunks=3), {}, 1)


def test_where_numba_compiles_nothing_plain_pytorch_is_used() -> None:
    done = forked(reference_because, "NUMBA_DISABLE_JIT is set", environments=({"NUMBA_DISABLE_JIT": "1"},))
    assert done.returncode == 0, done.stderr
