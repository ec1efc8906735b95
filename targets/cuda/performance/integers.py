"""The integer and predicate instructions of PTX, on values of all threads of a block.

A value is an `int` if all threads have the same, an int64 array with one element per thread if they do not, and None if
it is unknown (loaded, or computed in floating point). Registers hold the signed interpretation of their bits;
instructions of unsigned types convert it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Value = int | Array | None
Number = int | Array
Operation = Callable[..., Number]


def bits_of(kind: str) -> int:
    """Bits of a type suffix such as "u32"."""
    digits = "".join(each for each in kind if each.isdigit())
    return int(digits) if digits else 1


def signed(value: Number, bits: int) -> Number:
    """The lower bits of a value as a signed number."""
    if bits >= 64:
        return value if not isinstance(value, int) else ((value + (1 << 63)) % (1 << 64)) - (1 << 63)
    half = 1 << (bits - 1)
    return ((value + half) & ((1 << bits) - 1)) - half


def as_type(value: Number, kind: str) -> Number:
    """A register's value as an operand of a type.

    64-bit unsigned numbers are treated as signed: addresses and sizes are far below the difference.
    """
    bits = bits_of(kind)
    if bits >= 64 or kind == "pred":
        return value
    return value & ((1 << bits) - 1) if kind[0] in "ub" else signed(value, bits)


def _truncated(a: Number, b: Number) -> Number:
    if isinstance(b, int) and not b:
        return a * 0
    quotient = np.abs(a) // np.abs(np.where(np.equal(b, 0), 1, b)) * (np.sign(a) * np.sign(b))
    return int(quotient) if isinstance(a, int) and isinstance(b, int) else quotient


def _high(a: Number, b: Number, bits: int) -> Number:
    if bits <= 32:
        # The product of two unsigned 32-bit numbers wraps to a negative one, which is shifted without its sign.
        return a * b >> bits if isinstance(a, int) and isinstance(b, int) else (a * b >> bits) & ((1 << 32) - 1)
    if isinstance(a, int) and isinstance(b, int):
        return a * b >> bits
    wide = np.asarray(a).astype(object) * np.asarray(b).astype(object)
    return np.array([int(each) >> bits for each in np.atleast_1d(wide)], dtype=np.int64)


def _shift_left(a: Number, count: Number, bits: int) -> Number:
    moved = a << (np.minimum(count, 63) if not isinstance(count, int) else min(count, 63))
    return _where(count >= bits, 0, moved)


def _shift_right(a: Number, count: Number, bits: int) -> Number:
    return a >> (np.minimum(count, bits - 1) if not isinstance(count, int) else min(count, 63))


def _where(condition: bool | NDArray[np.bool], yes: Number, no: Number) -> Number:
    if isinstance(condition, bool | int):
        return yes if condition else no
    return np.where(condition, yes, no)


def _insert(a: Number, b: Number, start: Number, length: Number) -> Number:
    mask = signed(((1 << length) - 1) << start, 64)
    return (b & ~mask) | ((a << start) & mask)


def _funnel(low: Number, high: Number, count: Number, left: bool) -> Number:
    whole = (high << 32) | low
    return whole >> (32 - count) if left else whole >> count


def _lut(a: Number, b: Number, c: Number, table: int) -> Number:
    result = a * 0
    for index in range(8):
        if table >> index & 1:
            terms = [each if index >> (2 - at) & 1 else ~each for at, each in enumerate((a, b, c))]
            result = result | (terms[0] & terms[1] & terms[2])
    return result


def _minimum(a: Number, b: Number) -> Number:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else np.minimum(a, b)


def _maximum(a: Number, b: Number) -> Number:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else np.maximum(a, b)


_BINARY: dict[str, Operation] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "min": _minimum,
    "max": _maximum,
    "div": _truncated,
    "rem": lambda a, b: a - _truncated(a, b) * b,
}
_COMPARISONS: dict[str, Operation] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lo": lambda a, b: a < b,
    "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b,
    "hs": lambda a, b: a >= b,
}


def integer_operation(opcode: tuple[str, ...]) -> tuple[Operation, tuple[str, ...]] | None:
    """Operation of an instruction, and the types of its operands (the last one applies to all remaining ones).

    None if its result is not needed to compute addresses: floating point, and data movement.
    """
    name, kinds = opcode[0], [each for each in opcode[1:] if each[-1:].isdigit() or each == "pred"]
    kind = kinds[-1] if kinds else ""
    if not kind or (kind[0] == "f" and name not in ("mov", "cvt", "selp")) or kind.startswith("bf"):
        return None
    bits = bits_of(kind)
    return _arithmetic(name, opcode, kind, bits) or _movement(name, opcode, kinds, bits)


def _arithmetic(name: str, opcode: tuple[str, ...], kind: str, bits: int) -> tuple[Operation, tuple[str, ...]] | None:
    if name in _BINARY:
        return _BINARY[name], (kind,)
    if name in ("mul", "mul24"):
        if "hi" in opcode:
            return lambda a, b: _high(a, b, bits), (kind,)
        return lambda a, b: a * b, (kind,)
    if name in ("mad", "mad24"):
        if "hi" in opcode:
            return lambda a, b, c: _high(a, b, bits) + c, (kind,)
        wide = "s64" if "wide" in opcode else kind
        return lambda a, b, c: a * b + c, (kind, kind, wide)
    if name == "setp" and opcode[1] in _COMPARISONS:
        compare, join = _COMPARISONS[opcode[1]], _BINARY.get(opcode[2])
        if join is not None:
            return lambda a, b, p: join(compare(a, b), p), (kind, kind, "pred")
        return compare, (kind,)
    if name == "shl":
        return lambda a, count: _shift_left(a, count, bits), (kind, "u32")
    if name == "shr":
        return lambda a, count: _shift_right(a, count, bits), (kind, "u32")
    return None


def _movement(
    name: str, opcode: tuple[str, ...], kinds: list[str], bits: int
) -> tuple[Operation, tuple[str, ...]] | None:
    kind = kinds[-1]
    if name in ("mov", "cvta"):
        return lambda a: a, (kind,)
    if name == "cvt":
        return None if kinds[0][0] in "fb" or kind[0] in "fb" else (lambda a: a, (kind,))
    if name == "neg":
        return lambda a: -a, (kind,)
    if name == "abs":
        return lambda a: abs(a), (kind,)
    if name == "not":
        return (np.logical_not, (kind,)) if kind == "pred" else (lambda a: ~a, (kind,))
    if name == "selp":
        return lambda a, b, p: _where(p, a, b), (kind, kind, "pred")
    if name == "bfe":
        return lambda a, start, length: (a >> start) & ((1 << length) - 1), (f"u{bits}", "u32", "u32")
    if name == "bfi":
        return _insert, (f"u{bits}", f"u{bits}", "u32", "u32")
    if name == "shf":
        left = "l" in opcode
        return lambda low, high, count: _funnel(low, high, count & 31, left), ("u32",)
    if name == "lop3":
        return _lut, ("u32", "u32", "u32", "u32")
    return None


def result_bits(opcode: tuple[str, ...]) -> int:
    """Bits of the register that an integer instruction writes."""
    kinds = [each for each in opcode[1:] if each[-1:].isdigit() or each == "pred"]
    if opcode[0] == "setp":
        return 1
    kind = kinds[0] if opcode[0] in ("cvt",) else kinds[-1]
    return 2 * bits_of(kind) if "wide" in opcode else bits_of(kind)
