"""Number of runs of each block of a kernel, from its LLVM IR: trip counts of loops, and conditions inside them
evaluated at sampled iterations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from targets.cpu.modelled.ir import Block, Flow, Function, Loop, flow_of

SAMPLES = 512
_LARGEST = 32  # most iterations searched for nonlinear conditions
_ENTRY = "__tvm_ffi_kernel"
_LAMBDA = "__tvm_parallel_lambda"
_COMPARE = re.compile(r"^icmp (?:samesign )?\w+ i\d+ (\S+), (\S+)$")


def frequencies(functions: Mapping[str, Function], cores: int) -> dict[str, dict[str, float]]:
    """Runs of each block in one call of the kernel, by function and block, on the busiest core.

    A function called by others runs as often as they call it. A function called once per task of a parallel loop counts
    the tasks of the first core, which has the most.
    """
    entries = [name for name in functions if name.startswith(_ENTRY)]
    calls: dict[str, float] = dict.fromkeys(entries, 1.0)
    result: dict[str, dict[str, float]] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop(0)
        function = functions[name]
        own = BlockCounts(function, cores).counts
        result[name] = {block: calls[name] * count for block, count in own.items()}
        for block in function.blocks.values():
            for callee in block.calls:
                if callee not in result and callee != name:
                    calls[callee] = calls.get(callee, 0.0) + result[name].get(block.name, 0.0)
                    if callee not in waiting:
                        waiting.append(callee)
    return result


class BlockCounts:
    """The runs of the blocks of one function in one call.

    counts: runs by block.
    trips: mean number of iterations per entry of each loop, by header.
    guessed: blocks whose condition could not be evaluated and had no weights.
    """

    def __init__(self, function: Function, cores: int) -> None:
        self._function, self._flow = function, flow_of(function)
        self._iterations: dict[str, Numbers] = {}
        latches = {header: loop.latches for header, loop in self._flow.loops.items()}
        given = _parallel_arguments(function, cores)
        self._integers = Integers(function, SAMPLES, given, self._iterations, latches)
        self.trips: dict[str, float] = {}
        self.guessed: list[str] = []
        self.counts = self._counted()

    def _counted(self) -> dict[str, float]:
        flow, function = self._flow, self._function
        weights: dict[str, Numbers] = {}
        edges: dict[tuple[str, str], Numbers] = {}
        entered: dict[str, Numbers] = {}
        exits: dict[str, tuple[str, str] | None] = {}
        for name in flow.order:
            loop = flow.loops.get(name)
            arriving = [edges[source, name] for source in flow.predecessors[name] if (source, name) in edges]
            weight = sum(arriving, np.zeros(SAMPLES)) if name != function.entry else np.ones(SAMPLES)
            if loop is not None:
                entered[name] = weight
                trips, exits[name] = self._trips(loop)
                self.trips[name] = float(np.average(trips, weights=np.maximum(weight, 1e-12)))
                weight = weight * trips
            weights[name] = weight
            self._leave(function.blocks[name], weight, edges, entered, exits)
        return {name: float(np.mean(weight)) for name, weight in weights.items()}

    def _leave(
        self,
        block: Block,
        weight: Numbers,
        edges: dict[tuple[str, str], Numbers],
        entered: dict[str, Numbers],
        exits: dict[str, tuple[str, str] | None],
    ) -> None:
        """Pass a block's weight on to its successors."""
        inside, outgoing = [], {}
        for successor in dict.fromkeys(block.successors):
            loop = self._left(block.name, successor)
            if loop is not None:
                outgoing[successor] = loop
            elif not self._is_back_edge(block.name, successor):
                inside.append(successor)
        for successor, loop in outgoing.items():
            if exits.get(loop.header) == (block.name, successor):
                edges[block.name, successor] = entered[loop.header]
        if block.cases and not outgoing:
            self._switch(block, weight, edges)
        elif len(inside) == 2:
            share = self._share(block)
            edges[block.name, block.successors[0]] = weight * share
            edges[block.name, block.successors[1]] = weight * (1 - share)
        else:
            for successor in inside:
                edges[block.name, successor] = weight / len(inside)
        for successor in [] if len(outgoing) == len(set(block.successors)) or len(inside) != 1 else inside:
            # One successor stays in the loop and the other leaves it: all runs but the leaving ones stay.
            leaving = sum(
                (edges[block.name, each] for each in outgoing if (block.name, each) in edges), np.zeros(SAMPLES)
            )
            edges[block.name, successor] = np.maximum(weight - leaving, 0.0)

    def _switch(self, block: Block, weight: Numbers, edges: dict[tuple[str, str], Numbers]) -> None:
        value = self._integers.value(block.condition)
        matched = np.zeros(SAMPLES)
        unknown = np.isnan(value)
        if unknown.any():
            self.guessed.append(block.name)
        shares = [np.where(unknown, 1 / len(block.successors), value == case) for case in block.cases]
        for successor, share in zip(block.successors[1:], shares, strict=True):
            matched = matched + share
            edges[block.name, successor] = edges.get((block.name, successor), np.zeros(SAMPLES)) + weight * share
        edges[block.name, block.successors[0]] = weight * (1 - matched)

    def _left(self, block: str, successor: str) -> Loop | None:
        """The outermost loop that an edge leaves."""
        loop, found = self._flow.innermost.get(block), None
        while loop is not None and successor not in loop.blocks:
            found, loop = loop, loop.parent
        return found

    def _is_back_edge(self, block: str, successor: str) -> bool:
        loop = self._flow.loops.get(successor)
        return loop is not None and block in loop.latches

    def _share(self, block: Block) -> Numbers:
        """Share of runs in which the first successor is taken."""
        value = self._integers.value(block.condition)
        unknown = np.isnan(value)
        if not unknown.any():
            return value
        if len(block.weights) == 2:
            guess = block.weights[0] / sum(block.weights)
        else:
            guess = 0.5
            self.guessed.append(block.name)
        return np.where(unknown, guess, value)

    def _trips(self, loop: Loop) -> tuple[Numbers, tuple[str, str] | None]:
        """Iterations of a loop per entry, and the edge by which it ends.

        Sets the iteration of each sample, evenly spread over them.
        """
        trip_counts: tuple[Numbers, tuple[str, str] | None] = (np.full(SAMPLES, 1.0), None)
        guess = trip_counts
        for name in [each for each in self._flow.order if each in loop.blocks]:
            block = self._function.blocks[name]
            outside = [each for each in block.successors if each not in loop.blocks]
            if len(outside) != 1 or len(set(block.successors)) != 2 or self._flow.innermost[name] is not loop:
                continue
            if not self._function.blocks[outside[0]].returns:
                guess = np.full(SAMPLES, _by_weights(block, outside[0])), (name, outside[0])
            trips = self._until(loop, block, leaves_if=outside[0] == block.successors[0])
            if trips is not None:
                trip_counts = trips, (name, outside[0])
                break
        else:
            trip_counts = guess
            self.guessed.append(loop.header)
        index = list(self._flow.loops).index(loop.header)
        self._iterations[loop.header] = np.floor(_spread(index) * np.maximum(trip_counts[0], 1.0))
        self._integers.forget()
        return trip_counts

    def _until(self, loop: Loop, block: Block, *, leaves_if: bool) -> Numbers | None:
        """Number of runs of the block until its condition exits the loop; None if unknown."""
        ends = self._holds(loop, block, 0.0, leaves_if)
        if ends is None:
            return None
        if (trips := self._linear(loop, block)) is not None:
            last = self._holds(loop, block, trips - 1, leaves_if)
            before = self._holds(loop, block, np.maximum(trips - 2, 0), leaves_if)
            if last is not None and before is not None and bool(np.all(last & (~before | (trips < 2)))):
                return trips
        low, high = np.zeros(SAMPLES), np.full(SAMPLES, 1.0)
        for _ in range(40):  # the first iteration at which it ends, assuming a monotonic condition
            leaves = self._holds(loop, block, high, leaves_if)
            if leaves is None:
                return None
            if bool(np.all(leaves)):
                break
            high = np.where(leaves, high, high * 2)
        else:
            return self._searched(loop, block, leaves_if)
        while bool(np.any(high - low > 1)):
            middle = np.floor((low + high) / 2)
            leaves = self._holds(loop, block, middle, leaves_if)
            if leaves is None:
                return None
            high, low = np.where(leaves, middle, high), np.where(leaves, low, middle)
        return np.where(ends, 1.0, high + 1)

    def _linear(self, loop: Loop, block: Block) -> Numbers | None:
        """Iteration at which both sides of a comparison that is linear in it are equal."""
        match = _COMPARE.match(self._function.values.get(block.condition, ""))
        if match is None:
            return None
        differences = []
        for iteration in (0.0, 1.0):
            self._set(loop, iteration)
            differences.append(self._integers.value(match[1]) - self._integers.value(match[2]))
        start, step = differences[0], differences[1] - differences[0]
        with np.errstate(all="ignore"):
            trips = np.ceil(-start / step) + 1
        return trips if bool(np.all(np.isfinite(trips) & (trips >= 1))) else None

    def _searched(self, loop: Loop, block: Block, leaves_if: bool) -> Numbers | None:
        for iteration in range(_LARGEST):
            ends = self._holds(loop, block, float(iteration), leaves_if)
            if ends is None:
                return None
            if bool(np.all(ends)):
                return np.full(SAMPLES, iteration + 1.0)
        return None

    def _holds(self, loop: Loop, block: Block, iteration: Numbers | float, leaves_if: bool) -> np.ndarray | None:
        self._set(loop, iteration)
        value = self._integers.value(block.condition)
        return None if bool(np.isnan(value).any()) else (value > 0) == leaves_if

    def _set(self, loop: Loop, iteration: Numbers | float) -> None:
        self._iterations[loop.header] = np.broadcast_to(np.asarray(iteration, dtype=float), (SAMPLES,))
        self._integers.forget()


def _by_weights(block: Block, outside: str) -> float:
    """The trip count from a branch's weights; 1 if it has none."""
    if len(block.weights) != 2:
        return 1.0
    return sum(block.weights) / max(1, block.weights[block.successors.index(outside)])


def _spread(index: int) -> Numbers:
    """Numbers between 0 and 1, evenly spread; for several indices, evenly in the cube (Roberts' R sequence with
    irrational steps)."""
    step = np.sqrt(float(_PRIMES[index % len(_PRIMES)])) % 1.0
    return ((np.arange(SAMPLES) + 0.5) * step) % 1.0


_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)


def _parallel_arguments(function: Function, cores: int) -> dict[str, Numbers]:
    """Arguments of a parallel loop's function: the task's index, and the number of tasks."""
    if not function.name.startswith(_LAMBDA):
        return {}
    return {"%task_id": np.zeros(SAMPLES), "%num_task": np.full(SAMPLES, float(cores))}


__all__ = ["BlockCounts", "Flow", "frequencies"]


Numbers = NDArray[np.float64]
_FLAGS = re.compile(r"\b(nuw|nsw|nneg|disjoint|samesign|exact|tail|inbounds|range\([^)]*\)) ?")
_BINARY = re.compile(r"^(\w+) i(\d+) (\S+), (\S+)$")
_COMPARISON = re.compile(r"^icmp (\w+) i(\d+) (\S+), (\S+)$")
_CAST = re.compile(r"^(sext|zext|trunc) i(\d+) (\S+) to i(\d+)$")
_FREEZE = re.compile(r"^freeze i\d+ (\S+)$")
_SELECT = re.compile(r"^select i1 (\S+), i\d+ (\S+), i\d+ (\S+)$")
_EXTREME = re.compile(r"^call (?:\S+ )*?i\d+ @llvm\.(smin|smax|umin|umax)\.i\d+\(i\d+ (\S+), i\d+ (\S+)\)$")
_PHI = re.compile(r"\[ (\S+), %([\w.$-]+) \]")

_ARITHMETIC: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "add": lambda a, b: a + b,
    "or": lambda a, b: a + b,  # disjoint bits: additions that LLVM rewrote
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "shl": lambda a, b: a * 2.0**b,
    "lshr": lambda a, b: np.floor(a / 2.0**b),
    "ashr": lambda a, b: np.floor(a / 2.0**b),
    "sdiv": lambda a, b: np.trunc(a / b),
    "udiv": lambda a, b: np.floor(a / b),
    "srem": lambda a, b: np.fmod(a, b),
    "urem": lambda a, b: np.fmod(a, b),
    "smin": np.minimum,
    "umin": np.minimum,
    "smax": np.maximum,
    "umax": np.maximum,
}
_COMPARISONS: dict[str, Callable[[Numbers, Numbers], NDArray[np.bool_]]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


class Integers:
    """Evaluates values of one function over samples.

    Args:
        samples: number of samples.
        given: arrays of externally known values, by name.
        induction: the iteration number in each sample, by loop header; KeyError while it is not known.
        latches: latches of a header, the names of the blocks that jump back to it.
    """

    def __init__(
        self,
        function: Function,
        samples: int,
        given: dict[str, Numbers],
        iterations: dict[str, Numbers],
        latches: dict[str, set[str]],
    ) -> None:
        self._function, self._samples, self._given = function, samples, given
        self.iterations, self._latches = iterations, latches
        self._known: dict[str, Numbers] = {}

    def value(self, name: str) -> Numbers:
        """The value in each sample; NaN if unknown."""
        if not name.startswith("%"):
            return np.full(self._samples, _literal(name))
        if name in self._given:
            return self._given[name]
        if name not in self._known:
            self._known[name] = np.full(self._samples, np.nan)  # for values that depend on themselves
            self._known[name] = self._evaluate(name)
        return self._known[name]

    def forget(self) -> None:
        """Drop computed values: an iteration number has become known."""
        self._known.clear()

    def _evaluate(self, name: str) -> Numbers:
        unknown = np.full(self._samples, np.nan)
        raw = self._function.values.get(name)
        if raw is None:
            return unknown
        if raw.startswith("phi "):
            return self._phi(name, raw)
        text = _without_flags(raw)
        if match := _BINARY.match(text):
            operation = _ARITHMETIC.get(match[1])
            if match[1] == "and":
                return self._masked(int(match[2]), match[3], match[4])
            if match[1] == "xor" and match[4] in ("true", "-1"):
                return (1.0 if match[2] == "1" else -1.0) - self.value(match[3])
            if operation is None or (match[1] == "or" and "disjoint" not in raw):
                return self._logical(match[1], match[2], match[3], match[4])
            with np.errstate(all="ignore"):
                return operation(self.value(match[3]), self.value(match[4]))
        if text.startswith("icmp eq ptr ") and text.endswith(", null"):
            return np.zeros(self._samples)  # assume that allocation succeeded
        if match := _COMPARISON.match(text):
            return self._compared(match[1], int(match[2]), match[3], match[4])
        if match := _CAST.match(text):
            inner = self.value(match[3])
            return _wrapped(inner, int(match[2])) if match[1] == "zext" and match[2] != "1" else inner
        if match := _FREEZE.match(text):
            return self.value(match[1])
        if match := _SELECT.match(text):
            condition, yes, no = (self.value(match[index]) for index in (1, 2, 3))
            return np.where(np.isnan(condition), np.nan, np.where(condition > 0, yes, no))
        if match := _EXTREME.match(text):
            return _ARITHMETIC[match[1]](self.value(match[2]), self.value(match[3]))
        return unknown

    def _masked(self, bits: int, left: str, right: str) -> Numbers:
        if bits == 1:
            return self.value(left) * self.value(right)
        a, mask = self.value(left), _literal(right)
        if np.isnan(mask):
            return np.full(self._samples, np.nan)
        mask_bits = int(mask) & ((1 << bits) - 1)
        low = mask_bits & -mask_bits if mask_bits else 1
        high = mask_bits + low
        if high & (high - 1):  # not a contiguous run of bits
            known = ~np.isnan(a)
            result = np.full(self._samples, np.nan)
            result[known] = (a[known].astype(np.int64) & mask_bits).astype(float)
            return result
        kept = a if high == 1 << bits else np.mod(a, high)
        return np.floor(kept / low) * low

    def _logical(self, name: str, bits: str, left: str, right: str) -> Numbers:
        if bits == "1" and name in ("or", "xor"):
            a, b = self.value(left), self.value(right)
            return np.maximum(a, b) if name == "or" else np.abs(a - b)
        return np.full(self._samples, np.nan)

    def _compared(self, predicate: str, bits: int, left: str, right: str) -> Numbers:
        a, b = self.value(left), self.value(right)
        if predicate.startswith("u"):
            a, b = _wrapped(a, bits), _wrapped(b, bits)
        result = _COMPARISONS[predicate[-2:]](a, b).astype(float)
        return np.where(np.isnan(a) | np.isnan(b), np.nan, result)

    def _phi(self, name: str, text: str) -> Numbers:
        """A loop's induction variable at a known iteration: its start plus that many steps."""
        header = self._function.home[name]
        unknown = np.full(self._samples, np.nan)
        edges = _PHI.findall(text)
        if header not in self._latches:
            values = [self.value(each) for each, _ in edges]
            same = all(np.array_equal(values[0], each) for each in values[1:])
            return values[0] if same else unknown
        entering = [each for each, source in edges if source not in self._latches[header]]
        again = [each for each, source in edges if source in self._latches[header]]
        if header in self.iterations and len(set(again)) == 1 and not again[0].startswith("%"):
            return np.where(self.iterations[header] == 0, self.value(entering[0]), _literal(again[0]))
        step = self._step(name, again[0]) if len(set(again)) == 1 and len(set(entering)) == 1 else None
        if step is None or header not in self.iterations:
            return unknown
        return self.value(entering[0]) + step * self.iterations[header]

    def _step(self, name: str, following: str) -> float | None:
        """Step of an induction variable, the same on every path through the loop."""
        text = _without_flags(self._function.values.get(following, ""))
        if text.startswith("phi ") and self._function.home[following] not in self._latches:
            steps = {self._step(name, each) for each, _ in _PHI.findall(text)}
            return steps.pop() if len(steps) == 1 else None
        match = _BINARY.match(text)
        if not match or name not in (match[3], match[4]) or match[1] not in ("add", "sub", "or"):
            return None
        step = _literal(match[4] if match[3] == name else match[3])
        return None if np.isnan(step) else -step if match[1] == "sub" else step


@lru_cache(maxsize=65536)
def _without_flags(text: str) -> str:
    return _FLAGS.sub("", text).strip()


@lru_cache(maxsize=65536)
def _literal(text: str) -> float:
    if text in ("true", "false"):
        return float(text == "true")
    try:
        return float(int(text))
    except ValueError:
        return float("nan")


def _wrapped(values: Numbers, bits: int) -> Numbers:
    """Unsigned integers."""
    return np.where(values < 0, values + 2.0**bits, values)
