"""Which run and step the code that runs now belongs to. Attribution only: permission travels with the token.

Kept by `asyncio` tasks and `asyncio.to_thread`. Lost in `Thread`, `ThreadPoolExecutor.submit`, `run_in_executor`: use
`carry` or `Executor` there. Losing it loses the run's name on a call made with a module-level client, never the cap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from keybrake._errors import NoRun

if TYPE_CHECKING:
    from keybrake._run import AsyncRun, Run

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Here:
    """What is current."""

    run: Run | AsyncRun | None = None
    step: str | None = None
    item: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)


_NOTHING = Here()
_here: ContextVar[Here | None] = ContextVar("keybrake", default=None)


def here() -> Here:
    """What is current in this thread or task."""
    return _here.get() or _NOTHING


class Entered:
    """Makes something current for a `with` block. Leaving never raises.

    A block inside a generator may be left in another context than it was entered in; then there is nothing to undo.
    """

    def __init__(self, current: Here) -> None:
        self._current = current
        self._before: list[Here] = []

    def __enter__(self) -> None:
        self._before.append(here())
        _here.set(self._current)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = self._before.pop() if self._before else _NOTHING
        if _here.get() is self._current:
            _here.set(before)


def entered_run(run: Run | AsyncRun) -> Entered:
    """Makes a run current."""
    return Entered(Here(run=run))


def entered_step(run: Run | AsyncRun, step: str | None, item: str | None, context: Mapping[str, Any]) -> Entered:
    """Makes a step of a run current, keeping what is around it."""
    around = here() if here().run is run else Here(run=run)
    merged = {**around.context, **context}
    return Entered(replace(around, step=step or around.step, item=item or around.item, context=merged))


def current_run() -> Run | AsyncRun:
    """The run that is open here; `NoRun` when there is none."""
    run = here().run
    if run is None:
        raise NoRun("no run is open here: use `with keybrake.run(...)`, or `run.carry` in a thread of your own")
    return run


def carried(current: Here, function: Callable[P, T]) -> Callable[P, T]:
    """The function, running in what was current when it was wrapped."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with Entered(current):
            return function(*args, **kwargs)

    return inside


class Executor(ThreadPoolExecutor):
    """A thread pool whose tasks keep the run and step in which they were submitted."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the standard library's, in the submitter's run."""
        return super().submit(carried(here(), fn), *args, **kwargs)
