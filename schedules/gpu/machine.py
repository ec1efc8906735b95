"""A GPU as a rule sees it."""

from __future__ import annotations

from pydantic import Field

from schedules.machine import Machine

MIN_CAPABILITY = {"float16": 70, "int8": 72, "bfloat16": 80}
"""The lowest compute capability whose tensor cores multiply an element type, major times ten plus minor."""


class GpuMachine(Machine):
    """A described GPU; the fields of `Machine` are those of the host processor.

    Attributes:
        compute_capability: NVIDIA's version of the instruction set, major times ten plus minor (75 for sm_75).
        shared_bytes: shared memory of a block of threads.
        clock_mhz, memory_gb_s, l2_bytes_per_cycle, device_l2_bytes: clock and speed of the memory and of the L2 cache
        of
            the device, and the size of that cache, for the performance model; 0 if unknown.
    """

    compute_capability: int = Field(ge=70, le=130)
    multiprocessors: int = Field(ge=1)
    shared_bytes: int = Field(default=48 << 10, gt=0)
    threads_per_block: int = Field(default=1024, ge=32)
    warp: int = Field(default=32, ge=1)
    clock_mhz: int = Field(default=0, ge=0)
    memory_gb_s: int = Field(default=0, ge=0)
    l2_bytes_per_cycle: int = Field(default=0, ge=0)
    device_l2_bytes: int = Field(default=0, ge=0)

    @property
    def bf16_dot_product(self) -> bool:
        """True if tensor cores multiply bfloat16."""
        return self.compute_capability >= MIN_CAPABILITY["bfloat16"]

    @property
    def float16_product(self) -> bool:
        """True if tensor cores multiply float16."""
        return self.compute_capability >= MIN_CAPABILITY["float16"]

    def tvm_options(self) -> dict[str, object]:
        """The options of TVM's target.

        The architecture omits the suffix of "sm_90a": dlight cannot parse it and would not use tensor cores.
        """
        return {
            "kind": "cuda",
            "arch": f"sm_{self.compute_capability}",
            "max_threads_per_block": self.threads_per_block,
            "max_shared_memory_per_block": self.shared_bytes,
            "thread_warp_size": self.warp,
        }
