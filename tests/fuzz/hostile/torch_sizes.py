"""PyTorch operators that need minimum sizes, which dynamic sizes may violate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tests.fuzz.hostile.catalog import Feeds, floats, ints
from tests.fuzz.hostile.torch_catalog import Torch

Shapes = list[tuple[int, ...]]
_COLUMNS: Shapes = [(3, 1), (3, 2), (3, 4), (3, 5), (3, 7), (3, 9), (3, 0), (0, 8), (1, 8), (3, 100)]


def _one(
    name: str, function: Callable[..., Any], shapes: Shapes = _COLUMNS, good: tuple[int, ...] = (3, 8), **options: Any
) -> Torch:
    """A function of one tensor with other shapes."""
    hostile = [(f"x{list(shape)}", {"x": np.zeros(shape, np.float32)}) for shape in shapes]
    return Torch(name, function, {"x": floats(*good)}, hostile, **options)


def _functional(name: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
    def function(x: Any) -> Any:
        import torch

        return getattr(torch.nn.functional, name)(x, *arguments, **options)

    return function


def _layer(name: str, *arguments: Any, **options: Any) -> Callable[[], Sequence[Any]]:
    def layers() -> list[Any]:
        import torch

        return [getattr(torch.nn, name)(*arguments, **options)]

    return layers


def _applied(layer: Any, *tensors: Any) -> Any:
    result = layer(*tensors)
    return result[0] if isinstance(result, tuple) else result


def _views() -> Iterator[Torch]:
    yield _one("narrow", lambda x: x.narrow(1, 3, 4))
    yield _one("slice 3:5", lambda x: x[:, 3:5])
    yield _one("slice -3:", lambda x: x[:, -3:])
    yield _one("slice to half", lambda x: x[:, : x.shape[1] // 2])
    yield _one("slice from the end", lambda x: x[:, x.shape[1] - 5 :])
    yield _one("select 5", lambda x: x[:, 5])
    yield _one("select -6", lambda x: x[:, -6])
    yield _one("split 3, 5", lambda x: x.split([3, 5], 1))
    yield _one("split by 3", lambda x: x.split(3, 1), [(3, 7), (3, 6), (3, 9), (3, 2), (3, 0)])
    yield _one("split to n", lambda x: x.split([3, x.shape[1] - 3], 1))
    yield _one("chunk", lambda x: x.chunk(2, 1))
    yield _one("tensor_split", lambda x: x.tensor_split(3, 1))
    yield _one("unfold", lambda x: x.unfold(1, 4, 2))
    yield _one("view 4, -1", lambda x: x.view(4, -1))
    yield _one("view -1, 4", lambda x: x.view(-1, 4))
    yield _one("view to half", lambda x: x.view(x.shape[0], x.shape[1] // 2, 2))
    yield _one("unflatten", lambda x: x.unflatten(1, (2, -1)))
    yield _one("expand", lambda x: x[:, None].expand(-1, 5, -1))
    yield _one("repeat", lambda x: x.repeat(2, 3))
    yield _one("roll", lambda x: x.roll(3, 1))
    yield _one("flip", lambda x: x.flip(1))
    yield _one("diagonal", lambda x: x.diagonal(2))
    yield _one("tril", lambda x: x.tril(-2))
    yield _one("as_strided", lambda x: x.as_strided((2, 3), (8, 1)))
    yield _one("squeeze", lambda x: x.unsqueeze(0).squeeze(0))
    yield _one("constant indices", lambda x: x[:, [5, 0]])
    yield _one("constant rows", lambda x: x[[2, 0]])
    yield _one("glu", _functional("glu"))
    yield _one("topk", lambda x: x.topk(5, 1)[0])
    yield _one("kthvalue", lambda x: x.kthvalue(5, 1)[0])
    yield _one("sort", lambda x: x.sort(1)[0])
    yield _one("median", lambda x: x.median(1)[0])
    yield _one("mode", lambda x: x.mode(1)[0])
    yield _one("max", lambda x: x.max(1)[0])
    yield _one("argmax", lambda x: x.argmax(1))
    yield _one("amin", lambda x: x.amin(1))
    yield _one("mean, std", lambda x: x.mean(1) + x.std(1))
    yield _one("cumsum", lambda x: x.cumsum(1))
    yield _one("logsumexp", lambda x: x.logsumexp(1))
    yield _one("softmax", lambda x: x.softmax(1))
    yield _one("nonzero", lambda x: x.nonzero())
    yield _one("plus a constant", lambda x: x + x.new_ones(1, 8))
    yield _one("cat with a constant", lambda x: _cat(x))


def _cat(x: Any) -> Any:
    import torch

    return torch.cat([x, torch.ones(2, 8)], 0)


def _padded() -> Iterator[Torch]:
    for mode in ("reflect", "circular", "replicate", "constant"):
        yield _one(
            f"pad {mode}", _functional("pad", (4, 4), mode), [(3, 5, n) for n in (0, 1, 2, 3, 4, 5, 100)], (3, 5, 8)
        )
    yield _one("pad negative", _functional("pad", (-3, -3)), [(3, n) for n in (0, 1, 5, 6, 7)])
    images: Shapes = [(2, 3, h, w) for h, w in [(1, 1), (2, 8), (0, 8), (4, 4), (5, 5), (7, 8)]]
    image = (2, 3, 8, 8)
    for size in ((5, 5), (1, 1), (3, 16)):
        yield _one(f"interpolate size {size}", _functional("interpolate", size), images, image)
    yield _one("interpolate half", _functional("interpolate", scale_factor=0.5, mode="bilinear"), images, image)
    yield _one("interpolate bicubic", _functional("interpolate", scale_factor=1.5, mode="bicubic"), images, image)
    yield _one("unfold image", _functional("unfold", 3), images, image)
    yield _one("adaptive_avg_pool2d", _functional("adaptive_avg_pool2d", 3), images, image)
    yield _one("adaptive_max_pool2d", _functional("adaptive_max_pool2d", 1), images, image)
    yield _one("max_pool2d", _functional("max_pool2d", 5), images, image)
    yield _one("avg_pool2d", _functional("avg_pool2d", 5, padding=2), images, image)
    yield _one("lp_pool2d", _functional("lp_pool2d", 2.0, 3), images, image)
    depths: Shapes = [(2, c, 3, 3) for c in (0, 1, 3, 4, 6, 12)]
    yield _one("pixel_shuffle", _functional("pixel_shuffle", 2), depths, (2, 8, 3, 3))
    yield _one("pixel_unshuffle", _functional("pixel_unshuffle", 2), images, image)
    yield _one("channel_shuffle", _functional("channel_shuffle", 2), depths, (2, 8, 3, 3))
    yield _one("local_response_norm", _functional("local_response_norm", 3), images, image)
    channels: Shapes = [*images, *((2, c, 8, 8) for c in (0, 1, 2, 4, 6))]
    for name, layer in (
        ("Conv2d", _layer("Conv2d", 3, 4, 5)),
        ("Conv2d groups", _layer("Conv2d", 3, 6, 3, groups=3)),
        ("ConvTranspose2d", _layer("ConvTranspose2d", 3, 4, 3, padding=2)),
        ("BatchNorm2d", _layer("BatchNorm2d", 3)),
        ("GroupNorm", _layer("GroupNorm", 3, 3)),
        ("InstanceNorm2d", _layer("InstanceNorm2d", 3, affine=True)),
    ):
        yield _one(name, _applied, channels, image, modules=layer)
    for name, layer in (
        ("Linear", _layer("Linear", 8, 4)),
        ("LayerNorm", _layer("LayerNorm", 8)),
        ("PReLU", _layer("PReLU", 8)),
        ("RMSNorm", _layer("RMSNorm", 8)),
    ):
        yield _one(name, _applied, modules=layer)
    yield _one(
        "fold", _functional("fold", (4, 4), 2), [(2, 4, 8), (2, 4, 10), (2, 3, 9), (2, 8, 9), (2, 0, 9)], (2, 8, 9)
    )


def _recurrent() -> Iterator[Torch]:
    steps: Shapes = [(0, 2, 3), (1, 2, 3), (4, 0, 3), (4, 300, 3), (4, 2, 4), (4, 2, 2)]
    for name in ("LSTM", "GRU", "RNN"):
        yield _one(name, _applied, steps, (4, 2, 3), modules=_layer(name, 3, 5))
    states: list[tuple[str, Feeds]] = [
        (f"h{list(shape)}", {"h": floats(*shape)})
        for shape in [(1, 1, 5), (1, 9, 5), (2, 2, 5), (1, 2, 4), (1, 0, 5), (1, 2, 6)]
    ]
    changed = [*states, ("x of 300 batches", {"x": floats(4, 300, 3)}), ("x of 1 batch", {"x": floats(4, 1, 3)})]
    for name in ("GRU", "RNN"):
        good = {"x": floats(4, 2, 3), "h": floats(1, 2, 5)}
        yield Torch(f"{name} with a state", _applied, good, changed, modules=_layer(name, 3, 5))

    def lstm(layer: Any, x: Any, h: Any) -> Any:
        return layer(x, (h, h))[0]

    yield Torch(
        "LSTM with a state", lstm, {"x": floats(4, 2, 3), "h": floats(1, 2, 5)}, changed, modules=_layer("LSTM", 3, 5)
    )

    def cell(layer: Any, x: Any, h: Any) -> Any:
        return layer(x, h)

    batch: list[tuple[str, Feeds]] = [(f"h{list(s)}", {"h": floats(*s)}) for s in [(1, 5), (9, 5), (2, 4), (0, 5)]]
    yield Torch("GRUCell", cell, {"x": floats(2, 3), "h": floats(2, 5)}, batch, modules=_layer("GRUCell", 3, 5))

    def packed(layer: Any, x: Any, lengths: Any) -> Any:
        import torch

        pack = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return torch.nn.utils.rnn.pad_packed_sequence(layer(pack)[0])[0]

    lengths: list[tuple[str, Feeds]] = [
        (f"l={list(v)}", {"l": ints(*v)}) for v in [(4, 0), (5, 1), (-1, 4), (10**9, 1), (1,)]
    ]
    yield Torch("LSTM packed", packed, {"x": floats(4, 2, 3), "l": ints(4, 2)}, lengths, modules=_layer("LSTM", 3, 5))

    def last(layer: Any, x: Any, lengths: Any) -> Any:
        import torch

        out, _ = layer(x)
        return out[lengths - 1, torch.arange(lengths.shape[0])]

    taken = [*lengths, ("l=[2**62, 1]", {"l": ints(2**62, 1)})]
    yield Torch("LSTM's last step", last, {"x": floats(4, 2, 3), "l": ints(4, 2)}, taken, modules=_layer("LSTM", 3, 5))


def _pairs() -> Iterator[Torch]:
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((3, 7), (8, 4)),
        ((3, 8), (7, 4)),
        ((0, 8), (8, 4)),
        ((3, 0), (0, 4)),
        ((3, 0), (8, 4)),
        ((3, 8), (2000, 50)),
    ]
    fed: list[tuple[str, Feeds]] = [(f"{list(a)} {list(b)}", {"x": floats(*a), "w": floats(*b)}) for a, b in pairs]
    both = {"x": floats(3, 8), "w": floats(8, 4)}
    yield Torch("matmul", lambda x, w: x @ w, both, fed)

    def einsum(x: Any, w: Any) -> Any:
        import torch

        return torch.einsum("ij,jk->ki", x, w)

    yield Torch("einsum", einsum, both, fed)
    same = {"x": floats(3, 8), "w": floats(3, 8)}
    other: list[tuple[str, Feeds]] = [
        (f"w{list(shape)}", {"w": floats(*shape)})
        for shape in [(3, 7), (2, 8), (1, 8), (3, 1), (0, 8), (3, 0), (300, 8)]
    ]

    def by_name(name: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        def function(x: Any, w: Any) -> Any:
            import torch

            home = torch if hasattr(torch, name) else torch.nn.functional
            return getattr(home, name)(x, w, *arguments, **options)

        return function

    def listed(name: str, axis: int) -> Callable[..., Any]:
        def function(x: Any, w: Any) -> Any:
            import torch

            return getattr(torch, name)([x, w], axis)

        return function

    yield Torch("add", lambda x, w: x + w, same, other)
    yield Torch("where", lambda x, w: (x > 0) * x + w.where(w > 0, x), same, other)
    yield Torch("cat", listed("cat", 0), same, other)
    yield Torch("stack", listed("stack", 0), same, other)
    yield Torch("cdist", by_name("cdist"), same, other)
    yield Torch("cosine_similarity", by_name("cosine_similarity"), same, other)
    yield Torch("mse_loss", by_name("mse_loss", reduction="none"), same, other)
    yield Torch("outer", lambda x, w: x[:, 0].outer(w[0]), same, other)
    batched = {"x": floats(2, 3, 4), "w": floats(2, 4, 5)}
    others: list[tuple[str, Feeds]] = [
        (f"w{list(shape)}", {"w": floats(*shape)})
        for shape in [(3, 4, 5), (1, 4, 5), (2, 5, 5), (0, 4, 5), (300, 4, 5)]
    ]
    yield Torch("bmm", by_name("bmm"), batched, others)

    def attention(q: Any, k: Any, v: Any) -> Any:
        import torch

        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    changes: list[tuple[str, Feeds]] = [
        ("v shorter", {"v": floats(2, 2, 5, 8)}),
        ("v longer", {"v": floats(2, 2, 60, 8)}),
        ("k of 1 batch", {"k": floats(1, 2, 6, 8)}),
        ("no keys", {"k": floats(2, 2, 0, 8), "v": floats(2, 2, 0, 8)}),
        ("k of other size", {"k": floats(2, 2, 6, 7)}),
    ]
    keys = {"q": floats(2, 2, 4, 8), "k": floats(2, 2, 6, 8), "v": floats(2, 2, 6, 8)}
    yield Torch("scaled_dot_product_attention", attention, keys, changes)

    def masked(q: Any, k: Any, m: Any) -> Any:
        import torch

        return torch.nn.functional.scaled_dot_product_attention(q, k, k, m)

    masks: list[tuple[str, Feeds]] = [
        (f"m{list(s)}", {"m": np.zeros(s, np.float32)}) for s in [(4, 5), (3, 6), (1, 1), (4, 60), (0, 6)]
    ]
    yield Torch("attention mask", masked, {"q": keys["q"], "k": keys["k"], "m": floats(4, 6)}, masks)

    def padding(layer: Any, x: Any, m: Any) -> Any:
        return layer(x, x, x, key_padding_mask=m)[0]

    hidden: list[tuple[str, Feeds]] = [
        ("all", {"m": np.ones((2, 6), bool)}),
        ("m shorter", {"m": np.zeros((2, 5), bool)}),
        ("m longer", {"m": np.zeros((2, 60), bool)}),
        ("m of 1 batch", {"m": np.zeros((1, 6), bool)}),
        ("x of other width", {"x": floats(2, 6, 9)}),
    ]
    yield Torch(
        "MultiheadAttention",
        padding,
        {"x": floats(2, 6, 8), "m": np.zeros((2, 6), bool)},
        hidden,
        modules=_layer("MultiheadAttention", 8, 2, batch_first=True),
    )


def functions() -> Iterator[Torch]:
    """All functions of this file."""
    for group in (_views, _padded, _recurrent, _pairs):
        yield from group()
