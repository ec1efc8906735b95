"""Templates that move elements and compute sizes, for graphs with symbolic sizes."""

from __future__ import annotations

import numpy as np

from tests.fuzz.symbolic_builder import LARGEST, Dim, SymbolicBuilder, Tensor
from tests.fuzz.symbolic_operators import template

_INTEGER = Tensor("", (), "int64", exact=True)


def shape_of(build: SymbolicBuilder, tensor: Tensor) -> str:
    """The name of a tensor's shape."""
    return build.node("Shape", [tensor.name], [Tensor("", (tensor.rank,), "int64", exact=True)])[0].name


def size_of(build: SymbolicBuilder, tensor: Tensor, axis: int) -> str:
    """The name of a tensor's size along an axis, of shape (1,)."""
    one = Tensor("", (1,), "int64", exact=True)
    return build.node("Gather", [shape_of(build, tensor), build.constant([axis])], [one], axis=0)[0].name


@template
def transpose(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(2, 5))
    if tensor is None:
        return False
    order = [int(axis) for axis in build.random.permutation(tensor.rank)]
    shape = tuple(tensor.shape[axis] for axis in order)
    build.node("Transpose", [tensor.name], [build.like(tensor, shape)], perm=order)
    return True


@template
def reshape(build: SymbolicBuilder) -> bool:
    """Merge two adjacent axes with -1, Flatten, or a computed shape."""
    tensor = build.pick(ranks=(2, 4))
    if tensor is None:
        return False
    axis = build.integer(0, tensor.rank - 2)
    a, b = tensor.shape[axis : axis + 2]
    joined: Dim = a * b if isinstance(a, int) and isinstance(b, int) else f"({a})*({b})"
    if isinstance(joined, str):
        build.size(joined, build.estimate(a) * build.estimate(b))
    shape = (*tensor.shape[:axis], joined, *tensor.shape[axis + 2 :])
    if build.chance():
        target = build.constant(
            [*([0] * axis), -1, *(d if isinstance(d, int) else 0 for d in tensor.shape[axis + 2 :])]
        )
        if any(isinstance(d, str) for d in tensor.shape[axis + 2 :]):
            return False
    else:
        parts = [build.constant([-1]) if place == axis else None for place in range(len(shape))]
        names = [
            part if part is not None else size_of(build, tensor, place + (place > axis))
            for place, part in enumerate(parts)
        ]
        result = Tensor("", (len(shape),), "int64", exact=True)
        (made,) = build.node("Concat", names, [result], axis=0)
        target = made.name
    build.node("Reshape", [tensor.name, target], [build.like(tensor, shape)])
    return True


@template
def split_axis(build: SymbolicBuilder) -> bool:
    """Split an axis of known size in two, like attention heads."""
    tensor = build.pick(ranks=(1, 4))
    if tensor is None or tensor.rank > 3:
        return False
    places = [axis for axis, dim in enumerate(tensor.shape) if isinstance(dim, int) and dim > 1 and dim % 2 == 0]
    if not places:
        return False
    axis = build.choice(places)
    half = tensor.shape[axis]
    assert isinstance(half, int)
    shape = (*tensor.shape[:axis], 2, half // 2, *tensor.shape[axis + 1 :])
    names = [
        build.constant([dim]) if isinstance(dim, int) else size_of(build, tensor, place if place < axis else place - 1)
        for place, dim in enumerate(shape)
    ]
    (target,) = build.node("Concat", names, [Tensor("", (len(shape),), "int64", exact=True)], axis=0)
    build.node("Reshape", [tensor.name, target.name], [build.like(tensor, shape)])
    return True


@template
def squeeze_and_unsqueeze(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(0, 4))
    if tensor is None:
        return False
    ones = [axis for axis, dim in enumerate(tensor.shape) if dim == 1]
    if ones and build.chance():
        axis = build.choice(ones)
        shape = (*tensor.shape[:axis], *tensor.shape[axis + 1 :])
        build.node("Squeeze", [tensor.name, build.constant([axis])], [build.like(tensor, shape)])
        return True
    axis = build.integer(0, tensor.rank)
    shape = (*tensor.shape[:axis], 1, *tensor.shape[axis:])
    build.node("Unsqueeze", [tensor.name, build.constant([axis])], [build.like(tensor, shape)])
    return True


@template
def slices(build: SymbolicBuilder) -> bool:
    """Slice with constant limits, limits from the end, steps of both signs, or a limit computed from a size."""
    tensor = build.pick(ranks=(1, 4))
    if tensor is None:
        return False
    axis = build.integer(0, tensor.rank - 1)
    step = build.choice([1, 1, 1, 2, -1, -2])
    start, end = build.integer(-4, 6), build.choice([build.integer(-4, 9), 2**40])
    if step < 0:
        start, end = build.choice([-1, 5, 2**40]), build.choice([-(2**40), 0, 1, -6])
    last = build.constant([end])
    if step == 1 and build.chance(0.3):
        half = Tensor("", (1,), "int64", exact=True)
        operator = build.choice(["Div", "Sub"])
        (made,) = build.node(operator, [size_of(build, tensor, axis), build.constant([2])], [half])
        last = made.name
    dim = build.size(f"slice({tensor.shape[axis]},{start},{last},{step})", build.estimate(tensor.shape[axis]))
    shape = (*tensor.shape[:axis], dim, *tensor.shape[axis + 1 :])
    names = [tensor.name, build.constant([start]), last, build.constant([axis]), build.constant([step])]
    build.node("Slice", names, [build.like(tensor, shape)])
    return True


@template
def concatenate(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(1, 4))
    if tensor is None:
        return False
    other = build.pick(shape=tensor.shape) or tensor
    axis = build.integer(0, tensor.rank - 1)
    old = tensor.shape[axis]
    dim: Dim = 2 * old if isinstance(old, int) else build.size(f"2*({old})", 2 * build.estimate(old))
    shape = (*tensor.shape[:axis], dim, *tensor.shape[axis + 1 :])
    if not build.fits(shape):
        return False
    exact, bounded = tensor.exact and other.exact, tensor.bounded and other.bounded
    names = [tensor.name, other.name]
    build.node("Concat", names, [build.like(tensor, shape, exact=exact, bounded=bounded)], axis=axis)
    return True


@template
def split(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(1, 4))
    if tensor is None:
        return False
    axis = build.integer(0, tensor.rank - 1)
    old = tensor.shape[axis]
    if isinstance(old, int) and old < 2:
        return False
    sizes: list[Dim] = [f"upper({old})/2", f"lower({old})/2"]
    if isinstance(old, int):
        sizes = [-(-old // 2), old - -(-old // 2)]
    else:
        for dim in sizes:
            build.size(str(dim), -(-build.estimate(old) // 2))
    shapes = [(*tensor.shape[:axis], dim, *tensor.shape[axis + 1 :]) for dim in sizes]
    build.node("Split", [tensor.name], [build.like(tensor, shape) for shape in shapes], axis=axis, num_outputs=2)
    return True


@template
def pad(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(1, 4))
    if tensor is None:
        return False
    mode = build.choice(["constant", "constant", "edge", "reflect"])
    before = [build.integer(0, 2) if build.chance() else 0 for _ in tensor.shape]
    after = [build.integer(0, 2) if build.chance() else 0 for _ in tensor.shape]
    shape: list[Dim] = []
    for dim, low, high in zip(tensor.shape, before, after, strict=True):
        wide = build.estimate(dim) + low + high
        same = low + high == 0
        shape.append(dim if same else wide if isinstance(dim, int) else build.size(f"({dim})+{low + high}", wide))
    if not build.fits(tuple(shape)):
        return False
    names = [tensor.name, build.constant([*before, *after])]
    if mode == "constant" and build.chance():
        names.append(build.constant(0.5))
    build.node("Pad", names, [build.like(tensor, tuple(shape))], mode=mode)
    return True


@template
def gather(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(1, 4))
    if tensor is None:
        return False
    axis = build.integer(0, tensor.rank - 1)
    size = tensor.shape[axis]
    limit = size if isinstance(size, int) else 2
    if limit < 1:
        return False
    indices = build.random.integers(-limit, limit, tuple(build.integer(1, 3) for _ in range(build.integer(0, 2))))
    shape = (*tensor.shape[:axis], *indices.shape, *tensor.shape[axis + 1 :])
    if not build.fits(shape):
        return False
    names = [tensor.name, build.constant(np.asarray(indices, np.int64))]
    build.node("Gather", names, [build.like(tensor, shape)], axis=axis)
    return True


@template
def expand(build: SymbolicBuilder) -> bool:
    """Expand a value with some axes of size 1, or a row, to another value's shape."""
    target = build.pick(ranks=(1, 4))
    if target is None:
        return False
    kept = build.integer(0, target.rank)
    shape = tuple(dim if isinstance(dim, int) and build.chance() else 1 for dim in target.shape[kept:])
    source = build.constant(build.uniform(-1, 1, shape))
    result = build.like(target, exact=True, bounded=True)
    (wide,) = build.node("Expand", [source, shape_of(build, target)], [result])
    build.node("Mul", [wide.name, target.name], [build.like(target, exact=False)])
    return True


@template
def tile(build: SymbolicBuilder) -> bool:
    tensor = build.pick(ranks=(1, 3))
    if tensor is None:
        return False
    repeats = [build.integer(1, 3) if build.chance(0.4) else 1 for _ in tensor.shape]
    shape: list[Dim] = []
    for dim, count in zip(tensor.shape, repeats, strict=True):
        wide = build.estimate(dim) * count
        shape.append(dim if count == 1 else wide if isinstance(dim, int) else build.size(f"{count}*({dim})", wide))
    if not build.fits(tuple(shape)):
        return False
    build.node("Tile", [tensor.name, build.constant(repeats)], [build.like(tensor, tuple(shape))])
    return True


@template
def rounded_size(build: SymbolicBuilder) -> bool:
    """A tensor whose size is computed with floats from another size."""
    tensor = build.pick(ranks=(1, 4))
    if tensor is None:
        return False
    axis = build.integer(0, tensor.rank - 1)
    factor = build.choice([1.5, 0.5, 1.3, 0.75, 1 / 3, 2.0])
    rounding = build.choice(["Floor", "Ceil"])
    real = Tensor("", (1,), "float32", exact=True)
    (size,) = build.node("Cast", [size_of(build, tensor, axis)], [real], to=1)
    operator = build.choice(["Mul", "Mul", "Div"])
    (scaled,) = build.node(operator, [size.name, build.constant(factor)], [real])
    (rounded,) = build.node(rounding, [scaled.name], [real])
    (whole,) = build.node("Cast", [rounded.name], [Tensor("", (1,), "int64", exact=True)], to=7)
    estimate = int(build.estimate(tensor.shape[axis]) * 3) + 1
    dim = build.size(f"{rounding}({tensor.shape[axis]},{operator},{factor:.3f})", estimate)
    if build.chance():
        (count,) = build.node("Squeeze", [whole.name], [_INTEGER])
        names = [build.constant(np.int64(0)), count.name, build.constant(np.int64(1))]
        (ranged,) = build.node("Range", names, [Tensor("", (dim,), "int64", exact=True)])
        build.node("Cast", [ranged.name], [Tensor("", (dim,), "float32", exact=True, bounded=False)], to=1)
        return True
    (zeros,) = build.node("ConstantOfShape", [whole.name], [Tensor("", (dim,), "float32", exact=True)])
    build.node("Cos", [zeros.name], [Tensor("", (dim,))])
    return True


@template
def counted(build: SymbolicBuilder) -> bool:
    """NonZero and Gather: a size that depends on the data."""
    tensor = build.pick(ranks=(1, 1), exact=True)
    if tensor is None:
        return False
    zero = build.constant(0.0)
    flag = Tensor("", tensor.shape, "bool", exact=True)
    (positive,) = build.node("Greater", [tensor.name, zero], [flag])
    dim = build.size(f"count({positive.name})", LARGEST * 4)
    (found,) = build.node("NonZero", [positive.name], [Tensor("", (1, dim), "int64", exact=True)])
    places = Tensor("", (dim,), "int64", exact=True)
    (flat,) = build.node("Squeeze", [found.name, build.constant([0])], [places])
    build.node("Gather", [tensor.name, flat.name], [build.like(tensor, (dim,))], axis=0)
    return True
