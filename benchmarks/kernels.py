"""What the compiler makes of the GPU kernels, for GPUs that need not be here: ``python -m benchmarks kernels``.

Triton's package brings the assembler; no driver is needed. A row for each kernel, layout, dtype and GPU says how
many registers it takes and how many bytes of them it spills, how wide its loads and stores are, and how much of a
multiprocessor it can fill. Nothing is timed: two runs of one commit give the same rows.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hadaptive.bench.networks import LAYOUTS
from hadaptive.console import say
from hadaptive.files import append_csv
from hadaptive.ops import num_pairs, triton_launch
from hadaptive.ops.triton_launch import Launch
from hadaptive.provenance import provenance

SHAPES = ((128, 32, 14, 256), (192, 36, 7, 256), (128, 32, 14, 1))  # C, k, H = W, B
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROCESSORS = {80: 108, 90: 132}  # multiprocessors of an A100 and of an H100
SHARED_KIB = {80: 164, 90: 228}  # of a multiprocessor
REGISTERS, WARPS, BLOCKS = 65_536, 64, 32  # that a multiprocessor of either holds
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}


@dataclass(frozen=True)
class KernelsConfig:
    """Compile every GPU kernel for GPUs that need not be here and record what it takes of them.

    Attributes:
        results: CSV file that the rows are appended to.
    """

    results: Path = Path("benchmarks/results/kernels.csv")


def launches(
    shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype, processors: int, gated: bool = True
) -> Iterator[tuple[str, bool, Launch]]:
    """What is launched for maps of this shape (C, k, H = W, B): name, whether by default, launch."""
    channels, k, side, batch = shape
    pairs = num_pairs(k)

    def empty(*size: int, of: torch.dtype = torch.float32) -> Tensor:
        tensor = torch.empty(size, dtype=of, device="meta")
        return tensor.contiguous(memory_format=LAYOUTS[layout]) if len(size) == 4 else tensor

    x, y = (empty(batch, width, side, side, of=dtype) for width in (channels, channels + pairs))
    index, gate = empty(batch, k, of=torch.int64), empty(batch, k) if gated else None
    alpha, weight = empty(1), empty(pairs)
    s = triton_launch.sizes(x, index, processors)
    for schedule in triton_launch.SCHEDULES:
        launch = triton_launch.forward_launch(s, schedule, (x, index, gate, alpha, weight, weight, y))
        yield f"forward, {schedule}", schedule == triton_launch.default_schedule(s), launch
    gz = empty(batch, k, side, side)
    results = (x, gz, empty(batch, triton_launch.gate_parts(s), k), empty(triton_launch.pair_parts(s), 3, pairs))
    for launch in triton_launch.backward_launches(s, (y, x, index, gate, alpha, weight), results):
        part = launch.kernel.__name__.removeprefix("expand_").removesuffix("_bwd_kernel")
        yield f"backward, {part}", True, launch


def compiled(launch: Launch, target: GPUTarget) -> Any:
    """The kernel as Triton's launcher would have it compiled for these arguments on that GPU."""
    kernel = launch.kernel
    values = dict(zip(kernel.arg_names, launch.arguments, strict=False)) | launch.constants
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list] = {}
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        if isinstance(value, Tensor):
            signature[name] = TYPES[value.dtype]
        elif name in launch.constants or value in (None, 1):
            signature[name], constants[i,] = "constexpr", value
            continue
        else:
            signature[name] = "i32"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options={"num_warps": launch.num_warps})


def _tool(name: str, *arguments: str) -> str:
    path = getattr(knobs.nvidia, name).path
    return subprocess.run([path, *arguments], capture_output=True, encoding="utf-8", check=True).stdout


def _instructions(cubin: bytes) -> tuple[dict[str, int], list[str], list[bool]]:
    """The resources that a kernel takes, the names of its instructions, and of each whether it is in a loop."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        text = _tool("nvdisasm", "--print-code", file.name)
    resources = {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", usage)}
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(code)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@\S+\s+)?(.*?);", line):
            code.append(found[1].strip())
    looped = [False] * len(code)
    for i, line in enumerate(code):
        if (to := re.match(r"BRA.*`\((\.L\w+)\)", line)) and labels[to[1]] < i:
            looped[labels[to[1]] : i + 1] = [True] * (i + 1 - labels[to[1]])
    return resources, [line.split()[0] for line in code], looped


def _widths(names: list[str], kind: str) -> str:
    """How many global loads or stores there are of how many bytes: "32 x 2, 4 x 16"."""
    bits = [re.search(r"\.[US]?(8|16|64|128)\b", name) for name in names if name.startswith(kind)]
    counted = Counter(int(found[1]) // 8 if found else 4 for found in bits)
    return ", ".join(f"{number} x {size}" for size, number in sorted(counted.items()))


def figures(binary: Any, capability: int) -> dict[str, Any]:
    """What a compiled kernel takes, and the share of a multiprocessor's warps that can be there at once."""
    resources, names, looped = _instructions(binary.asm["cubin"])
    shuffles = [inside for name, inside in zip(names, looped, strict=True) if name.startswith("SHFL")]
    warps, shared = binary.metadata.num_warps, binary.metadata.shared
    registers = -(-resources["REG"] * 32 // 256) * 256  # of a warp, as they are given out
    resident = min(REGISTERS // 4 // registers * 4 // warps, WARPS // warps, BLOCKS)
    resident = min(resident, SHARED_KIB[capability] * 1024 // (shared + 1024))
    return {
        "registers": resources["REG"],
        "spilled_bytes": resources["STACK"] + resources["LOCAL"],
        "shuffles": len(shuffles),
        "shuffles_in_loops": sum(shuffles),
        "loads_x_bytes": _widths(names, "LDG"),
        "stores_x_bytes": _widths(names, "STG"),
        "instructions": sum(name != "NOP" for name in names),
        "instructions_in_loops": sum(looped),
        "shared_bytes": shared,
        "warps": warps,
        "occupancy": round(resident * warps / WARPS, 3),
    }


def bench_kernels(config: KernelsConfig) -> list[dict[str, Any]]:
    """A row for each kernel, appended when all are compiled; returns them."""
    rows = []
    for capability, processors in PROCESSORS.items():
        target = GPUTarget("cuda", capability, 32)
        for shape in SHAPES:
            for layout in LAYOUTS:
                for name, dtype in DTYPES.items():
                    for what, default, launch in launches(shape, layout, dtype, processors):
                        channels, k, side, batch = shape
                        row = {"target": f"sm_{capability}", "channels": channels, "k": k, "side": side}
                        row |= {"batch": batch, "layout": layout, "dtype": name, "kernel": what}
                        row |= {"default": default, "programs": launch.programs}
                        row |= figures(compiled(launch, target), capability)
                        rows.append({**row, "triton": triton.__version__, **provenance()})
                        say(" ".join(f"{key}={value}" for key, value in row.items()))
    config.results.parent.mkdir(parents=True, exist_ok=True)
    append_csv(config.results, rows)
    return rows
