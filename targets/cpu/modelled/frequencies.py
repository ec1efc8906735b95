"""Number of runs of each block of a kernel, from its LLVM IR: trip counts of loops, and conditions inside them
evaluated at sampled iterations."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from targets.cpu.modelled.integers import Integers, Numbers
from targets.cpu.modelled.ir import Block, Flow, Function, Loop, flow_of

SAMPLES = 512
_LARGEST = 32  # iterations up to which conditions that are not linear are searched
_ENTRY = "__tvm_ffi_kernel"
_LAMBDA = "__tvm_parallel_lambda"
_COMPARE = re.compile(r"^icmp (?:samesign )?\w+ i\d+ (\S+), (\S+)$")


def frequencies(functions: Mapping[str, Function], cores: int) -> dict[str, dict[str, float]]:
    """Runs of each block in one call of the kernel, by function and block, on the busiest core.

    A function that others call runs as often as they call it. What is called once a task, of a parallel loop, counts
    the tasks of the first core, which has as many as any.
    """
    entries = [name for name in functions if name.startswith(_ENTRY)]
    calls: dict[str, float] = dict.fromkeys(entries, 1.0)
    found: dict[str, dict[str, float]] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop(0)
        function = functions[name]
        own = BlockCounts(function, cores).counts
        found[name] = {block: calls[name] * count for block, count in own.items()}
        for block in function.blocks.values():
            for callee in block.calls:
                if callee not in found and callee != name:
                    calls[callee] = calls.get(callee, 0.0) + found[name].get(block.name, 0.0)
                    if callee not in waiting:
                        waiting.append(callee)
    return found


class BlockCounts:
    """The runs of the blocks of one function in one call.

    Attributes:
        counts: by block.
        trips: of loops, by header: the mean number of iterations each time that it is entered.
        guessed: blocks whose condition could not be evaluated, nor had weights.
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
        """Hand a block's weight on to its successors."""
        inside, left = [], {}
        for successor in dict.fromkeys(block.successors):
            loop = self._left(block.name, successor)
            if loop is not None:
                left[successor] = loop
            elif not self._is_back_edge(block.name, successor):
                inside.append(successor)
        for successor, loop in left.items():
            if exits.get(loop.header) == (block.name, successor):
                edges[block.name, successor] = entered[loop.header]
        if block.cases and not left:
            self._switch(block, weight, edges)
        elif len(inside) == 2:
            share = self._share(block)
            edges[block.name, block.successors[0]] = weight * share
            edges[block.name, block.successors[1]] = weight * (1 - share)
        else:
            for successor in inside:
                edges[block.name, successor] = weight / len(inside)
        for successor in [] if len(left) == len(set(block.successors)) or len(inside) != 1 else inside:
            # One way stays in the loop and the other leaves it: all runs but those that leave stay.
            leaving = sum((edges[block.name, each] for each in left if (block.name, each) in edges), np.zeros(SAMPLES))
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
        """Share of runs in which the first successor follows."""
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
        """Iterations of a loop each time that it is entered, and the edge by which it ends.

        Sets the iteration of each sample, evenly spread over them.
        """
        found: tuple[Numbers, tuple[str, str] | None] = (np.full(SAMPLES, 1.0), None)
        guess = found
        for name in [each for each in self._flow.order if each in loop.blocks]:
            block = self._function.blocks[name]
            outside = [each for each in block.successors if each not in loop.blocks]
            if len(outside) != 1 or len(set(block.successors)) != 2 or self._flow.innermost[name] is not loop:
                continue
            if not self._function.blocks[outside[0]].returns:
                guess = np.full(SAMPLES, _by_weights(block, outside[0])), (name, outside[0])
            trips = self._until(loop, block, leaves_if=outside[0] == block.successors[0])
            if trips is not None:
                found = trips, (name, outside[0])
                break
        else:
            found = guess
            self.guessed.append(loop.header)
        index = list(self._flow.loops).index(loop.header)
        self._iterations[loop.header] = np.floor(_spread(index) * np.maximum(found[0], 1.0))
        self._integers.forget()
        return found

    def _until(self, loop: Loop, block: Block, *, leaves_if: bool) -> Numbers | None:
        """Number of runs of the block until its condition leads out; None when that is not known."""
        ends = self._holds(loop, block, 0.0, leaves_if)
        if ends is None:
            return None
        if (trips := self._linear(loop, block)) is not None:
            last = self._holds(loop, block, trips - 1, leaves_if)
            before = self._holds(loop, block, np.maximum(trips - 2, 0), leaves_if)
            if last is not None and before is not None and bool(np.all(last & (~before | (trips < 2)))):
                return trips
        low, high = np.zeros(SAMPLES), np.full(SAMPLES, 1.0)
        for _ in range(40):  # the first iteration at which it ends, if it goes on ending from there
            after = self._holds(loop, block, high, leaves_if)
            if after is None:
                return None
            if bool(np.all(after)):
                break
            high = np.where(after, high, high * 2)
        else:
            return self._searched(loop, block, leaves_if)
        while bool(np.any(high - low > 1)):
            middle = np.floor((low + high) / 2)
            after = self._holds(loop, block, middle, leaves_if)
            if after is None:
                return None
            high, low = np.where(after, middle, high), np.where(after, low, middle)
        return np.where(ends, 1.0, high + 1)

    def _linear(self, loop: Loop, block: Block) -> Numbers | None:
        """Iteration at which the sides of a comparison that is linear in it are equal."""
        found = _COMPARE.match(self._function.values.get(block.condition, ""))
        if found is None:
            return None
        differences = []
        for iteration in (0.0, 1.0):
            self._set(loop, iteration)
            differences.append(self._integers.value(found[1]) - self._integers.value(found[2]))
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
    """The trips that a branch's weights tell of; 1 where it has none."""
    if len(block.weights) != 2:
        return 1.0
    return sum(block.weights) / max(1, block.weights[block.successors.index(outside)])


def _spread(index: int) -> Numbers:
    """Numbers between 0 and 1, evenly spread, and over several places evenly in the cube (Roberts' R sequence with
    irrational steps)."""
    step = np.sqrt(float(_PRIMES[index % len(_PRIMES)])) % 1.0
    return ((np.arange(SAMPLES) + 0.5) * step) % 1.0


_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)


def _parallel_arguments(function: Function, cores: int) -> dict[str, Numbers]:
    """Arguments of the function of a parallel loop: its number among the tasks, and the number of tasks."""
    if not function.name.startswith(_LAMBDA):
        return {}
    return {"%task_id": np.zeros(SAMPLES), "%num_task": np.full(SAMPLES, float(cores))}


__all__ = ["BlockCounts", "Flow", "frequencies"]
