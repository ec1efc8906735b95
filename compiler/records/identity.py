"""The fingerprints of targets and models by which tuning records are matched.

A target is the described machine and the code generation options; a model is its graph, regardless of its weights, and
its precision.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from schedules.gpu.machine import GpuMachine

if TYPE_CHECKING:
    import tvm

    import targets

# Listed explicitly, so that a new field of the description does not orphan every record.
_MACHINE_FIELDS = (
    "architecture",
    "vector_bits",
    "vector_registers",
    "l1_bytes",
    "l2_bytes",
    "l3_bytes",
    "cores",
    "fma_ports",
    "fma_latency",
)


_DEVICE_FIELDS = ("compute_capability", "multiprocessors", "shared_bytes")


def target_description(target: targets.Target) -> dict[str, Any]:
    """The part of a target's description that kernel times depend on, as plain data. Does not include its name."""
    machine = target.machine.model_dump(mode="json")
    if isinstance(target.machine, GpuMachine):
        # A GPU; the host processor launches kernels and runs none.
        return {
            "machine": {name: machine[name] for name in _DEVICE_FIELDS},
            "engine_target": target.machine.tvm_options(),
        }
    if (accelerator := target.accelerator_description()) is not None:
        # Tuned code runs on the accelerator, whatever the host processor is.
        return {"machine": {"architecture": accelerator["accelerator"], **accelerator}, "engine_target": {}}
    return {
        "machine": {**{name: machine[name] for name in _MACHINE_FIELDS}, "features": sorted(machine["features"])},
        "engine_target": target.describe()["engine_target"],
    }


def fingerprint(description: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits, equal for equal descriptions."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_fingerprint(mod: tvm.IRModule, precision: str) -> str:
    """Sixteen hexadecimal digits, equal for models of one precision that differ only in names and weights."""
    import tvm_ffi

    structure = tvm_ffi.structural_hash(mod, skip_tensor_content=True)
    text = f"{structure & (1 << 64) - 1:016x}/{precision}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_name(description: dict[str, Any]) -> str:
    """A readable file name for a target's records: processor model, cores, fingerprint."""
    options = description["engine_target"]
    if "accelerator" in description["machine"]:
        return f"{description['machine']['accelerator']}-{fingerprint(description)[:8]}.jsonl"
    if "multiprocessors" in description["machine"]:
        count = description["machine"]["multiprocessors"]
        return f"{options['arch']}-{count}-multiprocessors-{fingerprint(description)[:8]}.jsonl"
    model = str(options.get("mcpu") or description["machine"]["architecture"])
    return f"{model}-{description['machine']['cores']}-cores-{fingerprint(description)[:8]}.jsonl"
