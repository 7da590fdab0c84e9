"""The ledger in Redis, from Python: the real stripe SDK against the simulator, and a private redis-server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import stripe

import keybrake
from conftest import POLICY, SECRET
from keybrake.testing import Simulator

PATIENCE_S = 20


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    """The URL of a server that only this module uses, on a socket in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="kb-py-redis-") as directory:
        socket = Path(directory) / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", directory, "--save", "", "--appendonly", "no"]
        with subprocess.Popen(["redis-server", *options], stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                lines: list[str] = []
                for line in server.stdout:  # ends when the server does
                    lines.append(line)
                    if "ready to accept connections" in line.lower():
                        break
                else:
                    pytest.fail("redis-server ended: " + "".join(lines))
                yield f"redis+unix://{socket}"
            finally:
                server.kill()


@pytest.fixture
def ledger(redis: str, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    return f"{redis}?ns={request.node.name}&timeout_ms={PATIENCE_S * 1000}"


@pytest.fixture
def fleet(sim: Simulator, ledger: str) -> Iterator[keybrake.Keybrake]:
    with keybrake.Keybrake(ledger, secrets={"stripe": SECRET}, base_urls={"stripe": sim.url}) as found:
        yield found


def books(kb: keybrake.Keybrake, key_id: str) -> tuple[Decimal, Decimal]:
    """(used, held) of the one money budget that anything was drawn from."""
    drawn = [budget for budget in kb.usage(key_id) if budget.unit == "usd" and budget.used + budget.held > 0]
    if not drawn:
        return Decimal(0), Decimal(0)
    (budget,) = drawn
    return budget.used, budget.held


def test_two_handles_share_one_cap(fleet: keybrake.Keybrake, sim: Simulator, ledger: str) -> None:
    key = fleet.issue(POLICY)
    first = fleet.stripe(key.token)
    with keybrake.Keybrake(ledger, secrets={"stripe": SECRET}, base_urls={"stripe": sim.url}) as other:
        second = other.stripe(key.token)
        for number in range(1, 6):
            client = first if number % 2 else second
            client.v1.refunds.create({"charge": f"ch_{number}"})
        with pytest.raises(stripe.RateLimitError) as caught:
            second.v1.refunds.create({"charge": "ch_6"})
    refusal = keybrake.denied(caught.value)
    assert refusal is not None
    assert (refusal.code, refusal.used_usd) == ("cap_exceeded", Decimal("250.00"))
    assert sim.moved() == 25_000
    assert books(fleet, key.id) == (Decimal("250.00"), Decimal(0))


def test_asyncio(sim: Simulator, ledger: str) -> None:
    charges = sim.charges(40, 1_000)

    async def agents() -> list[object]:
        async with keybrake.AsyncKeybrake(ledger, secrets={"stripe": SECRET}, base_urls={"stripe": sim.url}) as kb:
            key = await kb.issue(POLICY)
            client = kb.stripe(key.token)
            refunds = (client.v1.refunds.create_async({"charge": charge}) for charge in charges)
            return await asyncio.gather(*refunds, return_exceptions=True)

    outcomes = asyncio.run(agents())
    done = [one for one in outcomes if not isinstance(one, BaseException)]
    refused = [keybrake.denied(one) for one in outcomes if isinstance(one, BaseException)]
    assert len(done) == 25
    assert {one.code for one in refused if one} <= {"cap_exceeded", "cap_held"}
    assert len(refused) == 15
    assert all(refused)
    assert sim.moved() == 25_000


FORKED = """
    import os, sys, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork with threads; that is the point
    import keybrake, stripe
    kb = keybrake.Keybrake()
    client = kb.stripe(os.environ["KEYBRAKE_TOKEN"])
    client.v1.charges.retrieve("ch_1")  # runtime and both connections are in use before the fork
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


def test_a_forked_child_has_a_connection_of_its_own(
    fleet: keybrake.Keybrake, sim: Simulator, environment: dict[str, str]
) -> None:
    key = fleet.issue(POLICY)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORKED)],
        env={**environment, "KEYBRAKE_TOKEN": key.token},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[0, 0, 0]", "")
    assert sim.moved() == 25_000
    assert books(fleet, key.id) == (Decimal("250.00"), Decimal(0))


def test_a_server_that_is_not_there_is_said_without_its_password() -> None:
    began = time.monotonic()
    with pytest.raises(keybrake.LedgerError) as caught:
        keybrake.Keybrake("redis://agent:hunter2@127.0.0.1:1?ns=prod")
    assert "cannot be reached" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert time.monotonic() - began < PATIENCE_S
