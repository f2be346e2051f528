"""Sixteen positions at a time: the inner steps of the CPU kernels, as vector instructions.

Left to itself the compiler guards every short loop against overlapping arrays and runs the last positions of a row
one by one, and a 7x7 map is nothing but last positions. Here both are said outright; LLVM maps the lanes to
whatever registers the processor has. All addresses are int64, of float32, aligned to 4 bytes.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as _untyped

intrinsic: Any = _untyped  # the type checker takes what it makes for what it was made of

LANES = 16
LINE = 4 * LANES  # bytes

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
VECTOR, INDICES = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_BIG = 3.4028234663852886e38


class Vectors:
    """Shorthand for the instructions the steps are made of."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def constant(self, value: float) -> Any:
        return ir.Constant(VECTOR, [value] * LANES)

    def splat(self, scalar: Any) -> Any:
        single = self.builder.insert_element(ir.Constant(VECTOR, ir.Undefined), scalar, ir.Constant(_INT, 0))
        return self.builder.shuffle_vector(single, single, ir.Constant(INDICES, [0] * LANES))

    def load(self, address: Any) -> Any:
        return self.builder.load(self.builder.inttoptr(address, VECTOR.as_pointer()), align=4)

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.builder.inttoptr(address, VECTOR.as_pointer()), align=4)

    def at(self, address: Any, *steps: tuple[Any, Any]) -> Any:
        """The address so many steps of so many bytes further on; numbers may be Python's."""
        for factors in steps:
            count, size = (ir.Constant(ir.IntType(64), f) if isinstance(f, int) else f for f in factors)
            address = self.builder.add(address, self.builder.mul(count, size))
        return address

    def add_to(self, address: Any, value: Any) -> None:
        self.store(self.add(self.load(address), value), address)

    # `contract` lets a product and a sum become one instruction; nothing else is reordered.
    def mul(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=["contract"])

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=["contract"])

    def clamp(self, v: Any) -> Any:
        """Infinity to the largest finite number; NaN passes."""
        for sign, big in ((">", self.constant(_BIG)), ("<", self.constant(-_BIG))):
            v = self.builder.select(self.builder.fcmp_ordered(sign, v, big), big, v)
        return v

    def one_plus_abs(self, v: Any) -> Any:
        bits = self.builder.bitcast(v, INDICES)
        size = self.builder.and_(bits, ir.Constant(INDICES, [0x7FFFFFFF] * LANES))
        return self.add(self.constant(1.0), self.builder.bitcast(size, VECTOR))

    def transposed(self, rows: list[Any]) -> list[Any]:
        """Sixteen vectors with rows and columns swapped."""
        rows = list(rows)
        for size in (1, 2, 4, 8):
            low = [lane if not lane & size else LANES + lane - size for lane in range(LANES)]
            high = [lane + size if not lane & size else LANES + lane for lane in range(LANES)]
            masks = [ir.Constant(INDICES, mask) for mask in (low, high)]
            for i in range(LANES):
                if not i & size:
                    a, b = rows[i], rows[i + size]
                    rows[i], rows[i + size] = (self.builder.shuffle_vector(a, b, mask) for mask in masks)
        return rows


def step(addresses: int, floats: int, emit: Callable[..., None]) -> Any:
    """What an intrinsic returns: its signature, of so many addresses and floats, and how its code is made."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit(Vectors(builder), *arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * addresses, *[types.float32] * floats), generate


def _emit_fwd(v: Vectors, zi: Any, zj: Any, out: Any, alpha: Any, weight: Any, bias: Any) -> None:
    product = v.clamp(v.mul(v.load(zi), v.load(zj)))
    u = v.clamp(v.mul(v.splat(alpha), product))
    soft = v.builder.fdiv(u, v.one_plus_abs(u))
    v.store(v.add(v.mul(v.splat(weight), soft), v.splat(bias)), out)


def _emit_bwd(
    v: Vectors,
    zi: Any,
    zj: Any,
    grad: Any,
    gzi: Any,
    gzj: Any,
    of_alpha: Any,
    of_weight: Any,
    of_bias: Any,
    alpha: Any,
    weight: Any,
) -> None:
    a, c, g = v.load(zi), v.load(zj), v.load(grad)
    product = v.clamp(v.mul(a, c))
    u = v.clamp(v.mul(v.splat(alpha), product))
    r = v.builder.fdiv(v.constant(1.0), v.one_plus_abs(u))
    t = v.mul(v.splat(weight), v.mul(v.mul(g, r), r))
    v.add_to(of_weight, v.mul(g, v.mul(u, r)))
    v.add_to(of_bias, g)
    v.add_to(of_alpha, v.mul(t, product))
    of_product = v.mul(t, v.splat(alpha))
    v.add_to(gzi, v.mul(of_product, c))
    v.add_to(gzj, v.mul(of_product, a))


@intrinsic
def pair_fwd(typing, zi, zj, out, alpha, weight, bias):
    """out = DySoft(zi * zj), sixteen positions."""
    return step(3, 3, _emit_fwd)


@intrinsic
def pair_bwd(typing, zi, zj, grad, gzi, gzj, of_alpha, of_weight, of_bias, alpha, weight):
    """Adds one pair's gradients of sixteen positions to gzi, gzj and the three rows of sums, lane by lane."""
    return step(8, 2, _emit_bwd)


@intrinsic
def product_fwd(typing, zi, zj, out):
    """out = zi * zj, sixteen positions."""

    def emit(v: Vectors, zi: Any, zj: Any, out: Any) -> None:
        v.store(v.mul(v.load(zi), v.load(zj)), out)

    return step(3, 0, emit)


@intrinsic
def product_bwd(typing, zi, zj, grad, gzi, gzj):
    """Adds one product's gradients of sixteen positions to gzi and gzj."""

    def emit(v: Vectors, zi: Any, zj: Any, grad: Any, gzi: Any, gzj: Any) -> None:
        g = v.load(grad)
        v.add_to(gzi, v.mul(g, v.load(zj)))
        v.add_to(gzj, v.mul(g, v.load(zi)))

    return step(5, 0, emit)


@intrinsic
def add_product(typing, a, b, total):
    """Adds a * b to total, sixteen positions."""

    def emit(v: Vectors, a: Any, b: Any, total: Any) -> None:
        v.add_to(total, v.mul(v.load(a), v.load(b)))

    return step(3, 0, emit)


@intrinsic
def fold(typing, lanes, total):
    """The sum of sixteen lanes, halves upon halves, to the one float at `total`."""

    def emit(v: Vectors, lanes: Any, total: Any) -> None:
        value = v.load(lanes)
        for size in (8, 4, 2, 1):
            turned = ir.Constant(INDICES, [(lane + size) % LANES for lane in range(LANES)])
            value = v.add(value, v.builder.shuffle_vector(value, value, turned))
        first = v.builder.extract_element(value, ir.Constant(_INT, 0))
        v.builder.store(first, v.builder.inttoptr(total, _FLOAT.as_pointer()), align=4)

    return step(2, 0, emit)


@intrinsic
def transpose(typing, source, source_step, target, target_step):
    """Sixteen rows of sixteen, `step` bytes apart, with rows and columns swapped."""

    def emit(v: Vectors, start: Any, step: Any, to: Any, to_step: Any) -> None:
        rows = v.transposed([v.load(v.at(start, (n, step))) for n in range(LANES)])
        for n, row in enumerate(rows):
            v.store(row, v.at(to, (n, to_step)))

    return step(4, 0, emit)
