"""PTX instructions, decoded once for `execution`: their results and their demands on a multiprocessor.

PTX is the assembly that nvcc writes: kernels, their variables and their basic blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from targets.cuda.performance.integers import Operation, integer_operation, result_bits, signed
from targets.cuda.performance.throughput import Multiprocessor
from targets.errors import TargetError

_ADDRESS = re.compile(r"\[(%\w+)(?:\+(-?\d+))?\]")
_WIDEST = 16
_ENDS = ("bar", "barrier", "bra", "ret", "exit", "wmma", "ldmatrix", "atom", "red", "membar", "fence")


def with_joined_accesses(block: Sequence[Instruction]) -> list[Instruction]:
    """A basic block with loads from, or stores to, adjacent positions of shared memory joined into vectors."""
    joined: dict[int, Instruction | None] = {}
    group: dict[tuple[str, tuple[str, ...]], dict[int, int]] = {}

    def close(keys: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        for key in keys:
            joined.update(_joined(block, key, group.pop(key)))

    for index, instruction in enumerate(block):
        opcode = instruction.opcode
        access = _scalar_access(instruction)
        if opcode[0] in _ENDS:
            close(list(group))
        elif opcode[0] == "st" and (access is None or "shared" in opcode):
            close([key for key in group if key[1][0] == "ld"])
        elif opcode[0] == "ld" and "shared" in opcode:
            close([key for key in group if key[1][0] == "st"])
        if access is not None:
            base, offset = access
            group.setdefault((base, opcode), {}).setdefault(offset, index)
        written = (
            set(_REGISTER.findall(instruction.operands[0])) if instruction.operands and opcode[0] != "st" else set()
        )
        close([key for key in group if key[0] in written])
    close(list(group))
    kept = (joined.get(index, instruction) for index, instruction in enumerate(block))
    return [instruction for instruction in kept if instruction is not None]


def _scalar_access(instruction: Instruction) -> tuple[str, int] | None:
    """Base register and offset of an unconditional access of one number in shared memory."""
    opcode = instruction.opcode
    if opcode[0] not in ("ld", "st") or opcode[1] != "shared" or len(opcode) != 3 or instruction.predicate:
        return None
    operand = instruction.operands[1 if opcode[0] == "ld" else 0]
    match = _ADDRESS.fullmatch(operand.replace(" ", ""))
    return None if match is None else (match[1], int(match[2] or 0))


def _joined(
    block: Sequence[Instruction], key: tuple[str, tuple[str, ...]], positions: dict[int, int]
) -> dict[int, Instruction | None]:
    """The vectors that replace a group's first accesses; None replaces the others."""
    base, opcode = key
    size = TYPE_BYTES.get(re.sub(r"\D", "", opcode[2]), 4)
    replaced: dict[int, Instruction | None] = {}
    covered: set[int] = set()
    for lanes in (4, 2):
        if lanes * size > _WIDEST:
            continue
        for offset in sorted(positions):
            run = [offset + size * each for each in range(lanes)]
            if offset % (lanes * size) or any(each in covered or each not in positions for each in run):
                continue
            covered.update(run)
            members = sorted(positions[each] for each in run)
            values = [block[positions[each]].operands[0 if opcode[0] == "ld" else 1] for each in run]
            vector, address = "{" + ", ".join(values) + "}", f"[{base}+{offset}]"
            operands = (vector, address) if opcode[0] == "ld" else (address, vector)
            replaced |= dict.fromkeys(members)
            replaced[members[-1 if opcode[0] == "st" else 0]] = Instruction(
                (opcode[0], "shared", f"v{lanes}", opcode[2]), operands
            )
    return replaced


RESOURCES = ("issue", "float32", "integer", "float64", "special", "tensor", "memory", "l2")
"""Resources occupied by instructions; costs are cycles of one multiprocessor."""
SHARED_BY_PARTITIONS = ("memory", "l2")
"""Resources shared by the partitions of a multiprocessor."""
_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")
_REGISTER = re.compile(r"%\w+")
_TILE = re.compile(r"m(\d+)n(\d+)k(\d+)")
_SPECIAL_FUNCTIONS = ("rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh", "div")
_WAITS = ("bar", "barrier")
_LATENCY = {"integer": 5, "float32": 4, "float64": 8, "special": 20, "issue": 4}


class Kind(Enum):
    """Kind of execution of an instruction."""

    COMPUTE = "compute"
    PARAMETER = "parameter"
    LOAD = "load"
    STORE = "store"
    MATRIX_LOAD = "matrix load"
    MATRIX_STORE = "matrix store"
    BARRIER = "barrier"
    BRANCH = "branch"
    RETURN = "return"


@dataclass(frozen=True)
class Step:
    """An instruction.

    Attributes:
        costs: costs per warp, by position in `RESOURCES`, without address-dependent costs.
        latency: cycles until the result can be used, without address-dependent ones.
        results: registers written.
        waits_for: registers read.
        operation, kinds, bits: for an integer instruction, the operands' types and the result's width.
        operands: operands of `operation`, or the address (and the row pitch of tiles).
        space, nbytes: for an access; bytes per thread.
        target: target of a branch.
    """

    kind: Kind
    costs: tuple[float, ...]
    latency: float
    results: tuple[str, ...]
    waits_for: tuple[str, ...]
    operation: Operation | None = None
    kinds: tuple[str, ...] = ()
    bits: int = 0
    operands: tuple[int | str, ...] = ()
    offset: int = 0
    space: str = ""
    nbytes: int = 0
    target: int = -1
    predicate: str = ""
    negated: bool = False
    multiply_adds: float = 0


@dataclass(frozen=True)
class Program:
    """A kernel's steps by basic block, and the total cost per warp of the blocks' unconditional steps.

    Attributes:
        fixed: (costs, number of steps) of each basic block.
        symbols: addresses of variables.
        shared_bytes: bytes of static shared memory.
    """

    blocks: tuple[tuple[Step, ...], ...]
    fixed: tuple[tuple[tuple[float, ...], int], ...]
    symbols: dict[str, int]
    parameters: tuple[tuple[str, str], ...]


class _Reader:
    def __init__(self, kernel: Kernel, model: Multiprocessor) -> None:
        self.kernel, self.model = kernel, model
        self.symbols = _addresses(kernel)
        self.parameters = {name for _, name in kernel.parameters}

    def step(self, instruction: Instruction) -> Step:
        opcode, operands = instruction.opcode, instruction.operands
        name = opcode[0]
        if name in ("bra", "ret", "exit", "trap", "brkpt"):
            return self._jump(instruction)
        if name in _WAITS:
            return self._made(instruction, Kind.BARRIER, {}, 0, (), operands)
        if name in ("ld", "ldu", "st", "atom", "red", "cp", "prefetch"):
            return self._access(instruction)
        if name == "ldmatrix" or (name == "wmma" and opcode[1] in ("load", "store")):
            return self._matrix_access(instruction)
        if (name == "wmma" and opcode[1] == "mma") or name == "mma":
            return self._multiplication(instruction)
        if name == "wgmma":
            raise TargetError("kernels with asynchronous matrix instructions cannot be modelled", "time them")
        return self._computation(instruction)

    def _made(
        self,
        instruction: Instruction,
        kind: Kind,
        costs: dict[str, float],
        latency: float,
        results: tuple[str, ...],
        sources: tuple[str, ...],
        **rest: Any,
    ) -> Step:
        step_costs = {"issue": 1 / 4, **costs}
        waits = [register for each in sources for register in _REGISTER.findall(each)]
        if instruction.predicate:
            waits.append(instruction.predicate)
        return Step(
            kind,
            tuple(step_costs.get(each, 0.0) for each in RESOURCES),
            latency,
            tuple(_REGISTER.findall(" ".join(results))),
            tuple(waits),
            predicate=instruction.predicate,
            negated=instruction.negated,
            **rest,
        )

    def _jump(self, instruction: Instruction) -> Step:
        if instruction.opcode[0] != "bra":
            return self._made(instruction, Kind.RETURN, {}, 0, (), ())
        target = self.kernel.labels[instruction.operands[0]]
        return self._made(instruction, Kind.BRANCH, {}, 0, (), (), target=target)

    def _computation(self, instruction: Instruction) -> Step:
        opcode, operands = instruction.opcode, instruction.operands
        unit, cost, latency = self._unit(opcode)
        match = integer_operation(opcode)
        plain = not any(each.startswith(("{", "[")) for each in operands)
        values = tuple(self._value(each) for each in operands[1:])
        rest: dict[str, Any] = {}
        if match is not None and plain and all(each is not None for each in values):
            operation, kinds = match
            kinds = tuple(kinds[min(index, len(kinds) - 1)] for index in range(len(values)))
            rest = {"operation": operation, "kinds": kinds, "bits": result_bits(opcode), "operands": values}
        return self._made(instruction, Kind.COMPUTE, {unit: cost}, latency, operands[:1], operands[1:], **rest)

    def _unit(self, opcode: tuple[str, ...]) -> tuple[str, float, float]:
        """Compute unit, cycles per warp, and latency."""
        name, kinds, model = opcode[0], opcode[1:], self.model
        kind = next((each for each in reversed(kinds) if each[-1:].isdigit()), "")
        if name in ("mov", "cvta", "nop", "pragma") or opcode[1:2] == ("pred",):
            return "issue", 1 / 4, _LATENCY["issue"]
        if "f64" in kinds:
            return "float64", 1 / model.float64, _LATENCY["float64"] * max(1, 0.5 / model.float64)
        if name in _SPECIAL_FUNCTIONS and kind.startswith("f"):
            return "special", (2 if name == "div" else 1) / model.special, _LATENCY["special"]
        if name == "cvt" and any(each.startswith(("f", "bf")) for each in kinds):
            narrow = all(each.startswith(("f", "bf", "r", "x")) for each in kinds)
            return ("integer", 1 / model.integer, 6) if narrow else ("special", 1 / model.special, _LATENCY["special"])
        if name in ("fma", "mul", "add", "sub", "mad") and kind.startswith(("f", "bf")):
            return "float32", 1 / model.float32, _LATENCY["float32"]
        if name in ("div", "rem"):
            return "integer", 20 / model.integer, 60
        if name in ("mul", "mad", "dp4a"):
            return "float32", 2 / model.float32, _LATENCY["integer"]
        if name in ("shfl", "vote", "match", "redux"):
            return "memory", 1.0, 24
        return "integer", 1 / model.integer * (2 if kind.endswith("64") else 1), _LATENCY["integer"]

    def _access(self, instruction: Instruction) -> Step:
        opcode, operands = instruction.opcode, instruction.operands
        store = opcode[0] in ("st", "red", "cp", "prefetch")
        space = next(
            (each for each in opcode[1:] if each in ("param", "shared", "global", "local", "const")), "generic"
        )
        width = next((int(each[1:]) for each in opcode if each in ("v2", "v4", "v8")), 1)
        kind = next((each for each in reversed(opcode) if each[-1:].isdigit() and each[0] != "v"), "b32")
        nbytes = width * TYPE_BYTES.get(re.sub(r"\D", "", kind), 4)
        if opcode[0] == "cp":
            if not operands or not operands[-1].strip().isdigit():
                return self._made(instruction, Kind.COMPUTE, {}, 0, (), ())  # it waits for copies
            nbytes, space, address = int(operands[-1]), "global", operands[1]
        else:
            address = next(each for each in operands if each.startswith("["))
        base, offset = self._address(address)
        results, sources = ((), operands) if store else (operands[:1], operands[1:])
        if space == "param":
            named = isinstance(base, str) and base in self.parameters and not offset
            rest: dict[str, Any] = {"operands": (base,)} if named else {}
            return self._made(instruction, Kind.PARAMETER, {}, _LATENCY["integer"], results, (), **rest)
        access_kind = Kind.STORE if store else Kind.LOAD
        access = {"operands": (base,), "offset": offset, "space": space, "nbytes": nbytes}
        return self._made(instruction, access_kind, {}, self.model.l1_latency, results, sources, **access)

    def _matrix_access(self, instruction: Instruction) -> Step:
        opcode, operands = instruction.opcode, instruction.operands
        address = next(at for at, each in enumerate(operands) if each.startswith("["))
        base, offset = self._address(operands[address])
        store = opcode[1] == "store"
        results = () if store else operands[:1]
        space = "shared" if any(each.startswith("shared") for each in opcode) else "global"
        kind = TYPE_BYTES.get(re.sub(r"\D", "", opcode[-1]), 2)
        if opcode[0] == "ldmatrix":
            count = next((int(each[1:]) for each in opcode if each in ("x1", "x2", "x4")), 1)
            costs = {"memory": float(count)}
            return self._made(
                instruction, Kind.COMPUTE, costs, self.model.shared_latency + 2, results, operands[address:]
            )
        last = operands[-1] if operands[-1] != operands[address] and not operands[-1].startswith("{") else "16"
        pitch = self._value(last)
        return self._made(
            instruction,
            Kind.MATRIX_STORE if store else Kind.MATRIX_LOAD,
            {},
            self.model.shared_latency + 6,
            results,
            operands,
            operands=(base, 16 if pitch is None else pitch),
            offset=offset,
            space=space,
            nbytes=kind,
        )

    def _multiplication(self, instruction: Instruction) -> Step:
        opcode, operands = instruction.opcode, instruction.operands
        sizes = next(found for each in opcode if (found := _TILE.fullmatch(each)))
        count = math.prod(int(each) for each in sizes.groups())
        kinds = [each for each in opcode if each in ("f16", "bf16", "tf32", "s8", "u8", "f64")]
        kind = "bf16" if "bf16" in kinds else (kinds[-1] if kinds else "f16").replace("u8", "s8")
        rate = self.model.tensor.get(kind)
        if rate is None:
            raise TargetError(f"the device has no tensor cores for {kind}", "compile for the device it was meant for")
        costs = {"tensor": count / rate, "issue": max(1, count // 2048) / 4}
        latency = self.model.tensor_latency + count // 2048
        return self._made(
            instruction, Kind.COMPUTE, costs, latency, operands[:1], operands[1:], multiply_adds=float(count)
        )

    def _address(self, operand: str) -> tuple[int | str | None, int]:
        base, _, offset = operand.strip("[] ").partition("+")
        return self._value(base, symbols=True), int(offset or 0)

    def _value(self, operand: str, symbols: bool = False) -> int | str | None:
        """An immediate, the name of a register, or None for anything else."""
        operand = operand.strip()
        if _NUMBER.fullmatch(operand):
            return int(signed(int(operand.rstrip("U"), 0), 64))
        if operand.startswith("%"):
            return operand
        if operand in self.symbols:
            return self.symbols[operand]
        return operand if symbols and operand in self.parameters else None


def _addresses(kernel: Kernel) -> dict[str, int]:
    """An address for each variable: shared memory starts at 0, as 32-bit addresses count."""
    positions, ends = {}, {"shared": 0, "local": 0, "global": 1 << 46, "const": 1 << 47}
    for variable in kernel.variables:
        at = -(-ends[variable.space] // variable.align) * variable.align
        positions[variable.name] = at
        ends[variable.space] = at + variable.nbytes
    return positions


def program_of(kernel: Kernel, model: Multiprocessor) -> Program:
    """A kernel, decoded for a multiprocessor. Raises TargetError if it has instructions that are not modeled."""
    reader = _Reader(kernel, model)
    blocks = tuple(tuple(map(reader.step, with_joined_accesses(block))) for block in kernel.blocks)
    fixed = []
    for block in blocks:
        always = [step for step in block if not step.predicate or step.kind is Kind.BRANCH]
        fixed.append((tuple(map(sum, zip(*(each.costs for each in always), strict=True))), len(always)))
    empty = (0.0,) * len(RESOURCES)
    return Program(
        blocks, tuple((costs or empty, count) for costs, count in fixed), reader.symbols, tuple(kernel.parameters)
    )


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{;]*)\{", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)")
_VARIABLE = re.compile(r"\.(shared|local|global|const)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?")
_BLOCK_SIZE = re.compile(r"\.(?:max|req)ntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")
_LABEL = re.compile(r"\s*([\w$]+):")
_INSTRUCTION = re.compile(r"\s*(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)\s*", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
TYPE_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: including its suffixes ("ld.global.nc.v4.f32"), split at the dots.
        operands: as written; vectors with braces and addresses with brackets.
        predicate, negated: the instruction runs if the register is set (not set).
    """

    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    predicate: str = ""
    negated: bool = False


@dataclass(frozen=True)
class Variable:
    """Memory that a kernel declares: its space, alignment and size in bytes."""

    name: str
    space: str
    align: int
    nbytes: int


@dataclass
class Kernel:
    """A kernel: `blocks` are its basic blocks in order, `labels` the block that each label names.

    Attributes:
        parameters: (type, name), in order.
        threads: threads per block as declared by the source; 1 if not declared.
    """

    name: str
    parameters: list[tuple[str, str]]
    threads: int
    variables: list[Variable] = field(default_factory=list)
    blocks: list[list[Instruction]] = field(default_factory=lambda: [[]])
    labels: dict[str, int] = field(default_factory=dict)


def parse(text: str) -> list[Kernel]:
    """The kernels of a PTX module. Raises TargetError if the text cannot be parsed."""
    text = _COMMENT.sub("", text)
    outside, kernels, end = [], [], 0
    for match in _ENTRY.finditer(text):
        outside.append(text[end : match.start()])
        end = _closing(text, match.end())
        size = _BLOCK_SIZE.search(match[3])
        threads = 1
        for each in size.groups() if size else ():
            threads *= int(each or 1)
        kernel = Kernel(match[1], [(kind, name) for kind, name in _PARAMETER.findall(match[2])], threads)
        _read_body(text[match.end() : end - 1], kernel)
        kernels.append(kernel)
    for each in _VARIABLE.finditer("".join(outside)):
        for kernel in kernels:
            kernel.variables.append(_variable(each))
    return kernels


def _closing(text: str, start: int) -> int:
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return match.end()
    raise TargetError("a kernel of nvcc's PTX does not end", "report it with the version of nvcc")


def _read_body(body: str, kernel: Kernel) -> None:
    # Braces around statements (inline assembly, calls) end where a statement ends; those of vectors do not.
    body = re.sub(r"(^|[;{}:])(\s*)\{", r"\1\2", body)
    body = re.sub(r";(\s*)\}", r";\1", body)
    for statement in body.split(";"):
        while label := _LABEL.match(statement):
            if kernel.blocks[-1]:
                kernel.blocks.append([])
            kernel.labels[label[1]] = len(kernel.blocks) - 1
            statement = statement[label.end() :]
        statement = statement.strip().removeprefix("}").strip()
        if not statement:
            continue
        if statement.startswith("."):
            if found := _VARIABLE.match(statement):
                kernel.variables.append(_variable(found))
            continue
        instruction = _instruction(statement)
        kernel.blocks[-1].append(instruction)
        if instruction.opcode[0] in ("bra", "ret", "exit"):
            kernel.blocks.append([])


def _instruction(statement: str) -> Instruction:
    match = _INSTRUCTION.fullmatch(statement)
    if match is None:
        raise TargetError(f"unknown instruction in nvcc's PTX: {statement[:80]}", "report it with the version of nvcc")
    operands = tuple(each.strip() for each in _OPERAND.findall(match[4]))
    return Instruction(tuple(match[3].split(".")), operands, match[2] or "", match[1] == "!")


def _variable(match: re.Match[str]) -> Variable:
    element = TYPE_BYTES.get(re.sub(r"\D", "", match[3]), 4)
    count = int(match[5] or 0) if match[5] is not None else 1
    return Variable(match[4], match[1], int(match[2] or 1), element * count)
