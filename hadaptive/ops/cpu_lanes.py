"""Sixteen numbers as one value: what the CPU kernels of normalisation are written in.

Numba keeps such a value in vector registers across a loop. Every operation is made of LLVM's vector instructions,
in the order they are written in; only a product and a sum may become one. Addresses are int64, of float32.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import models, register_model

from hadaptive.ops.simd import LANES, LINE, intrinsic

__all__ = ["LANES", "LINE"]

_INT, _LONG = ir.IntType(32), ir.IntType(64)
_FLOATS, _DOUBLES = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.DoubleType(), LANES)
_NUMBERS = ir.VectorType(_INT, LANES)


class _Lanes(types.Type):
    """Numba's type of sixteen float32."""


@register_model(_Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


_lanes = _Lanes("lanes")


def _operation(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: a function of a builder and LLVM values as a function of these types inside kernels."""

    def made(emit: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if value is None else value

        # Numba counts the parameters of what it is given.
        typed = {
            1: lambda typing, a: (result(*arguments), generate),
            2: lambda typing, a, b: (result(*arguments), generate),
            3: lambda typing, a, b, c: (result(*arguments), generate),
            4: lambda typing, a, b, c, d: (result(*arguments), generate),
        }[len(arguments)]
        typed.__name__, typed.__doc__ = emit.__name__, emit.__doc__
        return intrinsic(typed)

    return made


def _constant(value: float) -> Any:
    return ir.Constant(_FLOATS, [value] * LANES)


def _splat(builder: Any, scalar: Any, kind: Any = _FLOATS) -> Any:
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(single, single, ir.Constant(_NUMBERS, [0] * LANES))


def _mul(builder: Any, a: Any, b: Any) -> Any:
    return builder.fmul(a, b, flags=["contract"])


def _add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b, flags=["contract"])


def _between(builder: Any, v: Any, low: Any, high: Any) -> Any:
    """v, or the bound it is beyond; NaN passes."""
    v = builder.select(builder.fcmp_ordered("<", v, low), low, v)
    return builder.select(builder.fcmp_ordered(">", v, high), high, v)


@_operation(_lanes, types.int64)
def load(builder: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, _FLOATS.as_pointer()), align=4)


@_operation(types.void, _lanes, types.int64)
def store(builder: Any, v: Any, address: Any) -> None:
    builder.store(v, builder.inttoptr(address, _FLOATS.as_pointer()), align=4)


@_operation(_lanes, types.float32)
def splat(builder: Any, scalar: Any) -> Any:
    """The same number in every lane."""
    return _splat(builder, scalar)


@_operation(_lanes, _lanes, _lanes)
def add(builder: Any, a: Any, b: Any) -> Any:
    return _add(builder, a, b)


@_operation(_lanes, _lanes, _lanes)
def sub(builder: Any, a: Any, b: Any) -> Any:
    return builder.fsub(a, b, flags=["contract"])


@_operation(_lanes, _lanes, _lanes)
def mul(builder: Any, a: Any, b: Any) -> Any:
    return _mul(builder, a, b)


@_operation(_lanes, _lanes, types.int64)
def last(builder: Any, v: Any, count: Any) -> Any:
    """v with all but its last `count` lanes zero."""
    first = builder.trunc(builder.sub(ir.Constant(_LONG, LANES), count), _INT)
    number = ir.Constant(_NUMBERS, list(range(LANES)))
    live = builder.icmp_signed(">=", number, _splat(builder, first, _NUMBERS))
    return builder.select(live, v, _constant(0.0))


@_operation(types.float64, _lanes)
def total(builder: Any, v: Any) -> Any:
    """The sum of the lanes in float64, halves upon halves."""
    wide = builder.fpext(v, _DOUBLES)
    for size in (8, 4, 2, 1):
        turned = ir.Constant(_NUMBERS, [(lane + size) % LANES for lane in range(LANES)])
        wide = builder.fadd(wide, builder.shuffle_vector(wide, wide, turned))
    return builder.extract_element(wide, ir.Constant(_INT, 0))


@_operation(types.void, types.int64, _lanes)
def add_to_doubles(builder: Any, address: Any, v: Any) -> None:
    """Adds the lanes to sixteen float64 at an address."""
    place = builder.inttoptr(address, _DOUBLES.as_pointer())
    builder.store(builder.fadd(builder.load(place, align=8), builder.fpext(v, _DOUBLES)), place, align=8)


@_operation(_lanes, _lanes, types.float32, types.float32)
def clamp(builder: Any, v: Any, low: Any, high: Any) -> Any:
    """v between two bounds; NaN passes."""
    return _between(builder, v, _splat(builder, low), _splat(builder, high))


@_operation(_lanes, _lanes, _lanes, types.float32, types.float32)
def clamp_slope(builder: Any, grad: Any, v: Any, low: Any, high: Any) -> Any:
    """grad, and zero where v is at a bound or beyond it."""
    below = builder.fcmp_ordered("<=", v, _splat(builder, low))
    above = builder.fcmp_ordered(">=", v, _splat(builder, high))
    return builder.select(builder.or_(below, above), _constant(0.0), grad)


@_operation(_lanes, _lanes)
def hardswish(builder: Any, v: Any) -> Any:
    """v * clamp(v + 3, 0, 6) / 6."""
    gate = _between(builder, _add(builder, v, _constant(3.0)), _constant(0.0), _constant(6.0))
    return _mul(builder, _mul(builder, v, gate), _constant(1 / 6))


@_operation(_lanes, _lanes, _lanes)
def hardswish_slope(builder: Any, grad: Any, v: Any) -> Any:
    """grad times hardswish's derivative at v: 0 up to -3, 1 from 3 on, v / 3 + 1/2 between."""
    middle = _add(builder, _mul(builder, v, _constant(1 / 3)), _constant(0.5))
    inner = builder.select(builder.fcmp_ordered(">=", v, _constant(3.0)), grad, _mul(builder, grad, middle))
    return builder.select(builder.fcmp_ordered("<=", v, _constant(-3.0)), _constant(0.0), inner)
