"""Which run code belongs to: what keeps it, what loses it, and that losing it never raises."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import keybrake
from keybrake._context import Here, carried, entered_run, entered_step, here


class Named:
    """Stands for a run; only its identity matters here."""

    def __init__(self, name: str) -> None:
        self.id = name


def run_named(name: str) -> Any:
    return Named(name)


def seen() -> tuple[str | None, str | None]:
    found = here()
    return (found.run.id if found.run else None), found.step


def test_no_run_is_an_error_that_helps() -> None:
    with pytest.raises(keybrake.NoRun, match=r"run\.carry"):
        keybrake.current_run()


def test_runs_and_steps_nest() -> None:
    outer, inner = run_named("outer"), run_named("inner")
    with entered_run(outer), entered_step(outer, "a", None, {"tool_call_id": "t1"}):
        assert seen() == ("outer", "a")
        with entered_step(outer, "b", "i", {"x": 1}):
            assert (here().step, here().item, dict(here().context)) == ("b", "i", {"tool_call_id": "t1", "x": 1})
        with entered_run(inner):
            assert seen() == ("inner", None)
        assert seen() == ("outer", "a")
    assert seen() == (None, None)


def test_a_step_of_another_run_brings_its_own_run() -> None:
    with entered_run(run_named("outer")), entered_step(run_named("other"), "s", None, {}):
        assert seen() == ("other", "s")


def test_lost_in_a_thread_and_kept_by_carry() -> None:
    run = run_named("r")
    found: list[Any] = []
    with entered_run(run):

        def look() -> None:
            found.append(seen())

        bare = threading.Thread(target=look)
        kept = threading.Thread(target=carried(here(), look))
        for thread in (bare, kept):
            thread.start()
            thread.join()
    assert found == [(None, None), ("r", None)]


def test_lost_in_a_pool_and_kept_by_our_executor() -> None:
    with entered_run(run_named("r")):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(seen).result() == (None, None)
        with keybrake.Executor(1) as pool:
            assert pool.submit(seen).result() == ("r", None)
            assert list(pool.map(lambda _: seen(), range(2))) == [("r", None)] * 2


def test_kept_by_to_thread_and_lost_in_run_in_executor() -> None:
    async def main() -> None:
        with entered_run(run_named("r")):
            assert await asyncio.to_thread(seen) == ("r", None)
            assert await asyncio.get_running_loop().run_in_executor(None, seen) == (None, None)
            assert await asyncio.create_task(asyncio.sleep(0, seen())) == ("r", None)

    asyncio.run(main())


def test_tasks_do_not_see_each_others_runs() -> None:
    async def one(name: str) -> tuple[str | None, str | None]:
        with entered_run(run_named(name)):
            await asyncio.sleep(0)
            return seen()

    async def main() -> list[Any]:
        return await asyncio.gather(*(one(f"r{n}") for n in range(20)))

    assert asyncio.run(main()) == [(f"r{n}", None) for n in range(20)]


def test_leaving_a_block_in_another_context_does_not_raise() -> None:
    contextvars.copy_context().run(leave_elsewhere)  # what leaks stays in here


def leave_elsewhere() -> None:
    def inside() -> Iterator[int]:
        with entered_run(run_named("generator")):
            yield 1
            yield 2

    generator = inside()
    next(generator)
    assert seen() == ("generator", None)  # known: a generator leaks into its consumer
    thread = threading.Thread(target=lambda: list(generator))
    thread.start()
    thread.join()
    with entered_run(run_named("after")):
        assert seen() == ("after", None)


def test_an_async_generator_that_leaks_does_not_raise() -> None:
    async def inside() -> Any:
        with entered_run(run_named("generator")):
            yield 1
            yield 2

    async def main() -> None:
        stream = inside()
        await asyncio.create_task(stream.__anext__())
        await asyncio.create_task(stream.aclose())
        assert seen() == (None, None)

    asyncio.run(main())


def test_an_unknown_current_is_empty() -> None:
    assert here() == Here()
