"""A TCP proxy that makes a network worse: it delays, throttles, and cuts connections."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType


class Proxy:
    """Forwards to `target` from an address of its own. Every piece is held back for `delay` seconds and passes at
    `bytes_per_second`; when so many bytes have passed as each of `cuts` says, all connections are cut. `cut` counts that,
    `passed` the bytes. Every `loses`-th piece comes late by what TCP takes to send a lost packet again."""

    RETRANSMISSION = 0.25  # seconds

    def __init__(self, target: str, delay: float = 0.0, bytes_per_second: float = 1e12, cuts: tuple[int, ...] = (),
                 loses: int = 0) -> None:
        self.address = ""
        self.cut = 0
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._delay, self._rate, self._cuts = delay, bytes_per_second, sorted(cuts)
        self.passed = 0
        self._pieces, self._loses = 0, loses
        self._writers: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _end(self) -> None:
        self._server.close()
        await self._cut_all()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cut_all(self) -> None:
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.transport.abort()
        self.cut += bool(writers)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers += [writer, there_writer]
        await asyncio.gather(self._pass_on(reader, there_writer), self._pass_on(there_reader, writer), return_exceptions=True)
        for each in (writer, there_writer):
            each.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 14):
            self._pieces += 1
            is_lost = self._loses and self._pieces % self._loses == 0
            await asyncio.sleep(self._delay + len(data) / self._rate + (self.RETRANSMISSION if is_lost else 0))
            self.passed += len(data)
            if self._cuts and self.passed >= self._cuts[0]:
                self._cuts.pop(0)
                await self._cut_all()
                return
            writer.write(data)
            await writer.drain()
