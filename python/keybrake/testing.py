"""For tests of agents: a simulator of Stripe with its own journal of the money that moved (or of Twilio or Resend).

with keybrake.testing.simulator() as sim:
    kb = keybrake.Keybrake("memory:", secrets={"stripe": sim.secret}, base_urls={"stripe": sim.url})
    ...
    assert sim.moved("refund") == 5000
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from keybrake import _keybrake
from keybrake._types import Vendor

__all__ = ["Simulator", "simulator"]


class Simulator:
    """A running simulator, driven over its control endpoints. Its journal is the truth about which money moved."""

    secret = "sk_test_simulator"  # noqa: S105 - no secret: a name that test mode accepts
    """The secret to use with it; for Stripe's any that begins with `sk_test_` works."""

    def __init__(self, url: str, secret: str | None = None) -> None:
        self.url = url
        if secret is not None:
            self.secret = secret

    def control(self, method: str, what: str, body: Any = None, /, **query: Any) -> Any:
        """One control request."""
        url = f"{self.url}/_sim/{what}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - a loopback URL of our own
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            return json.load(reply)

    def moved(self, kind: str = "refund", currency: str = "usd") -> int:
        """What moved (less what came back) of one kind, in cents."""
        return int(self._sum(kind, currency).get("net", 0))

    def movements(self, kind: str = "refund", currency: str = "usd") -> int:
        """How many times money of one kind moved."""
        return int(self._sum(kind, currency).get("count", 0))

    def _sum(self, kind: str, currency: str) -> dict[str, Any]:
        found = self.control("GET", "totals")
        totals = found.get("totals", found)
        result: dict[str, Any] = totals.get(kind, {}).get(currency, {})
        return result

    def sent(self, **query: Any) -> list[dict[str, Any]]:
        """What was sent, oldest first (Twilio, Resend): `kind`, `object`, `to`, `from`, `idempotency_key`."""
        rows: list[dict[str, Any]] = self.control("GET", "sent", **query)["sent"]
        return rows

    def requests(self, path_prefix: str = "/v1/", method: str | None = None, **query: Any) -> list[dict[str, Any]]:
        """The requests that arrived, oldest first."""
        if method is not None:
            query["method"] = method
        rows: list[dict[str, Any]] = self.control("GET", "requests", path_prefix=path_prefix, **query)["requests"]
        return rows

    def wait_requests(self, at_least: int, path_prefix: str = "/v1/") -> None:
        """Waits until so many requests have arrived."""
        self.control("GET", "requests", path_prefix=path_prefix, at_least=at_least, timeout_ms=30_000)

    def fault(self, kind: str, method: str = "POST", path_prefix: str = "/v1/", **more: Any) -> None:
        """Something goes wrong with the next matching requests (`times`, `skip`, `delay_ms`, `when`)."""
        self.control("POST", "faults", {"kind": kind, "match": {"method": method, "path_prefix": path_prefix}, **more})

    def clear_faults(self) -> None:
        """No more faults."""
        self.control("DELETE", "faults")

    def wait_held(self, at_least: int = 1) -> None:
        """Waits until so many requests are held by a fault."""
        self.control("GET", "waiting", at_least=at_least, timeout_ms=30_000)

    def release(self, **which: Any) -> None:
        """Lets held requests go on, or drops them."""
        self.control("POST", "release", which)

    def charges(self, count: int, amount: int) -> list[str]:
        """So many charges that can be refunded, each of `amount` cents."""
        seed = {"charges": [{"amount": amount} for _ in range(count)]}
        made: list[str] = self.control("POST", "seed", seed)["charges"]
        return made

    def reset(self) -> None:
        """Back to the start: standard objects, an empty journal, no faults."""
        self.control("POST", "reset", {"seed": "standard"})


@contextmanager
def simulator(port: int = 0, *, vendor: Vendor = "stripe") -> Iterator[Simulator]:
    """A simulator inside this process, on a free port of 127.0.0.1; stopped at the end of the block."""
    running = _keybrake.Simulator(vendor, port)
    try:
        yield Simulator(running.url, running.secret)
    finally:
        running.stop()
