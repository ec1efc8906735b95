"""TopK: the first k items of each row in sorted order, without sorting the row.

Threads share rows, but do not split one: finding the first candidates of each part would take longer than the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.bounds import require, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.data_dependent import parts
from compiler.frontends.onnx.operators.tensor.sort_kernels import (
    STATE,
    Run,
    comes_before,
    in_vectors,
    int64,
    shared_tasks,
    sort_positions,
    sorted_positions,
)
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from schedules.ir.tvm_types import Buffer, Expr, Stmt, Tensor


@converter("TopK")
def top_k_by_attribute(context: NodeContext) -> list[relax.Expr]:
    """The first version: k is an attribute."""
    return _top_k(context, int(context.required_attribute("k")))


@converter("TopK", since=10)
def top_k(context: NodeContext) -> list[relax.Expr]:
    """The k largest or smallest elements along an axis and their positions, in order; ties by position.

    k may be known, symbolic, or computed at run time.
    """
    axis = context.axis(context.attribute("axis", -1), context.rank(0))
    if context.known(1) is None:
        require_values(context, 1, 0, context.arithmetic.add(context.shape(0)[axis], 1))
    if context.known(1) is None and any(not isinstance(size, int) for size in context.shape(1)):
        (k,) = context.importer.builder.shape_values(context.match_shape(context.input(1), [1]), signed=False)
    else:
        (k,) = context.shape_values(1)
    return _top_k(context, k)


def _top_k(context: NodeContext, k: Dim) -> list[relax.Expr]:
    shape, rank = list(context.shape(0)), context.rank(0)
    axis = context.axis(context.attribute("axis", -1), rank)
    if isinstance(k, int) and (k < 0 or (isinstance(shape[axis], int) and k > shape[axis])):
        context.invalid(f"k is {k} for an axis of size {shape[axis]}")
    require(context, shape[axis], "at least", k)
    order = [*(i for i in range(rank) if i != axis), axis]
    data = context.input(0)
    moved = data if axis == rank - 1 else context.emit(R.permute_dims(data, order))
    outer = [shape[i] for i in order[:-1]]
    rows = context.arithmetic.product(outer)
    flat = context.reshape(moved, [rows, shape[axis]])
    largest = bool(context.attribute("largest", 1))
    results = parts(context, context.emit_te(_top_k_kernel(largest), flat, expression(k), primfunc_name_hint="top_k"))
    back = [order.index(i) for i in range(rank)]
    shaped = [context.reshape(result, [*outer, k]) for result in results]
    return shaped if axis == rank - 1 else [context.emit(R.permute_dims(r, back)) for r in shaped]


def _top_k_kernel(largest: bool) -> Callable[..., Sequence[Tensor]]:
    def kernel(data: te.Tensor, k: Expr) -> list[te.Tensor]:
        positions = first_positions(data, k, descending=largest)
        values = te.compute(positions.shape, lambda r, i: data[r, positions[r, i]], name="values")
        return [values, positions]

    return kernel


_LANES = 16
_WORTH_THREADS = 1 << 15  # items, some 15 microseconds
_ITEMS_OF_CANDIDATE = 128  # finding the first candidates of a row costs this many items per candidate
_FEW = 256  # candidates that are kept sorted by insertion
_INSERTED = 32  # the same for items with keys: more are radix sorted,
_ITEMS_OF_INSERTED = 800  # except in long rows: counting digits takes twice as long as comparing items with the last

_RANKED = 64  # items of a row that are ranked: each is compared with every other, 16 at a time
_SHORT = 32  # the same if k is at most a `_FEWER`th of them
_FEWER = 8
_MASKED = 32  # items of a row that are compared at once, one bit each
_SAMPLED = 16  # vectors of a row whose maxima tell how large a result is at least
_ONE, _NONE = tirx.const(1, "int32"), tirx.const(0, "int32")
_PACKED = 8  # keys with positions per vector
_KEYS = ("float32", "float16", "bfloat16", "int32", "int16", "int8", "uint16", "uint8")  # with 32-bit keys

# Positions in `state` after those of the sort.
_COUNT, _IS_FULL, _PLACE, _LIMIT, _HIGH, _MIDDLE = range(STATE, STATE + 6)


def first_positions(data: te.Tensor, k: Expr, *, descending: bool) -> te.Tensor:
    """Return positions of the first `k` items in each row, in order; ties by position, NaN counts as the largest.

    Short rows are ranked; with few results items are inserted in order, with more they are radix sorted by key. For
    types without keys, candidates are gathered: few of them in order; with many, the best k are selected whenever there
    are twice as many. From then on, items that do not come before the last of these are discarded.

    Args:
        data: (rows, n), with n >= k.

    Returns:
        int64 (rows, k).
    """
    rows, count = data.shape
    is_known = isinstance(k, tirx.IntImm) and isinstance(count, tirx.IntImm)
    has_keys = str(data.dtype) in _KEYS
    if is_known and has_keys and 0 < int(k) <= int(count) <= (_RANKED if _FEWER * int(k) > int(count) else _SHORT):
        return _ranked_positions(data, int(k), int(count), descending=descending)
    if has_keys and isinstance(k, tirx.IntImm) and 0 < int(k) <= _inserted(count):
        return _scanned_positions(data, int(k), descending=descending)
    if is_known and not has_keys and 2 * int(k) >= int(count):
        order = sorted_positions(data, descending=descending)
        return te.compute((rows, k), lambda row, i: order[row, i], name="positions")
    width = tirx.max(k, int64(1))  # TVM divides by the sizes of a kernel's outputs

    def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
        source, first = FlatBuffer(ins[0]), FlatBuffer(outs[0])
        with IRBuilder() as builder:
            with T.seq_scope():
                sorted_rows = tirx.Select(k > int64(0), rows, int64(0))
                items_of_row = count + (k if has_keys else tirx.min(k, int64(_FEW)) * int64(_ITEMS_OF_CANDIDATE))
                with shared_tasks(sorted_rows, rows * items_of_row, _WORTH_THREADS) as row:
                    if has_keys:
                        position_at = _sorted_by_digits(source, row * count, count, k, descending=descending)
                        with T.serial(0, k) as i:
                            first[row * width + i] = position_at(i)
                    else:
                        items = _Items(source, row * count, count, str(data.dtype), descending)
                        _select(items, k, lambda i, position: first.__setitem__(row * width + i, position))
            return builder.get()

    first = te.extern([[rows, width]], [data], generate, dtype="int64", name="first_positions")
    return te.compute((rows, k), lambda row, i: first[row, i], name="positions")


def _inserted(count: Expr) -> int:
    """Return the largest k that is found by insertion in rows of `count` items; larger ones use a radix sort."""
    return max(_INSERTED, int(count) // _ITEMS_OF_INSERTED if isinstance(count, tirx.IntImm) else 0)


_DIGITS, _DIGIT_BITS = 4, 8  # of a 32-bit key
_COARSE_BITS = 11  # sign, exponent and two more bits of a float32: few items share those of the k-th
_BUCKETS = 1 << _COARSE_BITS


def _sorted_by_digits(source: Buffer, begin: Expr, count: Expr, k: Expr, *, descending: bool) -> Callable[[Expr], Expr]:
    """Emit a stable radix sort of the first items of a row; return the position of the i-th as an expression.

    Items whose leading bits come after the k-th item's are dropped first; for `count` < 2^32 items. An entry is an
    item's key, smaller for those that come first, with its position in the bits below it.
    """
    ranks, counts = (FlatBuffer(T.alloc_buffer([size], "int32")) for size in (count + 1, _BUCKETS))
    entries, spare = (FlatBuffer(T.alloc_buffer([count + 1], "int64")) for _ in range(2))
    number, total, limit, entry, slot = (FlatBuffer(T.alloc_buffer([1], "int64", scope="local")) for _ in range(5))
    zero = int64(0)

    def put_rank(i: Expr) -> None:
        key = _key(source, begin + i, descending=descending)
        ranks[i] = tirx.bitwise_xor(key, tirx.const(0x7FFFFFFF, "int32"))

    def clear_counts() -> None:
        in_vectors(int64(_BUCKETS), "int32", lambda i: counts.__setitem__(i, tirx.const(0, "int32")))

    def digit(value: Expr, shift: int, bits: int) -> Expr:
        kept = tirx.const((1 << bits) - 1, str(value.ty.dtype))
        return tirx.Cast("int64", tirx.bitwise_and(value >> tirx.const(shift, str(value.ty.dtype)), kept))

    def add(bucket: Expr) -> None:
        counts[bucket] = counts[bucket] + tirx.const(1, "int32")

    in_vectors(count, "int32", put_rank)
    limit[zero] = int64(_BUCKETS)
    with T.If(k * int64(2) < count), T.Then(), T.seq_scope():
        clear_counts()
        with T.serial(0, count) as i:
            add(digit(ranks[i], 32 - _COARSE_BITS, _COARSE_BITS))
        total[zero] = zero
        limit[zero] = zero
        with T.While(total[zero] < k), T.seq_scope():
            total[zero] = total[zero] + tirx.Cast("int64", counts[limit[zero]])
            limit[zero] = limit[zero] + int64(1)
    number[zero] = zero
    with T.serial(0, count) as i, T.seq_scope():
        entries[number[zero]] = tirx.bitwise_or(tirx.Cast("int64", ranks[i]) << int64(32), i)
        is_taken = digit(ranks[i], 32 - _COARSE_BITS, _COARSE_BITS) < limit[zero]
        number[zero] = number[zero] + tirx.Select(is_taken, int64(1), zero)
    clear_counts()
    digits = [(each << _DIGIT_BITS, 32 + each * _DIGIT_BITS) for each in range(_DIGITS)]
    with T.serial(0, number[zero]) as i, T.seq_scope():
        entry[zero] = entries[i]
        for at, shift in digits:
            add(int64(at) + digit(entry[zero], shift, _DIGIT_BITS))
    for at, _ in digits:
        total[zero] = zero
        with T.serial(0, int64(1 << _DIGIT_BITS)) as bucket, T.seq_scope():
            slot[zero] = tirx.Cast("int64", counts[int64(at) + bucket])
            counts[int64(at) + bucket] = tirx.Cast("int32", total[zero])
            total[zero] = total[zero] + slot[zero]
    for at, shift in digits:
        with T.serial(0, number[zero]) as i, T.seq_scope():
            entry[zero] = entries[i]
            bucket = int64(at) + digit(entry[zero], shift, _DIGIT_BITS)
            slot[zero] = tirx.Cast("int64", counts[bucket])
            add(bucket)
            spare[slot[zero]] = entry[zero]
        entries, spare = spare, entries
    return lambda i: tirx.bitwise_and(entries[i], int64(0xFFFFFFFF))


def _ranked_positions(data: te.Tensor, k: int, count: int, *, descending: bool) -> te.Tensor:
    """`first_positions` for short rows: an item's rank is the number of items before it, counted in vectors."""
    rows = data.shape[0]
    lanes = _LANES * -(-count // _LANES)

    def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
        source, first = FlatBuffer(ins[0]), FlatBuffer(outs[0])
        with IRBuilder() as builder:
            with shared_tasks(rows, rows * int64(count * (4 + lanes // _LANES)), _WORTH_THREADS) as row:
                keys, positions, order = (FlatBuffer(T.alloc_buffer([lanes], "int32")) for _ in range(3))
                _put_keys(source, row * int64(count), keys, count, lanes, descending=descending)
                _count_before(keys, positions, count, lanes)
                with T.serial(0, int64(count)) as i:
                    order[tirx.Cast("int64", positions[i])] = tirx.Cast("int32", i)
                with T.serial(0, int64(k)) as i:
                    first[row * int64(k) + i] = tirx.Cast("int64", order[i])
            return builder.get()

    return te.extern([[rows, int64(k)]], [data], generate, dtype="int64", name="first_positions")


def _scanned_positions(data: te.Tensor, k: int, *, descending: bool) -> te.Tensor:
    """`first_positions` for long rows of fewer than 2^32 items: the best k are kept in order, each as its key with its
    inverted position below it. Vector operations find the items whose keys exceed the last one's."""
    rows, count = data.shape

    def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
        source, first = FlatBuffer(ins[0]), FlatBuffer(outs[0])
        with IRBuilder() as builder:
            items_of_row = count + int64(k * _ITEMS_OF_CANDIDATE // 4)
            with shared_tasks(rows, rows * items_of_row, _WORTH_THREADS) as row:
                scan = _Scan(source, row * count, k, descending)
                begin = scan.start(count)
                blocks = tirx.floordiv(count - begin, int64(_MASKED))
                with T.serial(0, blocks) as block, T.seq_scope():
                    scan.visit(begin + block * int64(_MASKED))
                done = begin + blocks * int64(_MASKED)
                with T.serial(0, count - done) as i, T.seq_scope():
                    scan.insert_if_before(done + i)
                with T.serial(0, int64(k)) as i:
                    first[row * int64(k) + i] = scan.position(i)
            return builder.get()

    return te.extern([[rows, int64(k)]], [data], generate, dtype="int64", name="first_positions")


class _Scan:
    """Emits the search for the best k items of a row, which are kept in `best`, after a larger number."""

    def __init__(self, source: Buffer, begin: Expr, k: int, descending: bool) -> None:
        self._source, self._begin, self._k, self._descending = source, begin, k, descending
        self._vectors = -(-k // _PACKED)
        size = 1 + self._vectors * _PACKED
        self._best = FlatBuffer(T.alloc_buffer([size], "int64"))
        self._moved = FlatBuffer(T.alloc_buffer([_PACKED], "int64", scope="local"))
        self._entry, self._mask, self._count, self._position = (
            FlatBuffer(T.alloc_buffer([1], "int64", scope="local")) for _ in range(4)
        )
        self._found, self._maxima, self._greater = (
            FlatBuffer(T.alloc_buffer([_LANES], "int32", scope="local")) for _ in range(3)
        )
        self._floor = FlatBuffer(T.alloc_buffer([1], "int32", scope="local"))
        self._best[int64(0)] = tirx.max_value("int64")
        with T.serial(0, int64(size - 1)) as i:
            self._best[i + 1] = tirx.min_value("int64")

    def position(self, i: Expr) -> Expr:
        return tirx.bitwise_and(tirx.bitwise_not(self._best[i + 1]), int64(0xFFFFFFFF))

    def start(self, count: Expr) -> Expr:
        """Find a key that at least k items reach, or insert the first k items if k is larger than a vector.

        Returns the first position to visit.
        """
        self._floor[int64(0)] = tirx.min_value("int32")
        if self._k > _LANES:
            with T.serial(0, int64(self._k)) as i, T.seq_scope():
                self._insert(i)
            return int64(self._k)
        with T.vectorized(0, int64(_LANES)) as lane:
            self._maxima[lane] = tirx.min_value("int32")
            self._greater[lane] = tirx.const(0, "int32")
        sampled = tirx.min(tirx.floordiv(count, int64(_LANES)), int64(_SAMPLED))
        with T.serial(0, sampled) as block, T.vectorized(0, int64(_LANES)) as lane:
            key = self._key_at(block * int64(_LANES) + lane)
            self._maxima[lane] = tirx.max(self._maxima[lane], key)
        # The k-th largest of the maxima, each of other items: the least one below fewer than k.
        for other in range(_LANES):
            with T.vectorized(0, int64(_LANES)) as lane:
                is_below = self._maxima[lane] < self._maxima[int64(other)]
                self._greater[lane] = self._greater[lane] + tirx.Select(is_below, _ONE, _NONE)
        with T.vectorized(0, int64(_LANES)) as lane:
            is_high = self._greater[lane] < tirx.const(self._k, "int32")
            self._maxima[lane] = tirx.Select(is_high, self._maxima[lane], tirx.max_value("int32"))
        self._floor[int64(0)] = reduce(tirx.min, (self._maxima[int64(lane)] for lane in range(_LANES)))
        return int64(0)

    def _insert(self, position: Expr) -> None:
        """Move an item to its position in one pass over vectors, from the last; the last item is dropped."""
        self._put_entry(position)
        self._move_entry()

    def _put_entry(self, position: Expr) -> None:
        key = tirx.Cast("int64", self._key_at(position))
        self._entry[int64(0)] = tirx.bitwise_or(key << int64(32), int64(0xFFFFFFFF) - position)

    def _move_entry(self) -> None:
        for number in reversed(range(self._vectors)):
            # All lanes are read before the first is written, even without vectors: they overlap.
            with T.vectorized(0, int64(_PACKED)) as lane:
                slot = int64(number * _PACKED) + lane
                moved = tirx.min(self._best[slot], self._entry[int64(0)])
                self._moved[lane] = tirx.max(self._best[slot + 1], moved)
            with T.vectorized(0, int64(_PACKED)) as lane:
                self._best[int64(number * _PACKED + 1) + lane] = self._moved[lane]

    def insert_if_before(self, position: Expr) -> None:
        self._put_entry(position)
        with T.If(self._entry[int64(0)] > self._best[int64(self._k)]), T.Then(), T.seq_scope():
            self._move_entry()

    def visit(self, start: Expr) -> None:
        """Insert a block's items that come before the last of the best, which rises meanwhile."""
        mask, first = self._mask, int64(0)
        with T.vectorized(0, int64(_LANES)) as lane:
            bits = []
            for number in range(_MASKED // _LANES):
                is_before = self._key_at(start + int64(number * _LANES) + lane) >= self._least()
                bit = tirx.const(1, "int32") << tirx.Cast("int32", lane + number * _LANES)
                bits.append(tirx.Select(is_before, bit, tirx.const(0, "int32")))
            self._found[lane] = reduce(tirx.bitwise_or, bits)
        every = reduce(tirx.bitwise_or, (self._found[int64(lane)] for lane in range(_LANES)))
        mask[first] = tirx.bitwise_and(tirx.Cast("int64", every), int64(0xFFFFFFFF))
        with T.If(mask[first] != int64(0)), T.Then(), T.seq_scope():
            _set_ones(self._count, mask[first])  # CUDA evaluates the end of a loop before each step
            with T.serial(0, self._count[first]), T.seq_scope():
                _set_ones(self._position, tirx.bitwise_and(tirx.bitwise_not(mask[first]), mask[first] - 1))
                self.insert_if_before(start + self._position[first])
                mask[first] = tirx.bitwise_and(mask[first], mask[first] - 1)

    def _key_at(self, position: Expr) -> Expr:
        return _key(self._source, self._begin + position, descending=self._descending)

    def _least(self) -> Expr:
        """Return the least key of an item that may come before the last of the best.

        Behind the largest key the sum wraps around; items are then compared one by one.
        """
        last = self._best[int64(self._k)]
        after = tirx.Cast("int32", last >> int64(32)) + _ONE
        return tirx.max(
            self._floor[int64(0)], tirx.Select(last == tirx.min_value("int64"), self._floor[int64(0)], after)
        )


def _set_ones(count: Buffer, bits: Expr) -> None:
    """Return the number of ones in an int64 below 2^32 (TVM's popcount does not build with LLVM 22)."""
    first = int64(0)
    count[first] = bits
    count[first] = count[first] - tirx.bitwise_and(count[first] >> 1, int64(0x55555555))
    pairs = int64(0x33333333)
    count[first] = tirx.bitwise_and(count[first], pairs) + tirx.bitwise_and(count[first] >> 2, pairs)
    count[first] = tirx.bitwise_and(count[first] + (count[first] >> 4), int64(0x0F0F0F0F))
    count[first] = tirx.bitwise_and((count[first] * int64(0x01010101)) >> 24, int64(0xFF))


def _key(source: Buffer, index: Expr, *, descending: bool) -> Expr:
    """Return an integer in the order of the items, larger for those that come first.

    Positive floats are ordered like their bits, negative ones in reverse. Both zeros are equal; NaN is the largest.
    """
    item = source[index]
    if str(source.dtype) in ("float32", "float16", "bfloat16"):
        value = item.astype("float32")
        bits = tirx.reinterpret("int32", value)
        ordered = tirx.bitwise_xor(bits, tirx.bitwise_and(bits >> 31, tirx.const(0x7FFFFFFF, "int32")))
        ordered = tirx.Select(value == tirx.const(0, "float32"), tirx.const(0, "int32"), ordered)
        item = tirx.Select(tirx.isnan(value), tirx.const(0x7FFFFFFF, "int32"), ordered)
    else:
        item = item.astype("int32")
    return item if descending else tirx.bitwise_not(item)


def _put_keys(source: Buffer, begin: Expr, keys: Buffer, count: int, lanes: int, *, descending: bool) -> None:
    """Store the keys of a row's items, with the least key after the last item."""

    def key(i: Expr) -> Expr:
        return _key(source, begin + i, descending=descending)

    vectorized = count // _LANES * _LANES
    for start in range(0, vectorized, _LANES):
        with T.vectorized(0, int64(_LANES)) as lane:
            keys[int64(start) + lane] = key(int64(start) + lane)
    if vectorized < count:
        with T.serial(0, int64(count - vectorized)) as i:
            keys[int64(vectorized) + i] = key(int64(vectorized) + i)
        with T.serial(0, int64(lanes - count)) as i:
            keys[int64(count) + i] = tirx.min_value("int32")


def _count_before(keys: Buffer, positions: Buffer, count: int, lanes: int) -> None:
    """Compute each item's position: the number of larger keys, plus that of equal ones before it."""
    every = [FlatBuffer(T.alloc_buffer([_LANES], "int32", scope="local")) for _ in range(0, lanes, _LANES)]
    for sums in every:
        with T.vectorized(0, int64(_LANES)) as lane:
            sums[lane] = tirx.const(0, "int32")
    with T.serial(0, int64(count)) as i, T.seq_scope():
        for number, sums in enumerate(every):
            with T.vectorized(0, int64(_LANES)) as lane:
                position = int64(number * _LANES) + lane
                is_larger, is_equal = keys[i] > keys[position], keys[i] == keys[position]
                is_before = tirx.any(is_larger, tirx.all(is_equal, i < position))
                sums[lane] = sums[lane] + tirx.Select(is_before, tirx.const(1, "int32"), tirx.const(0, "int32"))
    for number, sums in enumerate(every):
        with T.vectorized(0, int64(_LANES)) as lane:
            positions[int64(number * _LANES) + lane] = sums[lane]


def _select(items: _Items, k: Expr, put: Callable[[Expr, Expr], None]) -> None:
    """Call `put(i, position)` for the first k of some items, in order; `position` is the item's index among them."""
    room = k * int64(2) + int64(1)
    candidates, spare, state = (FlatBuffer(T.alloc_buffer([size], "int64")) for size in (room, room, STATE + 6))
    selection = _Selection(items, candidates, spare, state, room)
    state[_LIMIT] = k
    selection.start()
    with T.serial(0, items.count) as position, T.seq_scope():
        selection.visit(position)
    with T.If(k > int64(_FEW)), T.Then(), T.seq_scope():
        selection.sort()
    with T.serial(0, k) as i:
        put(i, candidates[i])


@dataclass(frozen=True)
class _Items:
    """`count` items of a row, from `base`."""

    source: Buffer
    base: Expr
    count: Expr
    dtype: str
    descending: bool

    def at(self, position: Expr) -> Expr:
        return self.source[self.base + position]

    def before(self, a: Expr, b: Expr) -> Expr:
        """True if the item at position `a` sorts strictly before that at `b`."""
        return comes_before(self.at(a), self.at(b), self.dtype, descending=self.descending)


@dataclass(frozen=True)
class _Selection:
    """Emits operations on the candidates, which are positions of items; `state[_LIMIT]` is k."""

    items: _Items
    candidates: Buffer
    spare: Buffer
    state: Buffer
    room: Expr

    def start(self) -> None:
        """Clear the candidates; the slot of the last of k must be readable."""
        self.state[_COUNT] = int64(0)
        self.state[_IS_FULL] = int64(0)
        self.candidates[self.state[_LIMIT] - int64(1)] = int64(0)

    def sort(self) -> None:
        sort_positions(Run(self.candidates, self.spare, self.state, int64(0), self.state[_COUNT]), self.items.before)

    def visit(self, position: Expr) -> None:
        """Add an item if it is a candidate."""
        state = self.state
        is_new = tirx.any(
            state[_IS_FULL] == int64(0), self.items.before(position, self.candidates[state[_LIMIT] - int64(1)])
        )
        with T.If(is_new), T.Then():
            self._add(position)

    def _add(self, position: Expr) -> None:
        with T.If(self.state[_LIMIT] <= int64(_FEW)):
            with T.Then(), T.seq_scope():
                self._insert(position)
            with T.Else(), T.seq_scope():
                self._gather(position)

    def _gather(self, position: Expr) -> None:
        state = self.state
        self.candidates[state[_COUNT]] = position
        state[_COUNT] = state[_COUNT] + int64(1)
        with T.If(state[_COUNT] == self.room), T.Then(), T.seq_scope():
            self.sort()
            state[_COUNT] = state[_LIMIT]
            state[_IS_FULL] = int64(1)

    def _insert(self, position: Expr) -> None:
        """Move a candidate to its position; the last of k is dropped."""
        state, candidates, slot = self.state, self.candidates, self.state[_PLACE]
        self._find_position(position)
        moved = state[_COUNT] - state[_IS_FULL] - slot
        with T.serial(0, moved) as i:
            candidates[slot + moved - i] = candidates[slot + moved - i - int64(1)]
        candidates[slot] = position
        state[_COUNT] = tirx.min(state[_COUNT] + int64(1), state[_LIMIT])
        state[_IS_FULL] = tirx.Select(state[_COUNT] == state[_LIMIT], int64(1), int64(0))

    def _find_position(self, position: Expr) -> None:
        """Set the position to the number of candidates that do not come after an item, by bisection (TVM crashes on a
        loop with a condition here)."""
        state = self.state
        state[_PLACE] = int64(0)
        state[_HIGH] = state[_COUNT]
        with T.serial(0, int64(_FEW.bit_length())), T.If(state[_PLACE] < state[_HIGH]), T.Then(), T.seq_scope():
            state[_MIDDLE] = (state[_PLACE] + state[_HIGH]) >> 1
            with T.If(self.items.before(position, self.candidates[state[_MIDDLE]])):
                with T.Then(), T.seq_scope():
                    state[_HIGH] = state[_MIDDLE]
                with T.Else(), T.seq_scope():
                    state[_PLACE] = state[_MIDDLE] + int64(1)
