"""Rows of an encoder that replace the embeddings of placeholder tokens, and the positions of images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.imported_model import TensorSpec
from compiler.frontends.llm.attention import Positions
from compiler.frontends.llm.emitter import Emitter
from schedules.ir.tvm_types import Expr

FIRST_ROW, FEATURES, SHIFTS = "first_row", "features", "shifts"
_ROWS = "rows"


@dataclass(frozen=True)
class MediaRows:
    """What a decoder takes from an encoder, as the module docstring of `captured_media` describes it.

    Attributes:
        token: the placeholder of a row.
        width: size of a row, the decoder's.
        sections: numbers of rotated pairs by time, height and width, which are interleaved (Qwen 3.5); None for
            positions in one dimension, without `SHIFTS`.
    """

    token: int
    width: int
    sections: tuple[int, int, int] | None = None

    @property
    def inputs(self) -> list[TensorSpec]:
        """The inputs of the decoder, in order."""
        shifts = [] if self.sections is None else [TensorSpec(SHIFTS, (_ROWS, 4), "int64")]
        return [TensorSpec(FIRST_ROW, (), "int64"), TensorSpec(FEATURES, (_ROWS, self.width), "float32"), *shifts]

    def variables(self) -> list[relax.Var]:
        """Return the parameters of the inputs."""
        rows = tirx.Var(_ROWS, "int64")
        shapes = [[rows if size == _ROWS else size for size in each.shape] for each in self.inputs]
        types = [relax.TensorType(shape, each.dtype) for shape, each in zip(shapes, self.inputs, strict=True)]
        return [relax.Var(each.name, type_) for each, type_ in zip(self.inputs, types, strict=True)]

    def axis(self, pair: Expr) -> Expr:
        """Return the axis of a rotated pair's positions: 0 for time, 1 for height, 2 for width."""
        assert self.sections is not None
        zero, three = tirx.const(0, "int64"), tirx.const(3, "int64")
        found = zero
        for axis in (1, 2):
            holds = tirx.all(tirx.floormod(pair, three) == axis, pair < 3 * self.sections[axis])
            found = tirx.Select(holds, tirx.const(axis, "int64"), found)
        return found


def mixed_rows(
    model: Emitter, media: MediaRows, tokens: Expr, embedded: Expr, position: Positions, given: list[Expr]
) -> tuple[Expr, Positions]:
    """Return embeddings (1, n, width) with an encoder's rows, and the positions with those of images.

    Args:
        tokens: (1, n); a placeholder stands for a row if `FIRST_ROW` is not negative.
        given: the values of `MediaRows.inputs`.
    """
    builder = model.builder
    first, features, *shifts = given

    def stands(tokens: te.Tensor, first: te.Tensor, row: Expr) -> Expr:
        return tirx.all(tokens[0, row] == tirx.const(media.token, "int64"), first() >= 0)

    def numbers(tokens: te.Tensor, first: te.Tensor) -> te.Tensor:
        def number(batch: Expr, row: Expr) -> Expr:
            return tirx.Select(stands(tokens, first, row), tirx.const(1, "int64"), tirx.const(0, "int64"))

        return te.compute(tokens.shape, number, name="stands")

    counted = builder.emit(R.cumsum(builder.emit_te(numbers, tokens, first, primfunc_name_hint="stands"), axis=1))

    def behind(counted: te.Tensor, first: te.Tensor, row: Expr) -> Expr:
        """The number of rows up to and including a token."""
        return counted[0, row] + tirx.max(first(), tirx.bitwise_not(first()))

    def row_of(count: Expr, rows: te.Tensor) -> Expr:
        return tirx.max(tirx.min(count, rows.shape[0]) - 1, tirx.const(0, "int64"))

    def mix(x: te.Tensor, tokens: te.Tensor, counted: te.Tensor, first: te.Tensor, rows: te.Tensor) -> te.Tensor:
        def element(batch: Expr, row: Expr, k: Expr) -> Expr:
            replaced = rows[row_of(behind(counted, first, row), rows), k]
            return tirx.if_then_else(stands(tokens, first, row), replaced, x[batch, row, k])

        return te.compute(x.shape, element, name="mixed")

    def place(
        start: te.Tensor, tokens: te.Tensor, counted: te.Tensor, first: te.Tensor, shifts: te.Tensor
    ) -> te.Tensor:
        def element(axis: Expr, row: Expr) -> Expr:
            count = behind(counted, first, row)
            at = row_of(count, shifts)
            text = tirx.if_then_else(count > 0, shifts[at, 3], tirx.const(0, "int64"))
            return start() + row + tirx.if_then_else(stands(tokens, first, row), shifts[at, axis], text)

        return te.compute((3, tokens.shape[1]), element, name="coordinates")

    mixed = builder.emit_te(mix, embedded, tokens, counted, first, features, primfunc_name_hint="image_rows")
    if not shifts:
        return mixed, position
    operands = (position.start, tokens, counted, first, *shifts)
    coordinates = builder.emit_te(place, *operands, primfunc_name_hint="image_positions")
    return mixed, replace(position, coordinates=coordinates, axis=media.axis)
