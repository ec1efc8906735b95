"""`python -m tests.fuzz serve [--cases N]`: attacks, random requests, reloads, a full disk and a clock set back.

Every request must get an answer that is not 500, no worker may die, and the requests of neighbours, which go on all the
while, must be served. The table says which answers came, the slowest answer of the health, and what memory stayed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fuzz.serving.attacks import ATTACKS, TOGETHER, Attack, chat, completion
from tests.fuzz.serving.connections import CLIENTS, Client
from tests.fuzz.serving.fields import field_requests
from tests.fuzz.serving.models import build
from tests.fuzz.serving.random_requests import request
from tests.fuzz.serving.server import Health, Served, Watch, serve

_SECONDS = 120.0  # timeout of an answer
_TRACE = 3000  # characters of the log in reports
_DESCRIPTORS = 4096  # addresses of clients and servers
_CLIENTS = 4  # concurrent random requests
_MODELS = Path("build/fuzz-serve")
_DENSE = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}).encode()
_SOUND: dict[str, Attack] = {
    "dense": Attack("POST", "/v2/models/dense/infer", lambda: _DENSE),
    "chat": completion(),
    "embed": Attack("POST", "/v1/embeddings", lambda: b'{"model":"embed","input":"a text"}'),
    "template": chat("hello"),
}
# A clock that alternates between now and an hour ago, every two seconds.
_CLOCK = """
import time
_time, _start = time.time, time.monotonic()
time.time = lambda: _time() - (3600 if int(time.monotonic() - _start) // 2 % 2 else 0)
"""


@dataclass
class Row:
    """Outcome of a part of the suite."""

    name: str
    answers: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    health: Health = field(default_factory=Health)
    neighbours: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    before: int = 0
    after: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """True if something forbidden happened."""
        return bool(self.deaths or self.problems or self.health.failed or set(self.neighbours) - {"200"})


def run(cases: int, seed: int, only: str | None, console: Console) -> int:
    """Run the parts whose name contains `only` (by default all); return 0 if nothing failed."""
    configuration = build(_MODELS)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, _DESCRIPTORS) if most >= 0 else _DESCRIPTORS, most))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tensorwright-serve-") as made:
        folder = Path(made)
        with _served(folder / "log", "--config", str(configuration)) as (served, watch):
            _warm(served)
            parts: dict[str, Callable[[Row], object]] = {
                **{name: partial(_attack, served, attack) for name, attack in ATTACKS.items()},
                **{name: partial(_together, served, *attack) for name, attack in TOGETHER.items()},
                **{name: partial(_connections, served, client) for name, client in CLIENTS.items()},
                "each field with hostile values": lambda row: _fields(row, served),
                f"{cases} random requests": lambda row: _random(row, served, cases, seed),
                "reload while serving": lambda row: _reload(row, served),
                "afterwards": lambda row: time.sleep(1.0),
            }
            rows += [_part(served, watch, name, work) for name, work in parts.items() if only is None or only in name]
            log = (folder / "log").read_text()
        for name, apart in (("a full disk", _full_disk), ("a clock that goes back", _clock)):
            if only is None or only in name:
                rows.append(apart(name, folder, configuration))
    _print(rows, console)
    traces = log.count("Traceback")
    console.print(f"tracebacks in the log: {traces}")
    if traces:
        console.print(log[log.index("Traceback") :][:_TRACE], markup=False, highlight=False)
    return 1 if traces or any(row.failed for row in rows) else 0


@contextlib.contextmanager
def _served(log: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Iterator[tuple[Served, Watch]]:
    """A server and its health monitor."""
    with serve(log, *flags, environment=environment) as served, contextlib.closing(Watch(served.port)) as watch:
        yield served, watch


def _part(served: Served, watch: Watch, name: str, work: Callable[[Row], object]) -> Row:
    """Run a part while other clients and the health check are monitored."""
    row = Row(name, before=served.memory())
    workers, begun = served.workers(), time.monotonic()
    watch.take()
    with _neighbours(served, row):
        work(row)
        row.seconds = time.monotonic() - begun
    row.health = watch.take()
    row.deaths = len(workers - served.workers())
    row.after = served.memory()
    return row


def _send(served: Served, attack: Attack) -> tuple[str, bytes]:
    """The status of an answer, or the reason why there is none, and its body."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=_SECONDS)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # answered before the body is read
            connection.request(
                attack.method, attack.path, attack.body(), {"Content-Type": "application/json", **attack.headers}
            )
        response = connection.getresponse()
        return str(response.status), response.read()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__, str(error).encode()
    finally:
        connection.close()


def _attack(served: Served, attack: Attack | list[Attack], row: Row) -> None:
    for each in [attack] if isinstance(attack, Attack) else attack:
        _note(row, served, each, row.name)


def _together(served: Served, attack: Attack, count: int, row: Row) -> None:
    threads = [threading.Thread(target=_note, args=(row, served, attack, row.name)) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def _connections(served: Served, client: Client, row: Row) -> None:
    row.answers = client(served.port)
    row.problems += [f"{row.name}: {row.answers[bad]} times {bad}" for bad in ("500", "no answer") if row.answers[bad]]


def _note(row: Row, served: Served, attack: Attack, what: str) -> str:
    status, body = _send(served, attack)
    row.answers[status] += 1
    if not status.isdigit() or status == "500":
        row.problems.append(f"{what}: {status} {body[:200]!r}")
    return status


@contextlib.contextmanager
def _neighbours(served: Served, row: Row) -> Iterator[None]:
    """Send valid requests in the background, one after another, and count their answers."""
    ended = threading.Event()

    def work() -> None:
        while True:
            for attack in _SOUND.values():
                status, body = _send(served, attack)
                row.neighbours[status] += 1
                if status != "200":
                    row.problems.append(f"a neighbour: {status} {body[:200]!r}")
            if ended.wait(0.05):
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _random(row: Row, served: Served, cases: int, seed: int) -> None:
    _all(row, served, ((f"seed {number}", request(number)) for number in range(seed, seed + cases)))


def _fields(row: Row, served: Served) -> None:
    for name, each in field_requests():
        if name.startswith("sound") and (status := _note(row, served, each, name)) != "200":
            row.problems.append(f"{name}: {status}")
    _all(row, served, field_requests())


def _all(row: Row, served: Served, requests: Iterator[tuple[str, Attack]]) -> None:
    """Send requests, several at once."""
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                name, attack = next(requests, (None, None))
            if name is None or attack is None:
                return
            _note(row, served, attack, name)

    clients = [threading.Thread(target=client) for _ in range(_CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()


def _reload(row: Row, served: Served) -> None:
    for name in ("dense", "chat", "embed", "nope") * 5:
        _note(row, served, Attack("POST", f"/v2/repository/models/{name}/load", lambda: b""), name)


def _warm(served: Served) -> None:
    """Trigger all lazy loading, so that memory growth is due to the attacks."""
    for number in range(60):
        _send(served, request(number))
    for attack in _SOUND.values():
        _send(served, attack)


def _full_disk(name: str, folder: Path, configuration: Path) -> Row:
    """Two workers whose logs and metrics are on a full file system."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True
    ).returncode
    if mounted:
        return Row(f"{name}: not run, since mounting needs root")
    try:
        flags = ("--config", str(configuration), "--workers", "2", "--access-log", str(disk / "access"))
        with _served(folder / "log-disk", *flags, environment={"TMPDIR": str(disk)}) as (served, watch):
            with contextlib.suppress(OSError), (disk / "rest").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            return _part(served, watch, name, lambda row: _random(row, served, 200, 0))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def _clock(name: str, folder: Path, configuration: Path) -> Row:
    """A server whose clock is set back by an hour, repeatedly."""
    (folder / "clock").mkdir()
    (folder / "clock" / "sitecustomize.py").write_text(_CLOCK)
    path = f"{folder / 'clock'}:."
    with _served(folder / "log-clock", "--config", str(configuration), environment={"PYTHONPATH": path}) as (
        served,
        watch,
    ):
        return _part(served, watch, name, lambda row: _random(row, served, 400, 0))


def _print(rows: list[Row], console: Console) -> None:
    table = Table(
        "part", "answers", "seconds", "slowest health, ms", "neighbours", "deaths", "memory, MB", title="serve"
    )
    for row in rows:
        answers, others = (", ".join(f"{status}: {count}" for status, count in sorted(each.items()))
                               for each in (row.answers, row.neighbours))  # fmt: skip
        table.add_row(
            row.name, answers, f"{row.seconds:.1f}", f"{1000 * row.health.slowest:.0f}", others, str(row.deaths),
            f"{row.before >> 20} to {row.after >> 20}", style="red" if row.failed else None,
        )  # fmt: skip
    console.print(table)
    total: Counter[str] = sum((row.answers for row in rows), Counter())
    slowest = max(row.health.slowest for row in rows)
    neighbours = sum(sum(row.neighbours.values()) for row in rows)
    console.print(
        f"{sum(total.values())} requests; answers {dict(sorted(total.items()))}; health asked "
        f"{sum(row.health.asked for row in rows)} times, slowest {1000 * slowest:.0f} ms; "
        f"{neighbours} requests of neighbours; deaths {sum(row.deaths for row in rows)}"
    )
    for row in rows:
        for problem in row.problems[:5]:
            console.print(f"{row.name}: {problem}", markup=False, soft_wrap=True)
