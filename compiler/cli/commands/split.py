"""`tensorwright split`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import compiler
from compiler.cli import options
from compiler.cli.arguments import load_archives, parse_fixed
from compiler.cli.options import command_of, keywords_of, option
from compiler.cli.output import print_json, print_line
from compiler.cli.progress import Steps
from compiler.errors import storage_errors

HELP = """Split a model between a client and a server at the cut with the least total time.

Every cut of the graph is estimated with each wire type (float32, float16, int8 with calibrated scales): the client's
time, the bytes over the bandwidth, and the server's time. The best three are built and timed on this machine; times of
another target are scaled by the ratio of the estimates. --output receives client.twm, server/1/model.twm for
`tensorwright serve`, and split.json.

[bold]Typical[/]

  tensorwright split model.onnx --bandwidth 10Mbit --client-target raspberry-pi-4 --samples a.npz -o halves

[bold]Examples[/]

  Serve one half, and run the other (in Python):
    tensorwright serve NAME=halves/server
    SplitClient("halves/client.twm", "http://server:8000", "NAME").run({"image": image})

  Cut after a node of the model, with float16 on the wire:
    tensorwright split model.onnx --bandwidth 10Mbit --at /layer2/Relu --wire float16 -o halves
"""


@dataclass(frozen=True, kw_only=True)
class _Options:
    model: Path = options.MODEL_PATH
    bandwidth: str = option("Network bandwidth: 10Mbit, 1Gbit, 500kbit, or bytes such as 2MB.", "RATE", default=...)
    output: Path = option("Where both halves go.", "DIR", "--output", "-o", default=...)
    latency: str = option("Latency of a round trip: 20ms, 0.1s.", "TIME", default="0ms")
    client_target: str = option("The client's machine.", "NAME", default="host")
    server_target: str = option("The server's machine.", "NAME", default="host")
    wire: list[str] | None = option("float32, float16 or int8; all if not given.", "TYPE")
    at: str | None = option("Cut after this node.", "NODE")
    samples: list[Path] | None = options.SAMPLES
    max_drop: float = option("Maximum drop of the cosine similarity caused by the wire type.", "SHARE", default=0.01)
    shape: list[str] | None = options.MODEL_SHAPES
    constant: list[str] | None = options.CONSTANTS
    threads: int | None = options.THREADS
    as_json: bool = options.JSON


@command_of
def command(given: _Options) -> None:
    from compiler.splitting.split import bits_per_second, seconds

    rate, delay = bits_per_second(given.bandwidth), seconds(given.latency)
    server = given.output / "server" / "1"
    with storage_errors(server, "made"):
        server.mkdir(parents=True, exist_ok=True)
    with Steps() as steps:
        result = compiler.split(
            given.model,
            wires=given.wire or ("float32", "float16", "int8"),
            calibration=load_archives(given.samples, "--samples"),
            **parse_fixed(given.model, given.shape, given.constant),
            **keywords_of(compiler.split, given, bandwidth=rate, latency=delay, progress=steps),
        )
    result.client.export(given.output / "client.twm")
    result.server.export(server / "model.twm")
    result.report.save(given.output / "split.json")
    if given.as_json:
        print_json(asdict(result.report))
        return
    print_line(str(result.report))
    print_line(f"wrote {given.output}/client.twm, {server}/model.twm, {given.output}/split.json")
