"""Layouts of tensors on the accelerator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import relax

from schedules.ir.tvm_types import Expr

# Position of the channels of a tensor of at least three axes: second in the model, last on the accelerator.


def channels_last(rank: int) -> tuple[int, ...]:
    """The model's axes in the accelerator's order: (0, 2, 3, 1) for images, and accordingly for other ranks."""
    return (0, *range(2, rank), 1)


def channels_first(rank: int) -> tuple[int, ...]:
    """Positions of the model's axes on the accelerator, which is also the permutation back."""
    return (0, rank - 1, *range(1, rank - 1))


# Layouts in which the processor passes an image to the accelerator, beyond putting channels last.
#
# The processor writes each byte of such an image once anyway. With padding included, or with the columns of each window
# side by side as channels, the first convolution fills the multipliers, most of which are idle for 1 or 3 channels.


@dataclass(frozen=True)
class Arrangement:
    """Columns of an image (N, H, W, C): padded at both ends, then the columns of each window joined as channels.

    Attributes:
        left, right: columns of padding; `right` is negative if columns are dropped.
        width: columns of a window, `dilation` apart; 1 for no windows.
        stride: distance from one window to the next.
        count: number of windows.
    """

    left: int
    right: int
    width: int = 1
    dilation: int = 1
    stride: int = 1
    count: int = 0

    @property
    def description(self) -> str:
        """A description for code that fills the tensor."""
        text = f"{self.left} columns of the zero point before each row, {self.right} behind"
        if self.width == 1:
            return text
        return f"{text}; then {self.count} windows a row, {self.stride} apart, each of {self.width} columns" + (
            f" {self.dilation} apart, one after the other" if self.dilation > 1 else ", one after the other"
        )

    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the image as read by the accelerator."""
        batch, height, width, channels = image
        if self.width == 1:
            return batch, height, width + self.left + self.right, channels
        return batch, height, self.count, self.width * channels

    def apply(self, image: Expr, zero: int, emit: Callable[[Expr], Expr]) -> Expr:
        """The graph computed by the processor; `emit` binds its operators; the int8 image is padded by `zero`."""
        if self.left > 0 or self.right > 0:
            around = [0, 0, 0, 0, self.left, max(self.right, 0), 0, 0]
            image = emit(relax.op.nn.pad(image, around, "constant", float(zero)))
        if self.width == 1:
            return image
        last = (self.count - 1) * self.stride + 1
        parts = [
            emit(relax.op.strided_slice(image, [2], [start], [start + last], [self.stride]))
            for start in range(0, self.width * self.dilation, self.dilation)
        ]
        return emit(relax.op.concat(parts, 3))
