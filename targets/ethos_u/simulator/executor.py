"""Runs a command stream: what Vela emitted, operation by operation, on memory as a device would have it.

It computes what the hardware's interface says each operation computes, not when: results are exact, times are not.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from targets.ethos_u.accelerators import Accelerator
from targets.ethos_u.simulator import memory as stream
from targets.ethos_u.simulator.memory import OFM, Memory, Registers
from targets.ethos_u.simulator.operations import Window, elementwise, pooled, product

Array = np.ndarray
NAMES = {
    stream.CONV: "convolution",
    stream.DEPTHWISE: "depthwise convolution",
    stream.POOL: "pooling",
    stream.ELEMENTWISE: "elementwise",
    stream.DMA_START: "copy",
}
_TABLE_BYTES = 256
_FIRST_TABLE = 16
_INTERNAL = 1 << 8
_INT32 = 2


class Executor:
    """Runs programs for one accelerator.

    Attributes:
        counts: how many operations of each kind have run, by name.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._scratchpad = np.zeros(accelerator.scratchpad_bytes, np.uint8)
        self.counts: Counter[str] = Counter()

    def run(self, program: bytes, memory: Memory) -> None:
        """Execute a command stream on `memory`.

        Raises:
            ValueError: the program is damaged, or reaches memory that it does not have.
            NotImplementedError: an operation that Vela has not been seen to emit.
        """
        for code, parameter, registers in stream.operations(program):
            if code in NAMES:
                self.counts[NAMES[code]] += 1
            if code == stream.DMA_START:
                self._copy(memory, registers)
            elif code in NAMES:
                self._block(code, parameter, memory, registers)

    def _copy(self, memory: Memory, registers: Registers) -> None:
        source, target = registers[0x130], registers[0x131]
        start, offset, length = (registers.address(each) for each in (0x30, 0x31, 0x32))
        data = memory.region(source)[start : start + length]
        if len(data) < length:
            raise ValueError(f"a copy of {length} bytes from {start} leaves its region")
        to = self._scratchpad if target & _INTERNAL else memory.region(target)
        if offset + length > len(to):
            raise ValueError(f"a copy of {length} bytes to {offset} leaves a region of {len(to)}")
        to[offset : offset + length] = data

    def _block(self, code: int, parameter: int, memory: Memory, registers: Registers) -> None:
        window = Window.of(registers)
        if code == stream.ELEMENTWISE:
            values = elementwise(memory, registers, window, parameter)
        elif code == stream.POOL:
            values = pooled(memory, registers, window, parameter)
        else:
            values = product(
                memory, registers, window, code == stream.DEPTHWISE, self._accelerator.macs, self._accelerator.cores
            )
        memory.write(registers, OFM, self._activated(values + registers.signed(0x118), registers))

    def _activated(self, values: Array, registers: Registers) -> Array:
        """Limited to the range of the activation, and looked up in its table where it has one."""
        activation = registers[0x125] & 0x1F
        if registers[0x114] >> 1 & 3 == _INT32 and activation < _FIRST_TABLE:
            return values
        limited = np.clip(values, registers.signed(0x126), registers.signed(0x127))
        if activation < _FIRST_TABLE:
            return limited
        start = self._accelerator.table_address + (activation - _FIRST_TABLE) * _TABLE_BYTES
        table = self._scratchpad[start : start + _TABLE_BYTES].view(np.int8)
        index = limited + 128 if registers[0x114] & 1 else limited
        return table[np.clip(index, 0, 255)].astype(np.int64)
