"""The client that waits and the one that is awaited, behind one face."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pkpo_client import AsyncClient, Client, PkpoError


class RecordingError(Exception):
    """Of the caller's own iterable."""


class Flavour:
    """The same calls on `Client` and on `AsyncClient`."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous

    @contextmanager
    def calling(self, address: str, **of_client: Any) -> Iterator[Callable[..., Any]]:
        """What makes calls, by their names, on one client."""
        if not self.asynchronous:
            with Client(address, **of_client) as made:
                yield lambda method, *args, **options: getattr(made, method)(*args, **options)
            return
        loop = asyncio.new_event_loop()
        waiting = AsyncClient(address, **of_client)
        try:
            yield lambda method, *args, **options: loop.run_until_complete(getattr(waiting, method)(*args, **options))
        finally:
            loop.run_until_complete(waiting.close())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    def call(self, address: str, method: str, *args: Any, of_client: Any = None, **options: Any) -> Any:
        """What one call gives on a client made for it."""
        with self.calling(address, **(of_client or {})) as call:
            return call(method, *args, **options)

    def stream(
        self, address: str, batches: Iterable[Any], *args: Any, of_client: Any = None, **options: Any
    ) -> list[Any]:
        """Everything a stream gives: results, and errors at their turn."""
        gave: list[Any] = []

        async def main() -> None:
            async with AsyncClient(address, **(of_client or {})) as made:
                stream = made.stream(batches, *args, **options)
                while True:
                    try:
                        gave.append(await stream.__anext__())
                    except StopAsyncIteration:
                        return
                    except (PkpoError, RecordingError) as error:
                        gave.append(error)

        if self.asynchronous:
            asyncio.run(main())
            return gave
        with Client(address, **(of_client or {})) as made:
            stream = made.stream(batches, *args, **options)
            while True:
                try:
                    gave.append(next(stream))
                except StopIteration:
                    return gave
                except (PkpoError, RecordingError) as error:
                    gave.append(error)
