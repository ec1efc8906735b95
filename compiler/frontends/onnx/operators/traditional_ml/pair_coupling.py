"""Probabilities of classes from those of pairs: T.-F. Wu, C.-J. Lin, R. Weng, "Probability estimates for multi-class
classification by pairwise coupling", JMLR 5 (2004), algorithm 2, with LIBSVM's limits of steps and error."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.onnx.operators.tensor.sort_kernels import int64, shared_tasks
from compiler.frontends.onnx.operators.tensor.vector_loops import in_sequence
from schedules.codegen.parallel import MIN_PARALLEL_WORK
from schedules.ir.tvm_types import Buffer, Expr, Stmt

_STEPS = 100
_ERROR = 0.005  # divided by the number of classes
_WHY = "each step starts from the probabilities of the one before"


def coupling_kernel(classes: int) -> Callable[[te.Tensor], te.Tensor]:
    """(rows, classes) of (rows, pairs), the probability of the first class of each pair, as a tensor expression."""

    def kernel(pairs: te.Tensor) -> te.Tensor:
        rows = pairs.shape[0]

        def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
            buffers = [T.buffer_proxy(each) for each in (*ins, *outs)]
            with IRBuilder() as builder:
                work = rows * int64(_STEPS * classes * classes)
                with shared_tasks(rows, work, MIN_PARALLEL_WORK) as row:
                    _Row(classes, row, *buffers).emit()
                return builder.get()

        shapes = [[rows, int64(classes)], [rows, int64(classes * classes)], [rows, int64(classes + 2)]]
        return te.extern(shapes, [pairs], generate, dtype=["float32"] * 3, name="coupled")[0]

    return kernel


class _Row:
    """Emits the steps of one row: its probabilities p minimize p' Q p; `state` holds Q p, p' Q p and the error."""

    def __init__(self, classes: int, row: Expr, pairs: Buffer, p: Buffer, q: Buffer, state: Buffer) -> None:
        self.classes, self.row, self.pairs, self.p, self.q, self.state = classes, row, pairs, p, q, state
        self.total, self.error = int64(classes), int64(classes + 1)

    def emit(self) -> None:
        self._matrix()
        for each in range(self.classes):
            self.p[self.row, int64(each)] = tirx.const(1 / self.classes, "float32")
        self.state[self.row, self.error] = tirx.const(1.0, "float32")
        limit = tirx.const(_ERROR / self.classes, "float32")
        with in_sequence(int64(_STEPS), _WHY), T.If(self.state[self.row, self.error] >= limit), T.Then(), T.seq_scope():
            self._products()
            with T.If(self.state[self.row, self.error] >= limit), T.Then(), in_sequence(int64(self.classes), _WHY) as i:
                self._improve(i)

    def _matrix(self) -> None:
        """Q: sums of squares of the others' probabilities on the diagonal, negated products elsewhere."""
        column = {pair: place for place, pair in enumerate(combinations(range(self.classes), 2))}

        def first_wins(i: int, j: int) -> Expr:
            if i < j:
                return self.pairs[self.row, int64(column[i, j])]
            return tirx.const(1.0, "float32") - self.pairs[self.row, int64(column[j, i])]

        for i in range(self.classes):
            squares = [first_wins(j, i) * first_wins(j, i) for j in range(self.classes) if j != i]
            self.q[self.row, int64(i * self.classes + i)] = sum(squares[1:], squares[0])
            for j in range(self.classes):
                if j != i:
                    self.q[self.row, int64(i * self.classes + j)] = -first_wins(j, i) * first_wins(i, j)

    def _products(self) -> None:
        """Q p, p' Q p, and the largest difference between an entry of the one and the other."""
        row, state, classes = self.row, self.state, int64(self.classes)
        state[row, self.total] = tirx.const(0.0, "float32")
        with T.serial(0, classes) as i, T.seq_scope():
            state[row, i] = tirx.const(0.0, "float32")
            with T.serial(0, classes) as j:
                state[row, i] = state[row, i] + self.q[row, i * classes + j] * self.p[row, j]
            state[row, self.total] = state[row, self.total] + self.p[row, i] * state[row, i]
        state[row, self.error] = tirx.const(0.0, "float32")
        with T.serial(0, classes) as i:
            state[row, self.error] = tirx.max(state[row, self.error], tirx.abs(state[row, i] - state[row, self.total]))

    def _improve(self, i: Expr) -> None:
        """Move one probability to the minimum along it, and scale all to a sum of 1."""
        row, state, classes, one = self.row, self.state, int64(self.classes), tirx.const(1.0, "float32")
        diagonal = self.q[row, i * classes + i]
        with T.seq_scope():
            change = T.bind((state[row, self.total] - state[row, i]) / diagonal)
            wider = T.bind(one + change)
            grown = state[row, self.total] + change * (change * diagonal + state[row, i] + state[row, i])
            self.p[row, i] = self.p[row, i] + change
            state[row, self.total] = grown / wider / wider
            with T.serial(0, classes) as j, T.seq_scope():
                state[row, j] = (state[row, j] + change * self.q[row, i * classes + j]) / wider
                self.p[row, j] = self.p[row, j] / wider
