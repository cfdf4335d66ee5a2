"""A port that accepts connections and says nothing while it is shut; for tests."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from types import TracebackType


class SilentPort:
    """In front of a server, which is reached through it while it is open. It is shut at first.

    Args:
        target: of the server, as host:port.

    Attributes:
        address: where it accepts.
    """

    address: str

    def __init__(self, target: str) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._opened = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def open(self) -> None:
        """From now on it passes everything on."""
        self._loop.call_soon_threadsafe(self._opened.set)

    def shut(self) -> None:
        """Ends the connections there are; to new ones it says nothing."""
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()

    def __enter__(self) -> SilentPort:
        self._thread.start()
        serving = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._server = serving.result()
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        await self._shut()

    async def _shut(self) -> None:
        self._opened.clear()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            try:
                await self._opened.wait()
                host, _, port = self._target.rpartition(":")
                onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
                try:
                    await asyncio.gather(_pass_on(reader, onward_writer), _pass_on(onward_reader, writer))
                finally:
                    onward_writer.close()
            finally:
                writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
