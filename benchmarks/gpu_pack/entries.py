"""The entries of a pack, most important first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.catalog import CATALOG
from benchmarks.gpu_pack import catalog_nets, conformance, single_kernels
from benchmarks.gpu_pack.build import Model
from benchmarks.gpu_pack.nets import NETS

PRECISIONS = ("float16", "bf16", "float32", "int8")


@dataclass(frozen=True)
class PackEntry:
    """A planned entry.

    Attributes:
        rest: it runs last, after the other runtimes.
        records: record its kernels' results; not needed for a net with one kernel.
    """

    name: str
    make: Callable[[], Model]
    rest: bool = False
    records: bool = True


def entries() -> list[PackEntry]:
    """Return all entries."""
    suite = [PackEntry(f"conformance-{name}", make, records=True) for name, make in conformance.models().items()]
    return [*suite, *_nets(), *_single_kernels(), *_rest()]


def _nets() -> Iterator[PackEntry]:
    for name in NETS:
        for precision in PRECISIONS:
            yield PackEntry(f"{name}-{precision}", partial(catalog_nets.own_net, name, precision))


def _single_kernels() -> Iterator[PackEntry]:
    for precision in PRECISIONS:
        yield PackEntry(f"product-4096-{precision}", partial(single_kernels.product, precision, 4096), records=False)
    yield PackEntry("elementwise-512mb", partial(single_kernels.elementwise, 65536, 1024), records=False)
    yield PackEntry("softmax-512mb", partial(single_kernels.softmax, 65536, 1024), records=False)


def _rest() -> Iterator[PackEntry]:
    for name in CATALOG:
        if name in NETS or name == "minilm-int8":
            continue
        for precision in PRECISIONS:
            yield PackEntry(f"{name}-{precision}", partial(catalog_nets.catalog_net, name, precision), rest=True)
    yield PackEntry("minilm-int8", partial(catalog_nets.catalog_net, "minilm-int8", "float32"), rest=True)
