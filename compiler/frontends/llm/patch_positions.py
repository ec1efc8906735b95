"""Positions of patches in images of any sizes, and attention within their images."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, vision_utils

Tensor = torch.Tensor
_WITHIN_SEGMENTS = "flash_within_segments"  # a name for which transformers makes one call for all segments


class PatchPositions:
    """Positions of patches in their images, from grids (images, 3) of (frames, rows, columns); `merge` x `merge`
    consecutive patches make one encoder row.

    Computed per patch, since loops over images and data-dependent sizes cannot be exported.
    """

    def __init__(self, grids: Tensor, patches: int, merge: int) -> None:
        self._merge, self.unit = merge, merge**2
        self._grids, self._counts = grids, grids.prod(-1)
        index = torch.arange(patches)
        ends = self._counts.cumsum(0)
        self._image = (index[:, None] >= ends[None]).sum(1).clamp(0, grids.shape[0] - 1)
        self._height, self._width = grids[:, 1][self._image], grids[:, 2][self._image]
        self.starts = ends - self._counts  # the first patch of each image
        self._start = self.starts[self._image]
        within, area = index - self._start, (self._height * self._width).clamp(1)  # callers may pass any grids
        self._frame, within = within // area, within % area
        block, inner = within // self.unit, within % self.unit
        across = (self._width // merge).clamp(1)
        self._row = block // across * merge + inner // merge
        self._column = block % across * merge + inner % merge
        self.coordinates = torch.stack([self._row, self._column], -1)
        self.frames = self._start + self._frame * area  # the first patch of each patch's frame

    def mask(self) -> Tensor:
        """Return true (1, 1, patches, patches) for patches of the same frame."""
        return (self.frames[:, None] == self.frames[None])[None, None]

    def windows(self, side: int) -> Tensor:
        """Return a number (patches) that identifies each window of `side` x `side` patches."""
        return self.frames + self._row // side * self._width + self._column // side

    def taps(self, side: int, mode: str, align_corners: bool) -> tuple[Tensor, Tensor]:
        """Return indices and weights (patches, taps) into a table of `side` x `side` learned positions."""
        axes = ((self._row, self._height), (self._column, self._width))
        (rows, down), (columns, along) = (
            vision_utils._interpolation_axis_taps_weights(index, size, side, mode, align_corners)
            for index, size in axes
        )
        taps = rows.shape[1] ** 2
        indices = (rows[:, :, None] * side + columns[:, None]).reshape(-1, taps)
        return indices, (down[:, :, None] * along[:, None]).reshape(-1, taps)

    def convolved(self, values: Tensor, weight: Tensor) -> Tensor:
        """Return values (patches, channels) convolved by channel with `weight` (channels, 1, rows, columns) over the
        patches of each frame, with zeros around it."""
        merge, result = self._merge, torch.zeros_like(values)
        across = (self._width // merge).clamp(1)
        for down in range(weight.shape[2]):
            row = self._row + down - weight.shape[2] // 2
            for along in range(weight.shape[3]):
                column = self._column + along - weight.shape[3] // 2
                inside = (row >= 0) & (row < self._height) & (column >= 0) & (column < self._width)
                block, inner = row // merge * across + column // merge, row % merge * merge + column % merge
                places = torch.where(inside, self.frames + block * self.unit + inner, 0)
                found = torch.where(inside[:, None], values[places.clamp(0, values.shape[0] - 1)], 0)
                result = result + found * weight[:, 0, down, along]
        return result

    def interpolated(self, table: Tensor, mode: str) -> Tensor:
        """Return learned positions (patches, width) from a square `table` (rows of it, width)."""
        indices, weights = self.taps(int(table.shape[0] ** 0.5), mode, align_corners=False)
        return (table[indices] * weights[..., None]).sum(1)

    def smoothed(self, table: Tensor) -> Tensor:
        """Return learned positions (patches, width) from a square `table`, as `torch.nn.functional.interpolate`
        with mode "bilinear" and antialias=True."""
        side = int(table.shape[0] ** 0.5)
        axes = ((self._row, self._height), (self._column, self._width))
        down, along = (_smoothing_weights(index, size, side) for index, size in axes)
        return (down[:, :, None] * along[:, None]).flatten(1) @ table

    def shifts(self) -> Tensor:
        """See `SHIFTS`: an image spans as many positions as its longer side has rows."""
        longest = torch.maximum(self._grids[:, 1], self._grids[:, 2]) // self._merge
        behind = (longest - self._counts // self.unit).cumsum(0)[self._image]
        advance = longest[self._image] - self._counts[self._image] // self.unit
        index = torch.arange(self._image.shape[0])
        before = behind - advance - (index - self._start) // self.unit
        found = [before + self._frame, before + self._row // self._merge, before + self._column // self._merge, behind]
        return torch.stack(found, -1)[:: self.unit]


def _smoothing_weights(index: Tensor, size: Tensor, side: int) -> Tensor:
    """Return weights (patches, side) of a linear filter that is widened where it reduces."""
    scale = (side / size.clamp(1).to(torch.float32))[:, None]
    center = (index[:, None] + 0.5) * scale - 0.5
    weights = (1 - (torch.arange(side) - center).abs() / scale.clamp(min=1)).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


def merge_size(config: Any) -> int:
    """Return the side of the square of patches that make one row."""
    names = ("spatial_merge_size", "downsample_factor", "pooling_kernel_size")
    parts = (config, config.vision_config)
    return next(int(getattr(part, name)) for name in names for part in parts if getattr(part, name, None))


def attend_within_segments(visual: Any) -> None:
    """Replace segment lengths by per-patch segment numbers in all attention of an encoder."""
    AttentionInterface.register(_WITHIN_SEGMENTS, _within_segments)
    for part in visual.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = _WITHIN_SEGMENTS


def _within_segments(
    _: Any, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, cu_seq_lens_q: Tensor, **__: Any
) -> tuple[Tensor, None]:
    mask = (cu_seq_lens_q[:, None] == cu_seq_lens_q[None])[None, None]
    shared = query.shape[1] // key.shape[1]  # heads that share their keys
    key, value = (each.repeat_interleave(shared, 1) if shared > 1 else each for each in (key, value))
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return found.transpose(1, 2), None
