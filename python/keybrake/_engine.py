"""The native engine, one for each process, and how Python waits for it."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import weakref
from contextlib import suppress
from typing import Any, Generic, TypeVar

from keybrake import _keybrake
from keybrake._errors import KeybrakeError

Answer = _keybrake.Answer
Stream = _keybrake.Stream
T = TypeVar("T")

_open_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_inherited: list[_keybrake.Engine] = []
"""Engines that belong to a parent process. They are kept for ever: their threads do not exist here, so closing them
would wait for what never ends."""

# SQLite's memory must not be copied in the middle of a step: a child forked then could not use the ledger.
os.register_at_fork(
    before=_keybrake.before_fork,
    after_in_parent=_keybrake.after_fork,
    after_in_child=_keybrake.after_fork,
)


class Engine:
    """The engine behind one `Keybrake`. After a fork the child gets a fresh one with the same settings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._mine = (os.getpid(), _keybrake.Engine(json.dumps(settings)))
        self._closed = False
        self.loopback_vendors = frozenset(settings["base_urls"])
        """Vendors whose calls go to a simulator on this machine; a base URL is never anything else."""
        _open_engines.add(self)

    def native(self) -> _keybrake.Engine:
        """The native engine of this process."""
        pid, native = self._mine
        if self._closed:
            raise KeybrakeError("this Keybrake is closed")
        if pid == os.getpid():
            return native
        _inherited.append(native)
        fresh = native.in_this_process()
        self._mine = (os.getpid(), fresh)
        return fresh

    def ask(self, what: str, **arguments: Any) -> Any:
        """One question or order to the ledger."""
        return json.loads(self.native().ask(what, json.dumps(arguments)))

    async def ask_async(self, what: str, **arguments: Any) -> Any:
        """The same from asyncio."""
        native, text = self.native(), json.dumps(arguments)
        waiter: Waiter[str] = Waiter()
        return json.loads(await waiter.wait(native.start_ask(what, text, waiter.done)))

    async def send_async(
        self,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        body: bytes,
        context: str,
        wait_ms: int,
    ) -> Answer:
        """A governed call from asyncio. Cancelling the task aborts the request and leaves its hold unknown."""
        waiter: Waiter[Answer] = Waiter()
        task = self.native().start_send(method, url, headers, body, context, wait_ms, waiter.done)
        return await waiter.wait(task)

    async def open_stream_async(
        self,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        body: bytes,
        context: str,
        wait_ms: int,
    ) -> Answer:
        """As `send_async`, but a document is left to be read as it arrives."""
        waiter: Waiter[Answer] = Waiter()
        task = self.native().start_open_stream(method, url, headers, body, context, wait_ms, waiter.done)
        return await waiter.wait(task)

    def close(self) -> None:
        """Ends the engine of this process. Safe to repeat."""
        pid, native = self._mine
        if not self._closed and pid == os.getpid():
            native.close()
        self._closed = True

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed


async def read_async(stream: Stream) -> bytes | None:
    """The next piece of a body from asyncio."""
    waiter: Waiter[bytes | None] = Waiter()
    return await waiter.wait(stream.start_read(waiter.done))


async def close_async(stream: Stream) -> None:
    """Ends a body from asyncio."""
    waiter: Waiter[None] = Waiter()
    await waiter.wait(stream.start_close(waiter.done))


class Waiter(Generic[T]):
    """Turns a callback from the engine's thread into something to await."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[T] = self._loop.create_future()

    def done(self, value: T | None, error: Exception | None) -> None:
        """Called on the engine's thread, once."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._resolve, value, error)

    def _resolve(self, value: Any, error: Exception | None) -> None:
        if self._future.done():
            return
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(value)

    async def wait(self, task: _keybrake.Task) -> T:
        """The value; aborts the work when the waiting task is cancelled."""
        try:
            return await self._future
        except BaseException:
            task.cancel()
            raise


@atexit.register
def _close_all() -> None:
    """Before the interpreter goes, so that no thread of ours calls into it afterwards."""
    for engine in list(_open_engines):
        engine.close()
