"""The state of a recurrent layer in 8 bits, quantized anew in each step, and its products in integers.

Scale and zero point of a step are those of DynamicQuantizeLinear over the state of all samples of a direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from schedules.instructions.products.operation import DOT_U8S8
from schedules.ir.tir import Buffer, Expr, tirx
from schedules.recurrence.description import Operands, Recurrence

from tvm.script.ir_builder import tirx as T  # isort: skip

if TYPE_CHECKING:
    from schedules.recurrence.team import Team

_QUAD = 4  # bytes in a word


class QuantizedState:
    """The buffers of one thread: the bytes of the state, and (scale, zero point, sum of a row) of each direction.

    Operands: "r0" holds words of four signed bytes along the depth (directions, blocks, depth / 4, gates, lanes);
    "scales" (float32) and "sums" (int32, of the depth) are (directions, blocks, gates, lanes), and so are "zeros"
    (int32), the weights' zero points where they are not 0.
    """

    def __init__(self, recurrence: Recurrence, operands: Operands, state: Expr, directions: int) -> None:
        self._recurrence, self._operands, self._state = recurrence, operands, state
        self._directions = directions
        self._samples = operands["x"].shape[1]
        rows = state.shape[2]
        self._bytes = T.alloc_buffer([directions, rows, recurrence.width], "uint8")
        self._row_sums = T.alloc_buffer([directions, rows], "int32")
        self._scales = T.alloc_buffer([directions], "float32")
        self._zeros = T.alloc_buffer([directions], "int32")

    def emit(self, now: Expr, direction: Any) -> None:
        """Quantizes the state before a step, of one direction or of all."""
        with T.serial(0, self._directions) as own:
            source = own if direction is None else direction
            self._find_range(now, source, own)
            with T.serial(0, self._samples) as row:
                self._quantize(now, (source, row), (own, row))
                if "zeros" in self._operands:
                    self._sum_row((own, row))

    def _lanes(self) -> Any:
        return T.vectorized(0, self._recurrence.lanes)

    def _find_range(self, now: Expr, source: Buffer, own: Expr) -> None:
        """Scale and zero point of what lies between the least and the largest element, zero included."""
        lanes, blocks = self._recurrence.lanes, self._recurrence.blocks
        low, high = (T.alloc_buffer([lanes], "float32", scope="local") for _ in range(2))
        zero = tirx.const(0, "float32")
        for limit in (low, high):
            with self._lanes() as lane:
                T.buffer_store(limit, zero, [lane])
        with T.serial(0, self._samples) as row, T.serial(0, blocks) as block:
            for limit, choose in ((low, tirx.min), (high, tirx.max)):
                with self._lanes() as lane:
                    value = self._state[now, source, row, block * lanes + lane]
                    T.buffer_store(limit, choose(limit[lane], value), [lane])
        least, largest = low[0], high[0]
        for lane in range(1, lanes):
            least, largest = tirx.min(least, low[lane]), tirx.max(largest, high[lane])
        span = T.alloc_buffer([2], "float32", scope="local")
        T.buffer_store(span, least, [0])
        T.buffer_store(span, largest - span[0], [1])
        # A state of zeros has no range; any scale will do.
        scale = tirx.Select(span[1] == zero, tirx.const(1, "float32"), span[1] / tirx.const(255, "float32"))
        T.buffer_store(self._scales, scale, [own])
        start = zero - span[0] / self._scales[own]
        limited = tirx.max(tirx.min(start, tirx.const(255, "float32")), zero)
        T.buffer_store(self._zeros, tirx.Cast("int32", tirx.nearbyint(limited)), [own])

    def _quantize(self, now: Expr, source: tuple[Expr, Expr], own: tuple[Expr, Expr]) -> None:
        lanes = self._recurrence.lanes
        limits = (tirx.const(0, "int32"), tirx.const(255, "int32"))
        with T.serial(0, self._recurrence.blocks) as block, self._lanes() as lane:
            unit = block * lanes + lane
            scaled = self._state[(now, *source, unit)] / self._scales[own[0]]
            rounded = tirx.Cast("int32", tirx.nearbyint(scaled)) + self._zeros[own[0]]
            value = tirx.max(tirx.min(rounded, limits[1]), limits[0])
            T.buffer_store(self._bytes, tirx.Cast("uint8", value), [*own, unit])

    def _sum_row(self, own: tuple[Expr, Expr]) -> None:
        T.buffer_store(self._row_sums, tirx.const(0, "int32"), list(own))
        with T.serial(0, self._recurrence.hidden) as k:
            value = self._row_sums[own] + tirx.Cast("int32", self._bytes[(*own, k)])
            T.buffer_store(self._row_sums, value, list(own))

    def accumulate(self, team: Team, sums: Expr) -> None:
        """Adds the products of the team's rows with the weights of its block."""
        gates, lanes, place = len(team.stage.gates), self._recurrence.lanes, team.place
        own: Expr = place.direction if self._directions > 1 else 0
        words = self._operands["r0"]
        totals = T.alloc_buffer([team.rows.count * gates * lanes], "int32", scope="local")
        with T.serial(0, team.rows.count * gates) as row, self._lanes() as lane:
            T.buffer_store(totals, tirx.const(0, "int32"), [row * lanes + lane])
        with T.serial(0, words.shape[2]) as k:
            for gate in range(gates):
                for row in range(team.rows.count):
                    bytes_ = self._bytes[own, team.rows.first + row, tirx.Ramp(k * _QUAD, 1, _QUAD)]
                    word = tirx.reinterpret("int32", bytes_)
                    with self._lanes() as lane:
                        at = team.slot(row, gate, lane)
                        weight = words[place.direction, place.block, k, gate, lane]
                        T.buffer_store(totals, DOT_U8S8(totals[at], word, weight), [at])
        for row in range(team.rows.count):
            for gate in range(gates):
                with self._lanes() as lane:
                    at = team.slot(row, gate, lane)
                    total = self._centered(totals[at], team, (own, row, gate), lane)
                    scale = self._scales[own] * team.vector("scales", gate, lane)
                    T.buffer_store(sums, sums[at] + tirx.Cast("float32", total) * scale, [at])

    def _centered(self, total: Expr, team: Team, at: tuple[Expr, int, int], lane: Expr) -> Expr:
        """The sum of products of what was subtracted both zero points."""
        own, row, gate = at
        total = total - self._zeros[own] * team.vector("sums", gate, lane)
        if "zeros" not in self._operands:
            return total
        rest = self._row_sums[own, team.rows.first + row] - self._zeros[own] * self._recurrence.hidden
        return total - team.vector("zeros", gate, lane) * rest
