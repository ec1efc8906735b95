"""Matmuls with block-quantized weights: the projections of a decoder, without attention, against memory bandwidth.

    python -m benchmarks.block_products [--model smollm2-135m] [--formats Q8_0 Q4_0] [--activations int8]
                                        [--rows 1 8 512] [--threads 2] [--layers 30] [--output FILE.json]

Each layer normalizes its data and multiplies it with the fused weights of query, key and value, of the output, of
gate and up, and of down; the embedding is also the head. Weights are random blocks, different in each layer. For each
number of rows it prints the time of a run and tokens per second; for one row also the weight bandwidth compared with a
plain read, for many rows the operations per second. Plain reads and runs alternate, so that both see the same machine;
the best of each is used.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tvm import relax, tirx

import compiler
from compiler.frontends.gguf_blocks import BLOCK_SIZES, read_gguf_blocks
from compiler.passes.rewriting.block_weights import BlockWeight, block_product, block_rows

READ = r"""
#include <pthread.h>
#include <stdint.h>
#include <stddef.h>
typedef struct { const uint64_t *at; size_t count; uint64_t sum; } part;
static void *sum_part(void *given) {
  part *p = given;
  uint64_t s[32] = {0};
  for (size_t i = 0; i + 32 <= p->count; i += 32) {
    __builtin_prefetch((const char *)(p->at + i) + 4096);
    __builtin_prefetch((const char *)(p->at + i) + 4160);
    __builtin_prefetch((const char *)(p->at + i) + 4224);
    __builtin_prefetch((const char *)(p->at + i) + 4288);
    for (int k = 0; k < 32; k++) s[k] += p->at[i + k];
  }
  for (int k = 0; k < 32; k++) p->sum += s[k];
  return 0;
}
uint64_t read_all(const uint64_t *at, size_t count, int threads) {
  pthread_t ids[64]; part parts[64]; uint64_t total = 0;
  for (int i = 0; i < threads; i++) {
    parts[i] = (part){at + count / threads * i, count / threads, 0};
    pthread_create(&ids[i], 0, sum_part, &parts[i]);
  }
  for (int i = 0; i < threads; i++) { pthread_join(ids[i], 0); total += parts[i].sum; }
  return total;
}
"""
_READ_BYTES = 256 << 20


@dataclass(frozen=True)
class Shape:
    """Dimensions of a decoder."""

    width: int
    keys: int  # for key and value each
    inner: int
    vocabulary: int
    layers: int


SHAPES = {
    "smollm2-135m": Shape(576, 192, 1536, 49152, 30),
    "llama-3.2-1b": Shape(2048, 512, 8192, 128256, 16),
}


@dataclass(frozen=True)
class Result:
    """A measurement: bytes of weights, seconds of a run, bytes per second of a plain read."""

    model: str
    format: str
    activations: str
    rows: int
    threads: int
    bytes: int
    seconds: float
    read_rate: float
    operations: int

    def line(self) -> str:
        """The printed line."""
        rate = self.bytes / self.seconds
        text = f"{self.format:5} {self.activations:8} rows {self.rows:4}: {self.seconds * 1e3:8.2f} ms,"
        text += f" {self.rows / self.seconds:7.1f} tokens/s, {self.operations / self.seconds / 1e9:6.0f} GOP/s"
        return f"{text}, {rate / 1e9:5.1f} of {self.read_rate / 1e9:.1f} GB/s ({rate / self.read_rate:.0%})"


def random_weight(name: str, columns: int, depth: int, generator: np.random.Generator) -> BlockWeight:
    """Return a weight of random blocks with small scales."""
    if name in ("F32", "F16", "BF16"):
        values = generator.standard_normal((columns, depth), np.float32) / np.sqrt(depth, dtype=np.float32)
        return BlockWeight.of_floats(values, {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[name])
    elements, size, scales = BLOCK_SIZES[name]
    raw = generator.integers(0, 256, (columns * depth // elements, size), dtype=np.uint8)
    for at in scales:
        raw[:, at : at + 2] = np.full(len(raw), 1e-4, np.float16).view(np.uint8).reshape(-1, 2)
    return read_gguf_blocks(raw, name, (columns, depth))


class Stack:
    """The projections of a decoder as a Relax module of token ids (rows,)."""

    def __init__(self, shape: Shape, name: str, activations: str) -> None:
        self.shape, self.name, self.activations = shape, name, activations
        self.generator = np.random.default_rng(0)
        self.bytes = self.operations = 0

    def weight(self, columns: int, depth: int) -> BlockWeight:
        """Create a weight, counted in the total bytes."""
        weight = random_weight(self.name, columns, depth, self.generator)
        self.bytes += sum(each.nbytes for each in weight.arrays)
        self.operations += 2 * columns * depth
        return weight

    def module(self) -> Any:
        """Return the module."""
        builder, shape = relax.BlockBuilder(), self.shape
        ids = relax.Var("ids", relax.TensorType([tirx.Var("rows", "int64")], "int64"))
        table = self.weight(shape.vocabulary, shape.width)
        with builder.function("main", [ids]):
            with builder.dataflow():
                data = block_rows(builder, ids, table)
                for _ in range(shape.layers):
                    data = self._layer(builder, data)
                output = builder.emit_output(block_product(builder, self._norm(builder, data), table, self.activations))
            builder.emit_func_output(output)
        return builder.get()

    def _norm(self, builder: relax.BlockBuilder, data: object) -> Any:
        gain = relax.const(np.ones(self.shape.width, np.float32))
        return builder.emit(relax.op.nn.rms_norm(data, gain, axes=[-1], epsilon=1e-5))

    def _layer(self, builder: relax.BlockBuilder, data: object) -> Any:
        shape, op = self.shape, relax.op
        joined = self.weight(shape.width + 2 * shape.keys, shape.width)
        heads = block_product(builder, self._norm(builder, data), joined, self.activations)
        query = builder.emit(op.strided_slice(heads, [1], [0], [shape.width]))
        output = block_product(builder, query, self.weight(shape.width, shape.width), self.activations)
        data = builder.emit(op.add(data, output))
        both = block_product(
            builder, self._norm(builder, data), self.weight(2 * shape.inner, shape.width), self.activations
        )
        gate, up = (
            builder.emit(op.strided_slice(both, [1], [at * shape.inner], [(at + 1) * shape.inner])) for at in range(2)
        )
        inner = builder.emit(op.multiply(builder.emit(op.nn.silu(gate)), up))
        down = block_product(builder, inner, self.weight(shape.width, shape.inner), self.activations)
        return builder.emit(op.add(data, down))


def reader(folder: Path) -> Any:
    """Compile the C function that reads memory."""
    source, library = folder / "read.c", folder / "read.so"
    source.write_text(READ)
    compile_ = [shutil.which("cc") or "cc", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*compile_, str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).read_all
    function.restype, function.argtypes = ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def timed(run: Any) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(shape_name: str, name: str, options: argparse.Namespace, read: Any) -> list[Result]:
    """Return the measurements of one format."""
    shape = SHAPES[shape_name]
    if options.layers:
        shape = Shape(shape.width, shape.keys, shape.inner, shape.vocabulary, options.layers)
    stack = Stack(shape, name, options.activations)
    mod = stack.module()
    start = time.process_time()
    module = compiler.compile(mod, threads=options.threads, progress=None)
    print(f"{name}: {stack.bytes / 1e6:.0f} MB, compiled in {time.process_time() - start:.1f} s of processor time")
    memory = np.ones(_READ_BYTES // 8, np.uint64)
    results = []
    for rows in options.rows:
        data = {"ids": np.arange(rows) % shape.vocabulary}
        runs, reads = [], []
        for _ in range(options.repeat if rows < 64 else max(3, options.repeat // 8)):
            runs.append(timed(lambda data=data: module.run(data)))
            reads.append(timed(lambda: read(memory.ctypes.data, memory.size, options.threads)))
        rate = _READ_BYTES / min(reads)
        results.append(
            Result(
                shape_name,
                name,
                options.activations,
                rows,
                options.threads,
                stack.bytes,
                min(runs),
                rate,
                stack.operations * rows,
            )
        )
        print(results[-1].line(), flush=True)
    return results


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--formats", nargs="+", default=["Q8_0", "Q4_0"])
    parser.add_argument("--activations", default="int8")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the model has")
    parser.add_argument("--repeat", type=int, default=40)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        read = reader(Path(name))
        results = [each for kind in options.formats for each in measure(options.model, kind, options, read)]
    if options.output is not None:
        options.output.write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
