"""SIGTERM and SIGINT: the first asks to stop, the second forces, and none matters once the process is going."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from pkpo_server.logs import Log

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


def stop_asked(log: Log, force: Callable[[], None] = lambda: None) -> asyncio.Future[str]:
    """Why to stop, once someone asks. From then on a signal ends the process, with status 128 + its number.

    Args:
        log: where a forced end is written.
        force: called before a forced end.
    """
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[str] = loop.create_future()

    def on_signal(number: signal.Signals) -> None:
        if asked.done():
            log.warning("forced", signal=number.name)
            force()
            os._exit(128 + number)
        asked.set_result(number.name)

    for number in _NUMBERS:
        loop.add_signal_handler(number, on_signal, number)
    return asked


def ignore() -> None:
    """Lets the process exit with its own status, whatever signal still comes."""
    loop = asyncio.get_running_loop()
    for number in _NUMBERS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
