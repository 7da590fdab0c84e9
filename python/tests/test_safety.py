"""What must hold whatever the host does: threads, processes, forks, kills, cancellation, Ctrl-C, shutdown.

The simulator's journal, not our own count, says which money moved.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
import stripe

import keybrake
from conftest import POLICY, SECRET
from keybrake.testing import Simulator


@pytest.fixture
def kb(sim: Simulator, ledger: str) -> Iterator[keybrake.Keybrake]:
    """On a file, so that other processes can share it."""
    with keybrake.Keybrake(ledger, secrets={"stripe": SECRET}, base_urls={"stripe": sim.url}) as found:
        yield found


def capped(usd: int | str) -> keybrake.Policy:
    return {**POLICY, "daily_usd_cap": usd}


def verify(environment: dict[str, str]) -> None:
    """The counters are what the events add up to."""
    command = [sys.executable, "-m", "keybrake._cli", "audit", "verify"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def outcome_of(call: Any) -> str:
    try:
        call()
    except stripe.StripeError as error:
        refusal = keybrake.denied(error)
        return refusal.code if refusal else type(error).__name__
    return "done"


def books(kb: keybrake.Keybrake, key_id: str) -> tuple[Decimal, Decimal]:
    """(used, held) of the one money budget that anything was drawn from."""
    drawn = [budget for budget in kb.usage(key_id) if budget.unit == "usd" and budget.used + budget.held > 0]
    if not drawn:
        return Decimal(0), Decimal(0)
    (budget,) = drawn
    return budget.used, budget.held


def script(text: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text)]


@contextmanager
def started(text: str, environment: dict[str, str], **more: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        script(text),
        env={**environment, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# Threads and processes.


def test_fifty_threads_room_for_four(kb: keybrake.Keybrake, sim: Simulator, environment: dict[str, str]) -> None:
    charges = sim.charges(50, 1000)
    key = kb.issue(capped(40))
    client = kb.stripe(key)
    together = threading.Barrier(50)

    def one(charge: str) -> str:
        together.wait()
        return outcome_of(lambda: client.v1.refunds.create({"charge": charge}))

    with ThreadPoolExecutor(50) as pool:
        outcomes = list(pool.map(one, charges))
    assert sim.moved() == 4000
    assert outcomes.count("done") == 4
    assert set(outcomes) <= {"done", "cap_exceeded", "cap_held"}
    assert books(kb, key.id) == (Decimal("40.00"), Decimal(0))
    assert kb.holds() == []
    verify(environment)


WORKER = """
    import json, os
    import keybrake, stripe
    kb = keybrake.Keybrake()
    client = kb.stripe(os.environ["KEYBRAKE_TOKEN"])
    outcomes = []
    for charge in os.environ["CHARGES"].split():
        try:
            client.v1.refunds.create({"charge": charge})
            outcomes.append("done")
        except stripe.StripeError as error:
            refusal = keybrake.denied(error)
            outcomes.append(refusal.code if refusal else repr(error))
    print(json.dumps(outcomes))
"""


def test_four_processes_of_fifty_calls_room_for_forty(
    kb: keybrake.Keybrake, sim: Simulator, environment: dict[str, str]
) -> None:
    charges = sim.charges(200, 1000)
    key = kb.issue(capped(400))
    processes = [
        subprocess.Popen(
            script(WORKER),
            env={**environment, "KEYBRAKE_TOKEN": key.token, "CHARGES": " ".join(charges[part::4])},
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in range(4)
    ]
    outcomes: list[str] = []
    for process in processes:
        said, _ = process.communicate(timeout=100)
        assert process.returncode == 0
        outcomes += json.loads(said)
    assert len(outcomes) == 200
    assert sim.moved() == 40_000
    assert outcomes.count("done") == 40
    assert set(outcomes) <= {"done", "cap_exceeded", "cap_held"}
    assert books(kb, key.id) == (Decimal("400.00"), Decimal(0))
    verify(environment)


def test_a_killed_process_releases_nothing(kb: keybrake.Keybrake, sim: Simulator, environment: dict[str, str]) -> None:
    charges = sim.charges(200, 100)
    key = kb.issue(capped(150))
    chance = random.Random(7)
    for round_ in range(8):
        seen = len(sim.requests())
        mine = charges[round_ * 25 : round_ * 25 + 25]
        with started(WORKER, environment, KEYBRAKE_TOKEN=key.token, CHARGES=" ".join(mine)) as process:
            sim.wait_requests(seen + chance.randrange(1, 30))
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    moved = Decimal(sim.moved()) / 100
    used, held = books(kb, key.id)
    assert moved <= Decimal(150)
    assert used <= moved <= used + held
    assert sum(hold.held_usd for hold in kb.holds()) == held
    verify(environment)


FORKED = """
    import os, sys, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork with threads; that is the point
    import keybrake, stripe
    kb = keybrake.Keybrake()
    client = kb.stripe(os.environ["KEYBRAKE_TOKEN"])
    client.v1.charges.retrieve("ch_1")  # runtime, connections and ledger are in use before the fork
    children = []
    for charge in ("ch_1", "ch_2", "ch_3"):
        child = os.fork()
        if child == 0:
            client.v1.refunds.create({"charge": charge})
            kb.close()
            sys.exit(0)
        children.append(child)
    client.v1.refunds.create({"charge": "ch_4"})
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    client.v1.refunds.create({"charge": "ch_5"})
    print(codes)
"""


def test_a_pre_fork_server(kb: keybrake.Keybrake, sim: Simulator, environment: dict[str, str]) -> None:
    key = kb.issue(POLICY)
    done = subprocess.run(
        script(FORKED),
        env={**environment, "KEYBRAKE_TOKEN": key.token},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[0, 0, 0]", "")
    assert sim.moved() == 25_000
    assert books(kb, key.id) == (Decimal("250.00"), Decimal(0))
    verify(environment)


FORKED_MEMORY = """
    import os, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    import keybrake
    kb = keybrake.Keybrake("memory:")
    kb.issue({"vendor": "stripe", "daily_usd_cap": 1, "allowed_endpoints": ["reads"]})
    child = os.fork()
    if child == 0:
        try:
            kb.stops()
        except keybrake.LedgerError as error:
            assert "sqlite" in str(error)
            os._exit(7)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_memory_ledger_is_not_inherited(environment: dict[str, str]) -> None:
    done = subprocess.run(
        script(FORKED_MEMORY), env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "7"


# Interruption.


def test_a_thousand_cancelled_tasks(sim: Simulator, ledger: str, environment: dict[str, str]) -> None:
    (charge,) = sim.charges(1, 1_000_000)
    chance = random.Random(11)

    async def one(client: stripe.StripeClient, run: keybrake.AsyncRun, number: int) -> None:
        with run.item(f"item-{number}"):
            await client.v1.refunds.create_async({"charge": charge, "amount": 100})

    def hold_replies(count: int) -> None:
        sim.fault("hold_until_released", path_prefix="/v1/refunds", when="after", times=count)

    async def main() -> tuple[int, str]:
        settings: dict[str, Any] = {"secrets": {"stripe": SECRET}, "base_urls": {"stripe": sim.url}}
        async with keybrake.AsyncKeybrake(ledger, **settings) as kb:
            key = await kb.issue(capped(300))
            run = await kb.open(key)
            client = run.stripe()
            cancelled = 0
            for batch in range(0, 1000, 50):
                held = batch < 200
                if held:
                    await asyncio.to_thread(hold_replies, 50)
                tasks = [asyncio.create_task(one(client, run, batch + n)) for n in range(50)]
                if held:  # cancelled when the vendor has them all, and has answered none
                    await asyncio.to_thread(sim.wait_held, 50)
                    for task in tasks:
                        task.cancel()
                else:  # cancelled wherever they are
                    for task in tasks:
                        asyncio.get_running_loop().call_later(chance.random() * 0.05, task.cancel)
                ended = await asyncio.gather(*tasks, return_exceptions=True)
                cancelled += sum(isinstance(end, asyncio.CancelledError) for end in ended)
                strange = [
                    e for e in ended if e is not None and not isinstance(e, asyncio.CancelledError | stripe.StripeError)
                ]
                assert strange == []
                if held:
                    await asyncio.to_thread(sim.release)
            # Closing waits for what is being written down, but not for as long as a slow disk may take.
            await until_unknown(kb)
            return cancelled, key.id

    cancelled, key_id = asyncio.run(main())
    assert cancelled >= 200
    with keybrake.Keybrake(ledger, secrets={"stripe": SECRET}, base_urls={"stripe": sim.url}) as kb:
        moved = Decimal(sim.moved()) / 100
        used, held = books(kb, key_id)
        holds = kb.holds()
        assert moved <= Decimal(300)
        assert used <= moved <= used + held
        assert sum(hold.held_usd for hold in holds) == held
        assert all(hold.reason == "cancelled" for hold in holds if hold.state == "unknown")
        reconciled = subprocess.run(
            [sys.executable, "-m", "keybrake._cli", "reconcile", "--json"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert reconciled.returncode == 0, reconciled.stderr
        used, held = books(kb, key_id)
        # Asked again: a request that was cancelled with its last byte may have been executed meanwhile.
        assert used == Decimal(sim.moved()) / 100, "after reconciliation everything that moved is booked"
    verify(environment)


def test_a_cancelled_task_leaves_its_hold_unknown(sim: Simulator, ledger: str) -> None:
    async def main() -> None:
        settings: dict[str, Any] = {"secrets": {"stripe": SECRET}, "base_urls": {"stripe": sim.url}}
        async with keybrake.AsyncKeybrake(ledger, **settings) as kb, kb.run(policy=POLICY) as run:
            sim.fault("hold_until_released", path_prefix="/v1/refunds", when="after")
            task = asyncio.create_task(run.stripe().v1.refunds.create_async({"charge": "ch_1"}))
            await asyncio.to_thread(sim.wait_held)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until_unknown(kb)
            (hold,) = await kb.holds()
            assert (hold.state, hold.reason, hold.held_usd) == ("unknown", "cancelled", Decimal("50.00"))
            sim.release()
            sim.clear_faults()
            again = await run.stripe().v1.refunds.create_async({"charge": "ch_1"})
            assert again.amount == 5000
            assert await kb.holds() == []
            assert await run.spent() == Decimal("50.00")
        assert sim.movements() == 1

    asyncio.run(main())


async def until_unknown(kb: keybrake.AsyncKeybrake) -> None:
    """The abort is noted by the engine's own thread, a moment after the task has ended."""
    deadline = time.monotonic() + 60
    while any(hold.state == "held" for hold in await kb.holds()):
        assert time.monotonic() < deadline, "the hold of a cancelled task never became unknown"
        await asyncio.sleep(0.005)


INTERRUPTED = """
    import os, signal, time
    # Whoever runs the tests in the background has Ctrl-C ignored, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import keybrake
    kb = keybrake.Keybrake()
    run = kb.open(os.environ["KEYBRAKE_TOKEN"])
    try:
        run.stripe().v1.refunds.create({"charge": "ch_1"})
    except KeyboardInterrupt:
        deadline = time.monotonic() + 10
        while kb.holds()[0].state == "held" and time.monotonic() < deadline:
            time.sleep(0.005)
        (hold,) = kb.holds()
        print(hold.state, hold.reason, flush=True)
"""


def test_ctrl_c_during_a_call(kb: keybrake.Keybrake, sim: Simulator, environment: dict[str, str]) -> None:
    key = kb.issue(POLICY)
    sim.fault("hold_until_released", path_prefix="/v1/refunds")
    with started(INTERRUPTED, environment, KEYBRAKE_TOKEN=key.token) as process:
        sim.wait_held()
        process.send_signal(signal.SIGINT)
        # It ends although the vendor has not answered, and will not before it has ended.
        said, complained = process.communicate(timeout=60)
    assert (said.strip(), complained) == ("unknown cancelled", "")
    sim.release()


SHUT_DOWN = """
    import asyncio, os, threading
    import keybrake
    kb = keybrake.Keybrake()
    client = kb.stripe(os.environ["KEYBRAKE_TOKEN"])

    def call():
        client.v1.refunds.create({"charge": "ch_1"})

    threading.Thread(target=call, daemon=True).start()

    async def main():
        other = keybrake.AsyncKeybrake()
        client = other.stripe(os.environ["KEYBRAKE_TOKEN"])
        task = asyncio.create_task(client.v1.refunds.create_async({"charge": "ch_2"}))
        await asyncio.sleep(0)
        input()
        os.environ["KEEP"] = str(id(task))

    asyncio.run(main())
    print("over", flush=True)
"""


def test_interpreter_shutdown_with_calls_under_way(
    kb: keybrake.Keybrake, sim: Simulator, environment: dict[str, str]
) -> None:
    key = kb.issue(POLICY)
    sim.fault("hold_until_released", path_prefix="/v1/refunds", times=0)
    process = subprocess.Popen(
        script(SHUT_DOWN),
        env={**environment, "KEYBRAKE_TOKEN": key.token},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    sim.wait_held(2)
    said, complained = process.communicate("\n", timeout=30)
    assert (process.returncode, said.strip()) == (0, "over"), complained
    assert "panicked" not in complained
    assert len(kb.holds()) == 2
    sim.release()


def test_closing_while_a_call_is_under_way(sim: Simulator, ledger: str) -> None:
    kb = keybrake.Keybrake(ledger, secrets={"stripe": SECRET}, base_urls={"stripe": sim.url})
    key = kb.issue(POLICY)
    sim.fault("hold_until_released", path_prefix="/v1/refunds")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(kb.stripe(key).v1.refunds.create, {"charge": "ch_1"})
        sim.wait_held()
        kb.close()
        with pytest.raises(keybrake.KeybrakeError, match="closed"):
            call.result()
    with pytest.raises(keybrake.KeybrakeError, match="closed"):
        kb.stops()
    sim.release()
    with keybrake.Keybrake(ledger) as again:
        assert [hold.held_usd for hold in again.holds()] == [Decimal("50.00")]


# Unknown outcomes and repeats.


def test_executed_and_dropped_is_held_then_settled_once(
    kb: keybrake.Keybrake, sim: Simulator, environment: dict[str, str]
) -> None:
    with kb.run(policy=POLICY) as run:
        client = run.stripe()
        sim.fault("drop_after_executing", path_prefix="/v1/refunds")
        with pytest.raises(stripe.APIConnectionError, match="may have taken effect"):
            client.v1.refunds.create({"charge": "ch_1"})
        assert sim.moved() == 5000
        (hold,) = kb.holds()
        assert (hold.state, hold.held_usd) == ("unknown", Decimal("50.00"))
        assert hold.reason
        assert (run.spent, run.held) == (Decimal("0.00"), Decimal("50.00"))
        assert [call.verdict for call in run.calls] == ["unknown"]
        done = subprocess.run(
            [sys.executable, "-m", "keybrake._cli", "reconcile"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert kb.holds() == []
        assert run.spent == Decimal("50.00")
    assert sim.movements() == 1
    verify(environment)


def test_lesson_20_a_tool_that_charges_and_then_raises_moves_money_once(kb: keybrake.Keybrake, sim: Simulator) -> None:
    """CrewAI's ReAct loop runs such a tool six times for one call of the model."""
    attempts = []
    with kb.run(policy=POLICY) as run:

        def refund_tool(charge: str) -> str:
            refund = run.stripe().v1.refunds.create({"charge": charge, "amount": 2000})
            attempts.append(refund.id)
            raise RuntimeError("could not format the answer")

        for _ in range(6):
            with pytest.raises(RuntimeError):
                refund_tool("ch_1")
        assert run.spent == Decimal("20.00")
        assert [call.replayed for call in run.calls] == [False] + [True] * 5
    assert len(attempts) == 6
    assert len(set(attempts)) == 1
    assert sim.movements() == 1


def test_a_new_tool_call_id_after_a_timeout_is_the_same_charge(kb: keybrake.Keybrake, sim: Simulator) -> None:
    with kb.run(policy=POLICY) as run:
        client = run.stripe()
        sim.fault("drop_after_executing", path_prefix="/v1/refunds")
        with run.step("refund", tool_call_id="call_1"), pytest.raises(stripe.APIConnectionError):
            client.v1.refunds.create({"charge": "ch_1", "amount": 2000})
        with run.step("refund", tool_call_id="call_2"):
            client.v1.refunds.create({"charge": "ch_1", "amount": 2000})
        assert sim.movements() == 1
        assert run.spent == Decimal("20.00")


def test_a_decline_frees_the_next_attempt(kb: keybrake.Keybrake, sim: Simulator) -> None:
    policy: keybrake.Policy = {**POLICY, "allowed_endpoints": ["payment_intents.create", "reads"]}
    intent: dict[str, Any] = {
        "amount": 2000,
        "currency": "usd",
        "confirm": True,
        "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
    }
    with kb.run(policy=policy) as run, run.step("pay"):
        client = run.stripe()
        with pytest.raises(stripe.CardError):
            client.v1.payment_intents.create({**intent, "payment_method": "pm_card_chargeDeclined"})  # type: ignore[typeddict-item]
        paid = client.v1.payment_intents.create({**intent, "payment_method": "pm_card_visa"})  # type: ignore[typeddict-item]
        assert paid.status == "succeeded"
    assert sim.moved("charge") == 2000


def test_a_dropped_keybrake_ends_quietly(ledger: str) -> None:
    before = threading.active_count()
    for _ in range(5):
        keybrake.Keybrake(ledger).stops()
    assert threading.active_count() == before
    assert os.getpid() > 0


def test_two_keybrakes_on_one_file_agree(sim: Simulator, ledger: str) -> None:
    settings: dict[str, Any] = {"secrets": {"stripe": SECRET}, "base_urls": {"stripe": sim.url}}
    with keybrake.Keybrake(ledger, **settings) as one, keybrake.Keybrake(ledger, **settings) as two:
        key = one.issue({**POLICY, "daily_usd_cap": 50})
        one.stripe(key).v1.refunds.create({"charge": "ch_1"})
        with pytest.raises(stripe.RateLimitError):
            two.stripe(key).v1.refunds.create({"charge": "ch_2"})
    assert sim.moved() == 5000
