"""Generators that ask, driven by somebody who answers. The only loop that is written for both worlds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from pkpo_client.errors import PkpoError

AskT = TypeVar("AskT")
ResultT = TypeVar("ResultT")


def run(asking: Generator[AskT, Any, ResultT], answer: Callable[[AskT], Any]) -> ResultT:
    """What `asking` returns, each of its questions being answered by `answer`."""
    try:
        question = next(asking)
        while True:
            try:
                said = answer(question)
            except PkpoError as error:
                question = asking.throw(error)
            else:
                question = asking.send(said)
    except StopIteration as stop:
        result: ResultT = stop.value
        return result


async def run_async(asking: Generator[AskT, Any, ResultT], answer: Callable[[AskT], Awaitable[Any]]) -> ResultT:
    """What `asking` returns, each of its questions being answered by `answer`."""
    try:
        question = next(asking)
        while True:
            try:
                said = await answer(question)
            except PkpoError as error:
                question = asking.throw(error)
            else:
                question = asking.send(said)
    except StopIteration as stop:
        result: ResultT = stop.value
        return result


__all__ = ["run", "run_async"]
