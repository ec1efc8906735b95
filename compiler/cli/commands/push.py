"""`tensorwright push`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from compiler.cli import options
from compiler.cli.options import argument, command_of, option
from compiler.cli.output import print_facts, print_json, print_note
from compiler.cli.progress import Steps
from compiler.reports.formatting import format_seconds

HELP = """Send a module to a device server, which switches to it only after checking it on the device.

The server checks the upload's checksums, runs the stored reference input, compares the outputs, measures the latency
and only then switches; if any step fails, the active module stays. The server is bin/tensorwright-server of
`tensorwright bundle`.

A module is machine code. A server without keys runs the code of anyone who can reach its port, without authentication,
so it listens only on 127.0.0.1 unless started with --insecure. With --key and --client-key it accepts only known
clients, encrypted. With --trusted-key it runs only modules signed by one of those keys, whoever sends them, and no
kernels of `tensorwright tune` (sent by TVM's RPC, unsigned) unless started with --allow-tuning.

[bold]Typical[/]

  tensorwright push model.twm 192.168.0.7:9090 --key laptop.pem --device-key device.pem.pub

[bold]Examples[/]

  Keys for both sides, created once; copy each .pub file to the other side:
    on the device:  bin/tensorwright-server --new-key device.pem
    here:           tensorwright key new laptop.pem --kind connection
    on the device:  bin/tensorwright-server 9090 --listen 0.0.0.0 --key device.pem --client-key laptop.pem.pub

  Through a tunnel, to a server without keys on the device's own address:
    ssh -L 9090:127.0.0.1:9090 pi && tensorwright push model.twm 127.0.0.1:9090
"""


@dataclass(frozen=True, kw_only=True)
class _Options:
    module: Path = options.MODULE_PATH
    address: str = argument("The device server.", "HOST:PORT")
    runs: int = option("Number of runs to measure.", "N", default=20, min=1)
    run_seconds: float = option(
        "Time limit of the reference run on the device.", "SECONDS", "--timeout", default=600, min=1
    )
    key: Path | None = options.CONNECTION_KEY
    device_key: Path | None = option("The X25519 public key of the server.", "FILE")
    trusted: list[Path] | None = options.TRUSTED_KEYS
    passphrase_file: Path | None = options.PASSPHRASE_FILE
    as_json: bool = options.JSON


@command_of
def command(given: _Options) -> None:
    from compiler.cli.passphrases import load_credentials
    from compiler.cli.paths import check_is_module
    from compiler.device.connection import is_loopback
    from compiler.device.push import push

    check_is_module(given.module)
    credentials = load_credentials(given.key, given.device_key, given.passphrase_file)
    with Steps() as steps:
        result = push(
            given.module,
            given.address,
            credentials=credentials,
            trusted_keys=given.trusted or None,
            runs=given.runs,
            run_seconds=given.run_seconds,
            progress=steps,
        )
    if credentials is None and not is_loopback(given.address):
        print_note(
            f"the connection to {given.address} was not encrypted, and the server not authenticated "
            "(--key, --device-key)"
        )
    if result.moved_aside:
        print_note(f"{given.address}: {result.moved_aside}")
    if given.as_json:
        print_json(asdict(result))
        return
    print_facts(
        [
            ("active", f"{result.active[:16]} at {given.address}"),
            ("before", result.replaced[:16] if result.replaced else "none"),
            ("reference run", f"largest difference {result.difference:.3g}"),
            ("latency p50", format_seconds(result.p50_milliseconds / 1000)),
            ("latency p99", f"{format_seconds(result.p99_milliseconds / 1000)}, {result.runs} runs"),
        ]
    )
