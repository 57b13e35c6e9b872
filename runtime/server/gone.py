"""Clients that hang up: what they wait for is given up."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive


async def hung_up(receive: Receive) -> None:
    """Return when the client of a request, whose body was read, hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, waiting: Awaitable[Any]) -> Any:
    """Return what is waited for; where the client hangs up before, give it up.

    Raises:
        ClientDisconnect: it hung up.

    """
    task, watch = asyncio.ensure_future(waiting), asyncio.ensure_future(hung_up(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
