"""Replacements, during capture, of functions that convert a dynamic size to a number and thereby fix it.

Covers PyTorch functions and Python's `%`, each computing the same for symbolic sizes. Known sizes use the originals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from compiler.frontends.torch.composite_functions import replaced

if TYPE_CHECKING:
    from torch import Tensor

_Function = Callable[..., Any]
_Axes = tuple[Any, ...]  # a number for each spatial axis


def sized_functions_captured() -> AbstractContextManager[None]:
    """Context in which models call the replacements in this file."""
    import torch
    from torch.nn import functional

    return replaced(
        [
            (torch, "linspace", _linspace),
            (torch, "logspace", _logspace),
            *((torch, f"{name}_window", _window(form)) for name, form in _WINDOWS.items()),
            (torch, "affine_grid_generator", _affine_grid),
            (torch, "as_tensor", _as_tensor),
            (torch, "kron", _kron),
            (torch, "take_along_dim", _take_along_dim),
            (torch, "chunk", _chunk),
            (torch.Tensor, "chunk", _chunk),
            (torch, "split", _split("split_size_or_sections")),
            (torch.Tensor, "split", _split("split_size")),
            (torch.fft, "fftfreq", _frequencies),
            (torch.fft, "rfftfreq", _half_frequencies),
            (torch, "pow", _pow),
            (torch.Tensor, "pow", _pow),
            (torch.Tensor, "__pow__", _pow),
            (torch.Tensor, "new_tensor", _new_tensor),
            (torch.Tensor, "contiguous", _contiguous),
            (torch.SymInt, "__mod__", _remainder),
            (torch, "triu_indices", _triangle_indices(1)),
            (torch, "tril_indices", _triangle_indices(-1)),
            *((functional, f"avg_pool{rank}d", _pool(rank, "mean")) for rank in (1, 2, 3)),
            *((functional, f"max_pool{rank}d", _pool(rank, "amax")) for rank in (1, 2, 3)),
            (torch, "max_pool1d", _max_pool1d),
            (functional, "adaptive_max_pool2d", _adaptive_max_pool2d),
            *((functional, f"conv{rank}d", _conv(rank)) for rank in (1, 2)),
            *((functional, f"conv_transpose{rank}d", _conv_transpose(rank)) for rank in (1, 2, 3)),
        ]
    )


def _is_symbolic(value: object) -> bool:
    import torch

    return isinstance(value, torch.SymInt | torch.SymFloat)


def _chunk(original: _Function) -> _Function:
    """PyTorch compares the number of parts, which limits a multiple of `chunks` to sizes above 1 (a doubled batch)."""

    def chunk(input: Tensor, chunks: int, dim: int = 0) -> Any:
        import torch
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        size = input.shape[dim]
        if not _is_symbolic(size) or chunks < 1 or not statically_known_true(size // chunks * chunks == size):
            return original(input, chunks, dim)
        return torch.split_with_sizes(input, [size // chunks] * chunks, dim)

    return chunk


def _split(name: str) -> Callable[[_Function], _Function]:
    """As `_chunk`, for parts of a dynamic size, the argument `name`."""

    def replacement(original: _Function) -> _Function:
        def split(tensor: Tensor, *sizes: Any, **named: Any) -> Any:
            from torch.fx.experimental.symbolic_shapes import has_free_unbacked_symbols, statically_known_true

            given = {**dict(zip((name, "dim"), sizes, strict=False)), **named}
            part: Any = given.get(name)
            dim = given.get("dim", 0)
            size = tensor.shape[dim]
            if _is_symbolic(part) and _is_symbolic(size) and not has_free_unbacked_symbols([size, part]):
                parts = max(size.node.hint, 1) // max(part.node.hint, 1)
                if statically_known_true(part * parts == size):
                    return original(tensor, [part] * parts, dim)
            return original(tensor, *sizes, **named)

        return split

    return replacement


def _linspace(original: _Function) -> _Function:
    def linspace(start: Any, end: Any, steps: Any, **options: Any) -> Any:
        import torch

        dtype = options.get("dtype") or torch.get_default_dtype()
        known = not any(_is_symbolic(each) for each in (start, end, steps))
        if known or not dtype.is_floating_point or options.get("out") is not None:
            return original(start, end, steps, **options)
        positions = torch.arange(steps, dtype=dtype)
        last = torch.full((), steps - 1, dtype=dtype)
        step = (end - start) / last.clamp(min=1)  # a single value is the start
        return torch.where(positions < steps / 2, start + positions * step, end - (last - positions) * step)

    return linspace


def _logspace(original: _Function) -> _Function:
    def logspace(start: Any, end: Any, steps: Any, base: float = 10.0, **options: Any) -> Any:
        import torch

        if not any(_is_symbolic(each) for each in (start, end, steps)):
            return original(start, end, steps, base, **options)
        return torch.pow(base, torch.linspace(start, end, steps, **options))

    return logspace


def _window(form: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """Window of dynamic length, computed from the angles of its samples; a single sample is 1, as in PyTorch."""

    def replacement(original: _Function) -> _Function:
        def window(window_length: Any, periodic: bool = True, *weights: float, **options: Any) -> Any:
            import torch

            if not _is_symbolic(window_length) or options.keys() - {"alpha", "beta", "dtype", "device"}:
                return original(window_length, periodic, *weights, **options)
            dtype = options.pop("dtype", None) or torch.get_default_dtype()
            options.pop("device", None)
            period = torch.full((), window_length if periodic else window_length - 1, dtype=dtype)
            angles = torch.arange(window_length, dtype=dtype) * (2 * math.pi) / period.clamp(min=1)
            return torch.where(torch.full((), window_length) > 1, form(angles, *weights, **options), 1.0)

        return window

    return replacement


_WINDOWS: dict[str, Callable[..., Any]] = {
    "bartlett": lambda angles: 1 - (angles / math.pi - 1).abs(),
    "blackman": lambda angles: 0.42 - 0.5 * angles.cos() + 0.08 * (2 * angles).cos(),
    "hamming": lambda angles, alpha=0.54, beta=0.46: alpha - beta * angles.cos(),
    "hann": lambda angles: 0.5 - 0.5 * angles.cos(),
}


def _affine_grid(original: _Function) -> _Function:
    def affine_grid_generator(theta: Tensor, size: Sequence[Any], align_corners: bool) -> Any:
        import torch

        if not any(_is_symbolic(each) for each in size[2:]):
            return original(theta, size, align_corners)
        axes = []
        for length in reversed(size[2:]):  # a point's first coordinate is the width
            axis = torch.linspace(-1, 1, length, dtype=theta.dtype)
            axes.append(axis if align_corners else axis * (length - 1) / length)
        points = torch.stack(torch.meshgrid(*reversed(axes), indexing="ij")[::-1], -1)
        matrix = theta.mT.reshape(theta.shape[0], *[1] * (len(axes) - 1), len(axes) + 1, len(axes))
        return points @ matrix[..., :-1, :] + matrix[..., -1:, :]

    return affine_grid_generator


def _as_tensor(original: _Function) -> _Function:
    def as_tensor(data: Any, *arguments: Any, **options: Any) -> Any:
        import torch

        found = data if isinstance(data, list | tuple) else [data]
        if any(_is_symbolic(each) for each in found):
            names = ("dtype", "device")
            return torch.tensor(data, **dict(zip(names, arguments, strict=False)), **options)
        return original(data, *arguments, **options)

    return as_tensor


def _new_tensor(original: _Function) -> _Function:
    def new_tensor(self: Tensor, data: Any, **options: Any) -> Any:
        import torch

        found = data if isinstance(data, list | tuple) else [data]
        if any(_is_symbolic(each) for each in found):
            return torch.tensor(data, **{"dtype": self.dtype, **options})
        return original(self, data, **options)

    return new_tensor


def _contiguous(original: _Function) -> _Function:
    """PyTorch compares symbolic strides, which limits sizes to those whose tensors are as contiguous as the example."""

    def contiguous(self: Tensor, **options: Any) -> Any:
        import torch
        from torch._prims_common import is_contiguous  # of the example's sizes, during capture
        from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

        # PyTorch asks nothing about computed sizes, which have no example.
        if options or not any(_is_symbolic(each) for each in self.shape) or free_unbacked_symbols(self):
            return original(self, **options)
        return self if is_contiguous(self) else self.clone(memory_format=torch.contiguous_format)

    return contiguous


def _kron(original: _Function) -> _Function:
    def kron(input: Tensor, other: Tensor) -> Any:
        if input.ndim != other.ndim or not any(_is_symbolic(each) for each in (*input.shape, *other.shape)):
            return original(input, other)
        first = [each for size in input.shape for each in (size, 1)]
        second = [each for size in other.shape for each in (1, size)]
        sizes = [one * two for one, two in zip(input.shape, other.shape, strict=True)]
        return (input.reshape(first) * other.reshape(second)).reshape(sizes)

    return kron


def _take_along_dim(original: _Function) -> _Function:
    def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Any:
        import torch
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        if dim is not None and input.ndim == indices.ndim:
            pairs = list(zip(input.shape, indices.shape, strict=True))
            del pairs[dim]
            if all(statically_known_true(one == two) for one, two in pairs):
                positions = torch.where(indices < 0, indices + input.shape[dim], indices)
                return torch.gather(input, dim, positions)
        return original(input, indices, dim)

    return take_along_dim


def _frequencies(original: _Function) -> _Function:
    def fftfreq(n: Any, d: float = 1.0, **options: Any) -> Any:
        import torch

        if not _is_symbolic(n):
            return original(n, d, **options)
        positions = torch.arange(n, **options)
        return torch.where(positions < (n + 1) // 2, positions, positions - n) / (n * d)

    return fftfreq


def _half_frequencies(original: _Function) -> _Function:
    def rfftfreq(n: Any, d: float = 1.0, **options: Any) -> Any:
        import torch

        return torch.arange(n // 2 + 1, **options) / (n * d) if _is_symbolic(n) else original(n, d, **options)

    return rfftfreq


def _pool(rank: int, reduction: str) -> Callable[[_Function], _Function]:
    """Pooling over whole axes of dynamic size, as in `avg_pool2d(x, x.shape[2:])`, is a reduction."""

    def replacement(original: _Function) -> _Function:
        def pool(input: Tensor, kernel_size: Any, *arguments: Any, **options: Any) -> Any:
            from torch.fx.experimental.symbolic_shapes import statically_known_true

            axes = range(-rank, 0)
            sizes = _each(kernel_size, rank)
            dynamic = [at for at, size in zip(axes, sizes, strict=True) if _is_symbolic(size)]
            covered = all(statically_known_true(input.shape[axis] == sizes[axis]) for axis in dynamic)
            # A stride does not matter with a single window; other options do.
            plain = not any((*arguments[1:], *(value for name, value in options.items() if name != "stride")))
            if not dynamic or not covered or not plain:
                return original(input, kernel_size, *arguments, **options)
            reduced = getattr(input, reduction)(dynamic, keepdim=True)
            if len(dynamic) == rank:
                return reduced
            strides = _each(options.get("stride") or (arguments[0] if arguments else None) or sizes, rank)
            window, step = ([1 if at in dynamic else each[at] for at in axes] for each in (sizes, strides))
            return original(reduced, window, step)

        return pool

    return replacement


def _max_pool1d(original: _Function) -> _Function:
    """Pool as images of one row: PyTorch's own implementation fixes every size."""

    def max_pool1d(
        input: Tensor, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> Any:
        import torch

        if not any(_is_symbolic(each) for each in input.shape):
            return original(input, kernel_size, stride, padding, dilation, ceil_mode)
        window, step, edge, space = (
            _each(each, 1)[0] for each in (kernel_size, stride or kernel_size, padding, dilation)
        )
        rows = input.unsqueeze(-2)
        return torch.max_pool2d(rows, (1, window), (1, step), (0, edge), (1, space), ceil_mode).squeeze(-2)

    return max_pool1d


def _adaptive_max_pool2d(original: _Function) -> _Function:
    """Do not pool an axis that keeps its dynamic size, as in `adaptive_max_pool2d(x, (1, None))`."""

    def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        from torch.nn import functional

        sizes = _each(output_size, 2)
        dynamic = [axis for axis in (-2, -1) if sizes[axis] is None and _is_symbolic(input.shape[axis])]
        if return_indices or len(dynamic) != 1:
            return original(input, output_size, return_indices)
        pooled = -3 - dynamic[0]
        rows = input.movedim(pooled, -1)
        size = input.shape[pooled] if sizes[pooled] is None else sizes[pooled]
        found = functional.adaptive_max_pool1d(rows.reshape(-1, rows.shape[-1]), size)
        return found.reshape(*rows.shape[:-1], size).movedim(-1, pooled)

    return adaptive_max_pool2d


def _each(value: Any, count: int) -> tuple[Any, ...]:
    """Return a number for each of `count` axes; a sequence of one is repeated."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * count if len(values) == 1 else values


def _pow(original: _Function) -> _Function:
    """PyTorch compares an integer exponent with 0, 1, 2, ..., which fixes a size."""

    def power(input: Any, exponent: Any, **options: Any) -> Any:
        import torch

        if not _is_symbolic(exponent) or not isinstance(input, torch.Tensor):
            return original(input, exponent, **options)
        whole = isinstance(exponent, torch.SymInt)
        dtype = input.dtype if whole or not _is_whole(input.dtype) else torch.get_default_dtype()
        return original(input, torch.full((), exponent, dtype=dtype), **options)

    return power


def _is_whole(dtype: Any) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex


def _triangle_indices(sign: int) -> Callable[[_Function], _Function]:
    """Rows and columns of the triangle of a square of dynamic size: sign 1 is the upper one, -1 the lower one.

    The rows of a triangle have 1, 2, 3, ... elements, so that element p is in row floor((sqrt(8 p + 1) - 1) / 2); the
    upper one is the lower one in reverse.
    """

    def replacement(original: _Function) -> _Function:
        def triangle_indices(row: Any, col: Any, offset: int = 0, **options: Any) -> Any:
            import torch
            from torch.fx.experimental.symbolic_shapes import statically_known_true

            square = statically_known_true(row == col)
            if not _is_symbolic(row) or not square or offset * sign < 0 or options.keys() - {"dtype", "device"}:
                return original(row, col, offset, **options)
            side = row - abs(offset)
            check: Any = torch._check
            check(side >= 0)
            count = side * (side + 1) // 2
            positions = torch.arange(count)
            positions = count - 1 - positions if sign > 0 else positions
            rows = ((torch.sqrt(8.0 * positions.double() + 1) - 1) / 2).long()
            columns = positions - rows * (rows + 1) // 2
            if sign > 0:
                rows, columns = side - 1 - rows, side - 1 - columns + offset
            else:
                rows = rows - offset
            return torch.stack([rows, columns]).to(options.get("dtype", torch.int64))

        return triangle_indices

    return replacement


def _conv(rank: int) -> Callable[[_Function], _Function]:
    """Convolutions of signals or images with a dynamic number of groups, such as per-sample filters, as matmuls."""

    def replacement(original: _Function) -> _Function:
        def conv(
            input: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: Any = 1,
            padding: Any = 0,
            dilation: Any = 1,
            groups: Any = 1,
        ) -> Any:
            if not _is_symbolic(groups):
                return original(input, weight, bias, stride, padding, dilation, groups)
            steps, spaces = _of_axes(stride, rank), _of_axes(dilation, rank)
            if input.ndim == rank + 1:
                return conv(input.unsqueeze(0), weight, bias, stride, padding, dilation, groups).squeeze(0)
            if isinstance(padding, str):
                input, padding = _padded(input, padding, tuple(weight.shape[2:]), spaces), 0
            edges = _of_axes(padding, rank)
            if rank == 1:
                input, weight = input.unsqueeze(2), weight.unsqueeze(2)
                steps, edges, spaces = (1, *steps), (0, *edges), (1, *spaces)
            found = _conv_by_matmuls(input, weight, groups, steps, edges, spaces)
            found = found.squeeze(2) if rank == 1 else found
            return found if bias is None else found + bias.reshape(-1, *[1] * rank)

        return conv

    return replacement


def _padded(input: Tensor, padding: str, window: tuple[int, ...], spaces: _Axes) -> Tensor:
    """Pad for the padding "same", with the larger part at the end; "valid" is none."""
    from torch.nn import functional

    if padding == "valid":
        return input
    totals = [space * (width - 1) for space, width in zip(spaces, window, strict=True)]
    return functional.pad(input, [edge for total in reversed(totals) for edge in (total // 2, total - total // 2)])


def _conv_by_matmuls(input: Tensor, weight: Tensor, groups: Any, steps: _Axes, edges: _Axes, spaces: _Axes) -> Tensor:
    from torch.nn import functional

    batch, _, *sizes = input.shape
    count, channels, *window = weight.shape
    split = input.reshape(-1, channels, *sizes)
    columns = functional.unfold(split, tuple(window), spaces, edges, steps)
    columns = columns.reshape(batch, groups, columns.shape[1], columns.shape[2])
    filters = weight.reshape(groups, count // groups, -1)
    out = [
        (size + 2 * edge - space * (width - 1) - 1) // step + 1
        for size, edge, space, width, step in zip(sizes, edges, spaces, window, steps, strict=True)
    ]
    return (filters @ columns).reshape(batch, count, *out)


def _conv_transpose(rank: int) -> Callable[[_Function], _Function]:
    """Transposed convolutions with a dynamic output padding, which `output_size` gives: padded and cut afterwards; and,
    of signals and images, with a dynamic number of groups."""

    def replacement(original: _Function) -> _Function:
        def conv_transpose(
            input: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: Any = 1,
            padding: Any = 0,
            output_padding: Any = 0,
            groups: Any = 1,
            dilation: Any = 1,
        ) -> Any:
            from torch.nn import functional

            steps, edges, ends, spaces = (_of_axes(each, rank) for each in (stride, padding, output_padding, dilation))
            if any(map(_is_symbolic, ends)):
                result = conv_transpose(input, weight, None, stride, 0, 0, groups, dilation)
                result = functional.pad(result, [each for end in reversed(ends) for each in (0, end)])
                for axis, edge in enumerate(edges, -rank):
                    result = result.narrow(axis, edge, result.shape[axis] - 2 * edge)
            elif _is_symbolic(groups) and rank == 2 and input.ndim == 4:
                result = _transposed_by_matmuls(input, weight, groups, steps, edges, ends, spaces)
            elif _is_symbolic(groups) and rank == 1 and input.ndim == 3:
                axes = ((1, *steps), (0, *edges), (0, *ends), (1, *spaces))
                result = _transposed_by_matmuls(input.unsqueeze(2), weight.unsqueeze(2), groups, *axes).squeeze(2)
            else:
                return original(input, weight, bias, stride, padding, output_padding, groups, dilation)
            return result if bias is None else result + bias.reshape(-1, *[1] * rank)

        return conv_transpose

    return replacement


def _transposed_by_matmuls(
    input: Tensor, weight: Tensor, groups: Any, steps: _Axes, edges: _Axes, ends: _Axes, spaces: _Axes
) -> Tensor:
    from torch.nn import functional

    batch, total, *sizes = input.shape
    _, channels, *window = weight.shape
    rows = input.reshape(batch, groups, total // groups, -1)
    columns = weight.reshape(groups, total // groups, -1).mT @ rows
    out = [
        (size - 1) * step - 2 * edge + space * (width - 1) + end + 1
        for size, step, edge, space, width, end in zip(sizes, steps, edges, spaces, window, ends, strict=True)
    ]
    found = functional.fold(columns.flatten(0, 1), tuple(out), tuple(window), spaces, edges, steps)
    return found.reshape(batch, groups * channels, *out)


def _of_axes(value: Any, rank: int) -> _Axes:
    """Return an option of a convolution for each spatial axis."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * rank if len(values) == 1 else values


def _remainder(original: _Function) -> _Function:
    """Remainder of a negated size, as in `(4 - size % 4) % 4`, which rounds the size up to a multiple.

    Written as `4 * ((size + 3) // 4) - size`, so that the padded size is a visible multiple. The sum of the size and a
    remainder of a remainder is one too, but each view of windows takes PyTorch's shape environment seconds to check.
    """

    def remainder(self: Any, divisor: Any) -> Any:
        size = _negated(self.node.expr, divisor) if isinstance(divisor, int) and divisor > 0 else None
        if size is None:
            return original(self, divisor)
        size = self.node.shape_env.create_symintnode(size, hint=None)
        return (size + divisor - 1) // divisor * divisor - size

    return remainder


def _negated(value: Any, divisor: int) -> Any:
    """Return a sum of sizes whose negative has this value's remainder; None if no size is subtracted."""
    import sympy
    from torch.utils._sympy.functions import Mod, PythonMod

    terms = [each.as_coeff_Mul() for each in sympy.Add.make_args(value)]
    sizes = [
        -factor * (rest.args[0] if isinstance(rest, Mod | PythonMod) and rest.args[1] == divisor else rest)
        for factor, rest in terms
        if rest != 1
    ]
    if not all(factor < 0 for factor, rest in terms if rest != 1):
        return None
    return sympy.Add(*sizes, -sum(factor for factor, rest in terms if rest == 1) % divisor)
