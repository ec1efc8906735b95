"""PyTorch operators whose addresses or sizes depend on values of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.fuzz.hostile.catalog import Feeds, floats, hostile_indices, ints, placed
from tests.fuzz.hostile.torch_catalog import Torch

_N = 8


def _sizes(name: str, *shapes: tuple[int, ...]) -> list[tuple[str, Feeds]]:
    return [(f"{name}{list(shape)}", {name: np.zeros(shape, np.float32)}) for shape in shapes]


def _embedding(options: dict[str, Any]) -> Any:
    def layers() -> list[Any]:
        import torch

        return [torch.nn.Embedding(_N, 4, **options)]

    return layers


def _bag(mode: str) -> Any:
    def layers() -> list[Any]:
        import torch

        return [torch.nn.EmbeddingBag(_N, 4, mode=mode)]

    return layers


def _reads() -> Iterator[Torch]:
    values = hostile_indices(_N)
    index, grid = ints(0, 3, 5), np.array([[0, 3, 5], [1, 2, 7]])
    empty = _sizes("x", (2, 0), (2, 5), (2, 2))
    good = {"x": floats(2, _N), "i": index}
    one = [*placed(index, values, "i"), *empty, ("i of none", {"i": ints()})]
    for name, options in (("Embedding", {}), ("Embedding padding_idx", {"padding_idx": 0})):
        yield Torch(
            name, lambda layer, i: layer(i), {"i": grid}, placed(grid, values, "i"), ["i"], modules=_embedding(options)
        )
    yield Torch("index x[:, i]", lambda x, i: x[:, i], good, one, ["i"])
    yield Torch("index x[i, j]", lambda x, i: x[i % 2, i], good, one, ["i"])
    yield Torch("index_select", lambda x, i: x.index_select(1, i), good, one, ["i"])
    larger = [
        (f"i{list(shape)}", {"i": np.zeros(shape, np.int64)}) for shape in [(2000, 1), (3, 3), (1, 3), (0, 3), (2, 20)]
    ]
    two = {"x": floats(2, _N), "i": grid}
    many = [*placed(grid, values, "i"), *larger, *empty]
    yield Torch("gather", lambda x, i: x.gather(1, i), two, many, ["i"])
    yield Torch("take_along_dim", lambda x, i: x.take_along_dim(i, 1), two, many, ["i"])
    yield Torch("take", lambda x, i: x.take(i), two, [*placed(grid, hostile_indices(16), "i"), *empty], ["i"])
    yield Torch("select by a tensor", lambda x, i: x[:, i[0]], good, one, ["i"])
    target = ints(0, 3)

    def loss(name: str) -> Any:
        def function(x: Any, t: Any) -> Any:
            import torch

            return getattr(torch.nn.functional, name)(x, t, reduction="none")

        return function

    wrong = [*placed(target, [-100, *values], "t"), ("t of 3", {"t": ints(0, 1, 2)}), ("t of 1", {"t": ints(0)})]
    for name in ("nll_loss", "cross_entropy"):
        yield Torch(name, loss(name), {"x": floats(2, _N), "t": target}, wrong, ["t"])

    def one_hot(i: Any) -> Any:
        import torch

        return torch.nn.functional.one_hot(i, _N)

    yield Torch("one_hot", one_hot, {"i": index}, placed(index, values, "i"), ["i"])
    offsets = ints(0, 2)
    for mode in ("sum", "mean", "max"):
        yield Torch(
            f"EmbeddingBag {mode}",
            lambda layer, i, o: layer(i, o),
            {"i": ints(0, 3, 5, 7), "o": offsets},
            [
                *placed(ints(0, 3, 5, 7), values, "i"),
                *[(f"o={list(case)}", {"o": ints(*case)}) for case in _OFFSETS],
                ("i of none", {"i": ints()}),
            ],
            ["i", "o"],
            modules=_bag(mode),
        )


_OFFSETS = [
    (1, 2),
    (-1, 2),
    (0, -1),
    (0, 4),
    (0, 5),
    (0, 10**6),
    (0, 2**62),
    (0, -(2**63)),
    (2, 0),
    (0, 0),
    (3, 1),
    (0,),
]


def _writes() -> Iterator[Torch]:
    values = hostile_indices(_N)
    index, grid = ints(0, 3, 5), np.array([[0, 3, 5], [1, 2, 7]])
    two = {"x": floats(2, _N), "i": grid, "u": floats(2, 3)}
    larger: list[tuple[str, Feeds]] = [
        (f"i, u {list(s)}", {"i": np.zeros(s, np.int64), "u": np.ones(s, np.float32)})
        for s in [(2000, 1), (3, 3), (1, 3), (2, 20)]
    ]
    shapes: list[tuple[str, Feeds]] = [
        *larger,
        ("u smaller", {"u": floats(1, 3)}),
        ("u narrower", {"u": floats(2, 2)}),
        ("u larger", {"u": floats(4, 5)}),
        *_sizes("x", (2, 0), (2, 5), (1, 8)),
    ]
    many: list[tuple[str, Feeds]] = [*placed(grid, values, "i"), *shapes]
    yield Torch("scatter", lambda x, i, u: x.scatter(1, i, u), two, many, ["i"])
    yield Torch("scatter_add", lambda x, i, u: x.scatter_add(1, i, u), two, many, ["i"])
    yield Torch("scatter_reduce", lambda x, i, u: x.scatter_reduce(1, i, u, "amax"), two, many, ["i"])
    yield Torch(
        "scatter value", lambda x, i: x.scatter(1, i, 2.0), {"x": two["x"], "i": grid}, placed(grid, values, "i"), ["i"]
    )
    rows = {"x": floats(_N, 4), "i": index, "u": floats(3, 4)}
    put = [
        *placed(index, values, "i"),
        ("u of 1 row", {"u": floats(1, 4)}),
        ("u of 2 rows", {"u": floats(2, 4)}),
        ("u of 9 rows", {"u": floats(9, 4)}),
        ("u narrower", {"u": floats(3, 2)}),
        ("u wider", {"u": floats(3, 9)}),
        *_sizes("x", (0, 4), (4, 4), (8, 5)),
    ]
    yield Torch("index_put", lambda x, i, u: x.index_put((i,), u), rows, put, ["i"])
    yield Torch("index_put accumulate", lambda x, i, u: x.index_put((i,), u, accumulate=True), rows, put, ["i"])
    yield Torch("index_copy", lambda x, i, u: x.index_copy(0, i, u), rows, put, ["i"])
    yield Torch("index_add", lambda x, i, u: x.index_add(0, i, u), rows, put, ["i"])
    yield Torch(
        "index_fill",
        lambda x, i: x.index_fill(0, i, 2.0),
        {"x": rows["x"], "i": index},
        placed(index, values, "i"),
        ["i"],
    )

    def unpool(x: Any, i: Any) -> Any:
        import torch

        return torch.nn.functional.max_unpool2d(x, i, [2, 2])

    places = np.arange(4, dtype=np.int64).reshape(1, 1, 2, 2) * 5
    yield Torch(
        "max_unpool2d",
        unpool,
        {"x": floats(1, 1, 2, 2), "i": places},
        placed(places, hostile_indices(16), "i"),
        ["i"],
        static={"x": [0, 1], "i": [0, 1]},
    )


def _counts() -> Iterator[Torch]:
    def repeat(x: Any, r: Any) -> Any:
        return x.repeat_interleave(r, 0)

    counts = ints(1, 2, 0, 3)
    far = [-1, -5, -(2**63), 0, 1, 10**6, 2**31, 2**62]
    yield Torch(
        "repeat_interleave",
        repeat,
        {"x": floats(4, 3), "r": counts},
        [
            *placed(counts, far, "r"),
            ("r of 3", {"r": ints(1, 2, 3)}),
            ("r of 9", {"r": ints(*[1] * 9)}),
            ("r of 1", {"r": ints(2)}),
        ],
        ["r"],
    )

    def sorted_places(x: Any, v: Any) -> Any:
        import torch

        return torch.searchsorted(x, v)

    yield Torch(
        "searchsorted",
        sorted_places,
        {"x": np.sort(floats(2, _N)), "v": floats(2, 3)},
        [
            *((f"v={v}", {"v": np.full((2, 3), v)}) for v in (np.nan, np.inf, -np.inf)),
            ("x of nan", {"x": np.full((2, _N), np.nan)}),
            ("v of 3 rows", {"v": floats(3, 3)}),
            ("v of 1 row", {"v": floats(1, 3)}),
            *_sizes("x", (2, 0), (2, 1)),
        ],
    )
    mask = np.array([[True, False] * 4, [False, True] * 4])
    masks = [("m of 1 row", {"m": mask[:1]}), ("m narrower", {"m": mask[:, :3]}), ("m of none", {"m": mask & False})]
    yield Torch("masked_select", lambda x, m: x.masked_select(m), {"x": floats(2, _N), "m": mask}, masks)
    yield Torch("x[m]", lambda x, m: x[m], {"x": floats(2, _N), "m": mask}, masks)
    yield Torch("masked_fill", lambda x, m: x.masked_fill(m, 2.0), {"x": floats(2, _N), "m": mask}, masks)
    yield Torch(
        "masked_scatter",
        lambda x, m, u: x.masked_scatter(m, u),
        {"x": floats(2, _N), "m": mask, "u": floats(16)},
        [*masks, ("u too short", {"u": floats(3)}), ("u of none", {"u": floats(0)})],
    )

    def grid_sample(mode: str, padding: str) -> Any:
        def function(x: Any, g: Any) -> Any:
            import torch

            return torch.nn.functional.grid_sample(x, g, mode, padding, align_corners=False)

        return function

    wild = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9]
    grid = np.zeros((2, 3, 4, 2), np.float32)
    for mode, padding in (("bilinear", "zeros"), ("nearest", "border"), ("bicubic", "reflection")):
        yield Torch(
            f"grid_sample {mode} {padding}",
            grid_sample(mode, padding),
            {"x": floats(2, 3, 4, 5), "g": grid},
            [
                *((f"g={v}", {"g": np.full_like(grid, v)}) for v in wild),
                ("g of 3 batches", {"g": np.zeros((3, 3, 4, 2), np.float32)}),
                ("x of height 0", {"x": floats(2, 3, 0, 5)}),
            ],
            static={"g": [3], "x": [1]},
        )


def functions() -> Iterator[Torch]:
    """All functions of this file."""
    for group in (_reads, _writes, _counts):
        yield from group()
