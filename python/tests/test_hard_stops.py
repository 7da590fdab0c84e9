"""`stop(hard=True)` with the real stripe SDK: aborts calls in flight, also from another process and in a forked one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import stripe

import keybrake
from conftest import POLICY, SECRET
from keybrake._types import HookName
from keybrake.testing import Simulator


@pytest.fixture
def held(sim: Simulator) -> Iterator[Simulator]:
    """The vendor executes refunds and keeps their replies back."""
    sim.fault("hold_until_released", "POST", "/v1/refunds", when="after", times=0)
    yield sim
    sim.release()


def stop_from_another_process(run: str, environment: dict[str, str]) -> None:
    command = ["keybrake", "stop", run, "--hard", "--reason", "loop"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "1 call was in flight and is aborted; whether it took effect is unknown" in done.stdout


def is_aborted(error: BaseException) -> None:
    assert isinstance(error, stripe.PermissionError)
    refusal = keybrake.denied(error)
    assert refusal is not None
    assert (refusal.code, refusal.aborted, refusal.status) == ("stopped", True, 403)
    assert refusal.stop is not None
    assert refusal.stop.reason == "loop"
    for words in (refusal.for_model(), refusal.message):
        assert "unknown" in words.lower()
        assert "othing was sent" not in words
        assert "no money moved" not in words


def test_a_call_in_a_thread_is_aborted_by_another_process(
    held: Simulator, ledger: str, environment: dict[str, str]
) -> None:
    errors: list[BaseException] = []
    heard: list[Any] = []
    with keybrake.Keybrake(ledger, secrets={"stripe": SECRET}, base_urls={"stripe": held.url}) as kb:
        kb.on("unknown", heard.append)
        with kb.run(policy=POLICY, run="run_42") as run:

            def refund() -> None:
                try:
                    run.stripe(max_network_retries=2).v1.refunds.create({"charge": "ch_1"})
                except stripe.StripeError as error:
                    errors.append(error)

            thread = threading.Thread(target=refund)
            thread.start()
            held.wait_held()
            stop_from_another_process("run_42", environment)
            thread.join(timeout=30)
            assert not thread.is_alive()
            (error,) = errors
            is_aborted(error)
            (call,) = run.calls
            assert (call.verdict, call.code, call.cost) == ("unknown", "stopped", None)
            assert [info.call_id for info in heard] == [call.call_id]
            (hold,) = kb.holds()
            assert hold.state == "unknown"
    assert len(held.requests("/v1/refunds", "POST")) == 1, "the SDK did not try again"


def test_a_coroutine_is_aborted(held: Simulator, ledger: str) -> None:
    async def main() -> None:
        kb = keybrake.AsyncKeybrake(ledger, secrets={"stripe": SECRET}, base_urls={"stripe": held.url})
        async with kb, kb.run(policy=POLICY, run="run_42") as run:
            call = asyncio.create_task(run.stripe().v1.refunds.create_async({"charge": "ch_1"}))
            await asyncio.to_thread(held.wait_held)
            stopped = await kb.stop(run="run_42", reason="loop", hard=True)
            assert len(stopped.in_flight) == 1
            assert stopped.processes_told is None, "with SQLite they look themselves"
            with pytest.raises(stripe.StripeError) as caught:
                await call
            is_aborted(caught.value)

    asyncio.run(main())


FORKED = """
    import os, sys, warnings
    import keybrake, stripe

    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork with threads; that is the point
    kb = keybrake.Keybrake()
    policy = {"vendor": "stripe", "daily_usd_cap": 250, "allowed_endpoints": ["refunds.create", "reads"]}
    key = kb.issue(policy, run="run_42")
    client = kb.stripe(key)
    client.v1.refunds.create({"charge": "ch_2", "amount": 100})  # it has watched for stops before the fork
    child = os.fork()
    if child == 0:
        try:
            client.v1.refunds.create({"charge": "ch_1"})
        except stripe.StripeError as error:
            refusal = keybrake.denied(error)
            os._exit(7 if refusal is not None and refusal.aborted else 1)
        os._exit(2)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_forked_child_watches_for_itself(sim: Simulator, environment: dict[str, str]) -> None:
    sim.fault("hold_until_released", "POST", "/v1/refunds", when="after", times=0, skip=1)
    program = [sys.executable, "-c", textwrap.dedent(FORKED)]
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        sim.wait_held()
        stop_from_another_process("run_42", environment)
        out, _ = parent.communicate(timeout=60)
    sim.release()
    assert out.strip() == "7"


def _note(heard: list[str], event: str, _: object) -> None:
    heard.append(event)


def test_a_document_ends_with_the_refusal(kb: keybrake.Keybrake, sim: Simulator) -> None:
    policy: keybrake.Policy = {"vendor": "stripe", "daily_usd_cap": 100, "allowed_endpoints": ["reads"]}
    heard: list[str] = []
    events: tuple[HookName, ...] = ("call", "denied", "stopped", "unknown")
    for event in events:
        kb.on(event, partial(_note, heard, event))
    with kb.run(policy=policy, run="run_42") as run:
        sim.fault("hold_body", "GET", "/v1/", chunk_bytes=1_000)
        document: Any = run.stripe().v1.quotes.pdf("qt_1").io
        assert document.read(1_000).startswith(b"%PDF")
        kb.stop(run="run_42", reason="loop", hard=True)
        with pytest.raises(stripe.StripeError) as caught:
            document.read()
        is_aborted(caught.value)
        assert [(call.verdict, call.code) for call in run.calls] == [("unknown", "stopped")]
        assert heard == ["call", "denied", "unknown", "stopped"]
        sim.release()
