"""A matmul in tiles of the result, with one block of threads each: the parts common to all instructions.

The block iterates over the depth. At each step its threads hold the next part of both operands in registers while the
previous part is multiplied from shared memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from schedules.codegen.nest import allocate, both, broadcast, lanes_of, load, name_value, repeat, sequence, store, when
from schedules.gpu.launch import launch
from schedules.gpu.matmul_form import DepthSplit, GpuMatmulForm, Operand
from schedules.ir.expression import expression
from schedules.ir.inline import IF_THEN_ELSE, call_name
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import shape_of
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx, tvm
from schedules.machine import dtype_bits

SHARED = "shared"


@dataclass(frozen=True, eq=False)
class Part:
    """An operand on its way from global memory to the multiplication.

    Attributes:
        start, rows: the block's rows of the operand: the first, and how many.
        width: neighbors along the depth that a thread holds together.
        registers, slabs: buffers in each thread and in shared memory.
    """

    operand: Operand
    start: Expr
    rows: int
    width: int
    registers: Buffer
    slabs: Buffer


@dataclass(frozen=True)
class BlockTile(ABC):
    """Tile of a block: rows and columns of the result, and a step of the depth; powers of two, at least 16."""

    rows: int
    columns: int
    depth: int

    @property
    @abstractmethod
    def threads(self) -> int:
        """Number of threads that share the tile."""

    @abstractmethod
    def shared_bytes(self, bits: int) -> int:
        """Shared memory of a block in bytes, for operands of this many bits."""


class TileWriter(ABC):
    """Writes the launch of a tiled matmul; with a split, each block sums a part of the depth."""

    def __init__(self, form: GpuMatmulForm, tile: BlockTile, split: DepthSplit | None) -> None:
        self.form, self.tile, self.split = form, tile, split
        self.size = (tile.rows, tile.columns)
        self.depth, self.threads = tile.depth, tile.threads
        self.dtype = form.a.dtype
        self.statements: list[Stmt] = []
        self.thread = tirx.Var("thread", "int64")

    def launch(self) -> Stmt:
        """The launch, with a block for each tile, or for each tile and part of the depth."""
        form = self.form
        block = tirx.Var("block", "int64")
        rows, columns = self.size
        row_tiles = ceil_div(form.a.rows.extent, rows)
        column_tiles = ceil_div(form.b.rows.extent, columns)
        position = tirx.floordiv(block, expression(column_tiles))
        self._locate(tirx.floordiv(position, expression(row_tiles)))
        self.a = self._part("a", form.a, tirx.floormod(position, expression(row_tiles)), rows)
        self.b = self._part("b", form.b, tirx.floormod(block, expression(column_tiles)), columns)
        self.zero = self.allocated("zero", [1], self.dtype, "local")
        self.statements.append(store(self.zero, tirx.const(0, self.dtype), 0))
        self.prepare()
        body = sequence(self.statements, self._walk(), self.finished())
        blocks = expression(row_tiles * column_tiles * form.batch.extent * (self.split.splits if self.split else 1))
        if not isinstance(blocks, tirx.IntImm):
            blocks = tirx.max(blocks, expression(1))  # an empty launch is an error; this one stores nothing
        return launch(block, blocks, self.thread, self.threads, body)

    @abstractmethod
    def slab_shape(self, rows: int) -> list[int]:
        """Shared-memory shape of a step of an operand with a number of rows."""

    @abstractmethod
    def prepare(self) -> None:
        """Allocate any other buffers, and set the sums to zero: appended to `statements`."""

    @abstractmethod
    def kept(self, part: Part, number: int, row: Expr, depth: Expr) -> Stmt:
        """Store a thread's values of a round, `part.width` neighbors starting at `depth`, in shared memory."""

    @abstractmethod
    def multiplied(self) -> list[Stmt]:
        """Add the product of the operands in shared memory to the sums."""

    @abstractmethod
    def finished(self) -> list[Stmt]:
        """Pass the sums to the form's `finish`."""

    def bound(self, name: str, value: Expr) -> Expr:
        """A variable for a value that is computed once."""
        return name_value(name, value, self.statements)

    def allocated(self, name: str, shape: list[int], dtype: str, scope: str) -> Buffer:
        """A buffer of the kernel."""
        buffer, statement = allocate(name, shape, dtype, scope)
        self.statements.append(statement)
        return buffer

    def _locate(self, position: Expr) -> None:
        """Locate the sample that the block computes, and its steps of the depth, `steps` from `first` on."""
        depth = ceil_div(self.form.depth.extent, self.depth)
        self.first, self.steps = expression(0), depth
        if self.split is None:
            self.sample = self.bound("sample", position)
        else:
            self.sample = self.bound("sample", tirx.floormod(position, expression(self.split.samples)))
            self.part = self.bound("part", tirx.floordiv(position, expression(self.split.samples)))
            assert isinstance(depth, int), "only a known depth is split"
            first, self.steps = self.split.share(self.part, depth)
            self.first = self.bound("first", first)
        self.batch = self.form.batch.values(self.sample)

    def stored(self, value: Expr, row: Expr, column: Expr) -> Stmt:
        """The statement for a sum: its epilogue and store, or storing it as part of a split depth."""
        if self.split is None:
            return self.form.finish(value, self.batch, row, column)
        return self.split.keep(value, self.part, self.sample, row, column)

    def is_inside(self, row: Expr, column: Expr) -> Expr | bool:
        """True if an element of the block's tile is inside the result."""
        return both(
            within(row, self.form.a.rows.extent, self.size[0]), within(column, self.form.b.rows.extent, self.size[1])
        )

    def _part(self, name: str, operand: Operand, tile: Expr, rows: int) -> Part:
        width = load_width(operand)
        rounds = ceil_div(rows * self.depth, width * self.threads)
        return Part(
            operand,
            self.bound(f"{name}_start", tile * expression(rows)),
            rows,
            width,
            self.allocated(f"{name}_next", [rounds * width], self.dtype, "local"),
            self.allocated(f"{name}_slabs", self.slab_shape(rows), self.dtype, SHARED),
        )

    def _walk(self) -> list[Stmt]:
        """The steps along the depth."""
        steps = self.steps

        def step(at: Expr | int) -> Stmt:
            ahead = at + 1
            more = ahead < steps if isinstance(steps, int) and isinstance(ahead, int) else expression(ahead) < steps
            return sequence(
                wait(),
                self._all_kept(self.a),
                self._all_kept(self.b),
                wait(),
                self._fetched(self.a, ahead, more),
                self._fetched(self.b, ahead, more),
                self.multiplied(),
            )

        return [*self._fetched(self.a, 0, True), *self._fetched(self.b, 0, True), repeat("step", steps, step)]

    def _at(self, step: Expr | int) -> Expr:
        """The step of the whole depth for a step of the block."""
        return expression(step) if self.split is None else self.first + step

    def _pieces(self, part: Part) -> list[tuple[int, Expr, Expr, Expr | bool]]:
        """For each round of the threads: its number, the row and the depth in the tile, and whether it exists."""
        groups = self.depth // part.width
        total = part.rows * groups
        pieces = []
        for number in range(ceil_div(total, self.threads)):
            piece = self.thread + number * self.threads
            exists = True if (number + 1) * self.threads <= total else piece < total
            size = expression(groups if part.operand.along_depth else part.rows)
            major, minor = tirx.floordiv(piece, size), tirx.floormod(piece, size)
            row, group = (major, minor) if part.operand.along_depth else (minor, major)
            pieces.append((number, row, group * part.width, exists))
        return pieces

    def _fetched(self, part: Part, step: Expr | int, more: Expr | bool) -> list[Stmt]:
        """Load a part of the operand into registers, zeros past its end; nothing is needed unless there is `more`."""
        if more is False:
            return []
        statements: list[Stmt] = []
        guarded: list[tuple[int, GuardedLoad]] = []
        for number, row, depth, exists in self._pieces(part):
            at_row, at_depth = part.start + row, self._at(step) * self.depth + depth
            inside = both(exists, within(at_row, part.operand.rows.extent, part.rows))
            if part.operand.run >= part.width:
                statements.append(self._fetched_run(part, number, at_row, at_depth, inside))
                continue
            for element in range(part.width):
                here = at_depth + element
                known = both(inside, within(here, self.form.depth.extent, self.depth))
                value = part.operand.at(self.batch, at_row, self.form.depth.values(here))
                guard = guarded_load(value, known) if str(value.ty) == self.dtype else None
                if guard is not None:
                    guard = guarded_load(value, both(known, more)) or guard
                    guarded.append((number * part.width + element, guard))
                    continue
                if known is not True:
                    value = tirx.if_then_else(known, value, tirx.const(0, self.dtype))
                statements.append(store(part.registers, value, number * part.width + element))
        needed = when(more, sequence(statements)) if statements else None
        return [*([] if needed is None else [needed]), *self._guarded(part, guarded)]

    def _guarded(self, part: Part, loads: list[tuple[int, GuardedLoad]]) -> list[Stmt]:
        """Load, then select, so that all loads are in flight before the first is waited for."""
        tested, loaded, chosen = [], [], []
        for position, guarded in loads:
            inside = tirx.Var("inside", "bool")
            tested.append(tirx.Bind(inside, guarded.inside))
            loaded.append(store(part.registers, guarded.safe(inside), position))
            # Zero from a register: CUDA converts a 16-bit constant by an instruction that it does not hoist.
            otherwise = load(self.zero, 0) if guarded.otherwise is None else guarded.otherwise
            chosen.append(
                store(part.registers, tirx.Select(inside, load(part.registers, position), otherwise), position)
            )
        return [*tested, *loaded, *chosen]

    def _fetched_run(self, part: Part, number: int, row: Expr, depth: Expr, inside: Expr | bool) -> Stmt | None:
        """Load neighbors along the depth as one vector."""
        first = part.operand.at(self.batch, row, self.form.depth.values(depth))
        *outer, last = first.indices
        value = tirx.BufferLoad(first.source, [*outer, lanes_of(last, part.width)])
        position = lanes_of(number * part.width, part.width)
        # TVM cannot write a zero vector of more than four bytes.
        zero = broadcast(tirx.const(0, self.dtype), 4)
        starts = range(number * part.width, (number + 1) * part.width, 4)
        nothing = sequence([store(part.registers, zero, lanes_of(start, 4)) for start in starts])
        inside = both(inside, within(depth, self.form.depth.extent, self.depth))
        return when(inside, store(part.registers, value, position), nothing)

    def _all_kept(self, part: Part) -> list[Stmt]:
        return [when(exists, self.kept(part, *position)) for *position, exists in self._pieces(part)]


def load_width(operand: Operand) -> int:
    """Number of neighbors along the depth that a thread loads together: 16 bytes if they can be one vector."""
    widest = 128 // dtype_bits(operand.dtype)
    return min(widest, operand.run) if operand.run >= 4 else 4


def within(at: Expr, extent: Index, tile: int) -> Expr | bool:
    """True if an index is within an extent that tiles cover; Python's True if that is known."""
    return True if isinstance(extent, int) and extent % tile == 0 else at < expression(extent)


def wait() -> Stmt:
    """Wait for all threads of the block."""
    return tirx.Evaluate(tirx.op.tvm_storage_sync(SHARED))


@dataclass(frozen=True, eq=False)
class GuardedLoad:
    """An element at a position of a buffer; if `inside` is false, it is `otherwise` instead (None: zero). `offset`:
    offset of the element in the buffer, if `inside` holds."""

    source: Buffer
    offset: Expr
    inside: Expr
    otherwise: Expr | None

    def safe(self, inside: Expr) -> Expr:
        """The load; of the first element if `inside`, a variable, is false."""
        zero = tirx.IntImm(str(self.offset.ty), 0)
        leading = [zero] * (len(self.source.shape) - 1)
        return tirx.BufferLoad(self.source, [*leading, tirx.Select(inside, self.offset, zero)])


def guarded_load(value: Expr, known: Expr | bool) -> GuardedLoad | None:
    """A value that is needed only if `known` holds, and is zero otherwise, as such a load.

    None if it is neither a load nor a choice between one and a constant, of memory of fixed size; or if nothing guards
    it.
    """
    conditions, otherwise = [] if known is True else [known], None
    if call_name(value) == IF_THEN_ELSE:
        condition, value, fill = value.args
        if not isinstance(fill, tirx.IntImm | tirx.FloatImm):
            return None
        if float(fill.value):
            if known is not True:
                return None
            otherwise = fill
        conditions.append(condition)
    if not conditions or not isinstance(value, tvm.ir.TensorLoad):
        return None
    offset = _offset(value)
    return None if offset is None else GuardedLoad(value.source, offset, _without_branches(conditions), otherwise)


def _offset(load: Expr) -> Expr | None:
    """Offset of an element in a compact buffer; None if it may be outside the buffer."""
    sizes = [size if isinstance(size, int) else 0 for size in shape_of(load.source)]
    if not all(sizes):
        return None
    offset: Expr = tirx.IntImm("int64", 0)
    for size, position in zip(sizes, load.indices, strict=True):
        offset = offset * size + tirx.Cast("int64", position)
    return offset


def _without_branches(conditions: list[Expr]) -> Expr:
    """The conjunction in integers: each test in a chain of && would be a branch of its own."""
    tests: list[Expr] = []
    while conditions:
        condition = conditions.pop()
        if isinstance(condition, tirx.And):
            conditions += [condition.a, condition.b]
        else:
            tests.append(tirx.Cast("int32", condition))
    total = tests[0]
    for condition in tests[1:]:
        total = tirx.bitwise_and(total, condition)
    return tirx.NE(total, tirx.IntImm("int32", 0))
