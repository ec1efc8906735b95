from __future__ import annotations

import asyncio
import socket

import pytest

from compiler.serving.workers.distributor import Distributor, handed, handing_pair
from compiler.serving.workers.supervisor import listen


def _taken(worker: socket.socket) -> int:
    """Number of connections given to a worker."""
    count = 0
    while (connection := handed(worker)) is not None:
        connection.close()
        count += 1
    return count


def test_connections_are_dealt_out_in_turn() -> None:
    async def run() -> None:
        with listen("127.0.0.1", 0) as listening:
            distributor = Distributor(listening, 16)
            address = listening.getsockname()
            (to_one, one), (to_other, other) = handing_pair(), handing_pair()

            async def connect(count: int) -> None:
                for _ in range(count):
                    _, writer = await asyncio.open_connection(*address)
                    writers.append(writer)

            async def both(count: int) -> tuple[int, int]:
                """Connections of the two workers, once all are given."""
                found = (0, 0)
                while sum(found) < count:
                    await asyncio.sleep(0.001)
                    found = (found[0] + _taken(one), found[1] + _taken(other))
                return found

            writers: list[asyncio.StreamWriter] = []
            distributor.add(to_one)
            distributor.add(to_other)
            await connect(6)
            assert await both(6) == (3, 3)
            distributor.remove(to_one)
            await connect(2)
            assert await both(2) == (0, 2)
            distributor.remove(to_other)
            await connect(2)  # which wait for a worker
            assert (_taken(one), _taken(other)) == (0, 0)
            other.close()  # a worker that died, which is not known yet
            distributor.add(to_other)
            distributor.add(to_one)
            while _taken(one) < 1:
                await asyncio.sleep(0.001)
            distributor.close()
            to_one.close()
            with pytest.raises(EOFError):
                _taken(one)
            for each in writers:
                each.close()
            one.close()
            to_other.close()

    asyncio.run(run())
