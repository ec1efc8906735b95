"""The machine as seen by a rule: plain data, so that one rule serves AVX2, AVX-512 and NEON.

`targets` makes these descriptions; rules read them and nothing else about the hardware.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer

FORMAT_VERSION = 2

_DTYPE_BITS = {"bool": 8, "bfloat16": 16}


def dtype_bits(dtype: str) -> int:
    """Bits of one element of a TVM dtype in memory ("float32" -> 32, "bool" -> 8)."""
    if dtype in _DTYPE_BITS:
        return _DTYPE_BITS[dtype]
    if dtype.startswith("float8"):
        return 8
    digits = "".join(character for character in dtype if character.isdigit())
    return int(digits) if digits else 64


class Machine(BaseModel):
    """A described processor.

    Sizes are bytes. `l1_bytes` and `l2_bytes` belong to one core, `l3_bytes` is shared by all `cores`.
    `features` are LLVM feature names without sign ("avx2", "fma", "avx512f", "avx512vnni", "avx512bf16", "neon",
    "dotprod", "fullfp16", "i8mm").

    Version 2 added `load_ports`, `register_sums` and `memory_rate`; a description of version 1 gets the values that
    were then assumed for all machines.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    architecture: Literal["x86_64", "aarch64", "armv7", "riscv64", "wasm32", "generic"] = "generic"
    vector_bits: int = Field(default=128, ge=32, le=2048)
    vector_registers: int = Field(default=16, ge=4, le=64)
    l1_bytes: int = Field(default=32 << 10, gt=0)
    l2_bytes: int = Field(default=512 << 10, gt=0)
    l3_bytes: int = Field(default=8 << 20, ge=0)
    cores: int = Field(default=1, ge=1)
    fma_ports: int = Field(default=2, ge=1, le=4, description="multiply-adds that start in a cycle")
    fma_latency: int = Field(default=4, ge=1, description="cycles until a multiply-add can feed the next")
    load_ports: int = Field(default=2, ge=1, le=4, description="loads that start in a cycle")
    register_sums: int | None = Field(
        default=None,
        ge=1,
        description="accumulator vectors that a convolution's tile holds without spills, if measured",
    )
    memory_rate: float = Field(default=10.0, gt=0, description="bytes all cores together read in a cycle from memory")
    features: frozenset[str] = frozenset()
    rates: tuple[tuple[str, float], ...] = Field(
        default=(), description="measured multiply-add throughput of instructions relative to float32 vectors"
    )
    executed_features: frozenset[str] | None = Field(
        default=None, description="of a simulated processor: the features that code generated for it may use"
    )

    @field_serializer("features", "executed_features")
    def _in_order(self, features: frozenset[str] | None) -> list[str] | None:
        """Sorted: the order of a set differs from process to process."""
        return None if features is None else sorted(features)

    def has(self, *features: str) -> bool:
        """True if the processor has all these instruction extensions."""
        return self.features.issuperset(features)

    def executes(self, *features: str) -> bool:
        """True if generated code may use all these instruction extensions: for a simulated processor, extensions are
        used for scheduling, but computed by other code."""
        return (self.features if self.executed_features is None else self.executed_features).issuperset(features)

    def lanes(self, dtype: str) -> int:
        """Number of elements of `dtype` in a vector register, at least 1."""
        return max(1, self.vector_bits // dtype_bits(dtype))

    @property
    def lane_products(self) -> bool:
        """True if a float32 vector multiply-add can take one operand from a lane of a vector.

        A scalar is then best loaded as part of a vector: an instruction that broadcasts it to all lanes uses the issue
        slot of a multiply-add.
        """
        return self.architecture == "aarch64"

    @property
    def bf16_dot_product(self) -> bool:
        """True if one instruction multiplies and adds pairs of bfloat16 into float32."""
        return self.has("avx512bf16") or self.has("bf16")

    @property
    def float16_product(self) -> bool:
        """True if instructions multiply and add float16 faster than float32."""
        return self.has("avx512fp16") or self.has("amx-fp16") or self.has("avx10.2")
