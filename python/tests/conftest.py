"""What the tests share: a simulator, a fresh ledger, and a Keybrake on both."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

import keybrake
from keybrake.testing import Simulator
from keybrake.testing import simulator as running

SECRET = Simulator.secret

_AHEAD = 12 - datetime.now(timezone.utc).hour
TIMEZONE = f"Etc/GMT{-_AHEAD:+d}" if _AHEAD else "Etc/GMT"
"""A time zone whose midnight is half a day away: no test's day ends while it runs. Such names count westwards."""

POLICY: keybrake.Policy = {
    "vendor": "stripe",
    "daily_usd_cap": 250,
    "timezone": TIMEZONE,
    "allowed_endpoints": ["refunds.create", "reads"],
}

# No secret, ledger or base URL of the developer's reaches a test.
for name in [name for name in os.environ if name.startswith(("KEYBRAKE_", "STRIPE_"))]:
    del os.environ[name]


@pytest.fixture(scope="session")
def simulator() -> Iterator[Simulator]:
    with running() as found:
        yield found


@pytest.fixture
def sim(simulator: Simulator) -> Simulator:
    simulator.clear_faults()
    simulator.reset()
    return simulator


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'spend.db'}"


@pytest.fixture
def kb(sim: Simulator) -> Iterator[keybrake.Keybrake]:
    with keybrake.Keybrake("memory:", secrets={"stripe": SECRET}, base_urls={"stripe": sim.url}) as found:
        yield found


@pytest.fixture
def environment(sim: Simulator, ledger: str) -> dict[str, str]:
    """For processes of their own: the same ledger and simulator."""
    return {
        **os.environ,
        "KEYBRAKE_LEDGER": ledger,
        "KEYBRAKE_BASE_URL_STRIPE": sim.url,
        "STRIPE_SECRET_KEY": SECRET,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
