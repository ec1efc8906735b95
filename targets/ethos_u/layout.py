"""Where the channels of a tensor of three axes or more lie: second in the model, last on the accelerator."""

from __future__ import annotations


def channels_last(rank: int) -> tuple[int, ...]:
    """The model's axes in the accelerator's order: (0, 2, 3, 1) of images, and so with any number of places."""
    return (0, *range(2, rank), 1)


def channels_first(rank: int) -> tuple[int, ...]:
    """Where the model's axes lie on the accelerator, which is also the order that puts them back."""
    return (0, rank - 1, *range(1, rank - 1))
