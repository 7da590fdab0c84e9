"""Governed against ungoverned stripe-python, in interleaved pairs on the same simulator: p50, p99 and CPU of a call.

Run it with `make bench`. One call is `payment_intents.create` with an idempotency key of the caller's: a write that
reserves and settles money, and needs no lookup. "flush" is one write and fsync of 4 KiB beside the SQLite ledger.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import stripe

import keybrake
from keybrake.testing import Simulator

CALLS = int(os.environ.get("CALLS", "400"))
IN_FLIGHT = 32
POLICY: keybrake.Policy = {
    "vendor": "stripe",
    "daily_usd_cap": 100_000_000,
    "allowed_endpoints": ["payment_intents.create"],
}
INTENT: Any = {"amount": 5000, "currency": "usd"}


def main() -> None:
    """Measures and prints."""
    command = [sys.executable, "-u", "-m", "keybrake._cli", "simulate", "--port", "0"]
    with Popen(command, stdout=PIPE, text=True) as simulator, tempfile.TemporaryDirectory() as place:
        assert simulator.stdout is not None
        try:
            line = next(line for line in simulator.stdout if "http://127.0.0.1" in line)
            url = line[line.index("http://") :].split()[0]
            print(f"{'':<34}{'p50 us':>9}{'p99 us':>9}{'cpu us':>9}   p50 of ungoverned")
            for ledger in ("memory:", f"sqlite:{place}/spend.db"):
                kind = ledger.partition(":")[0]
                with keybrake.Keybrake(ledger, secrets=secrets(), base_urls={"stripe": url}) as kb:
                    blocking(kind, kb, url)
                asyncio.run(in_flight(kind, f"{ledger}" if kind == "memory" else f"sqlite:{place}/async.db", url))
            print(f"{'flush':<34}{flush(Path(place)):>9.0f}")
        finally:
            simulator.terminate()


def secrets() -> dict[str, keybrake.Secret | str]:
    """The simulator's."""
    return {"stripe": Simulator.secret}


def blocking(kind: str, kb: keybrake.Keybrake, url: str) -> None:
    """One caller, one call at a time, the two sides in turn."""
    governed = kb.stripe(kb.issue(POLICY))
    plain = stripe.StripeClient(Simulator.secret, base_addresses={"api": url})
    sides: dict[str, stripe.StripeClient] = {"ungoverned": plain, "governed": governed}
    times: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, float] = dict.fromkeys(sides, 0.0)
    for number in range(CALLS + 20):
        for name, client in sides.items():
            options: Any = {"idempotency_key": f"{kind}-{name}-{number}-{os.getpid()}"}
            began, used = time.perf_counter(), time.process_time()
            client.v1.payment_intents.create(INTENT, options)
            if number >= 20:
                times[name].append(time.perf_counter() - began)
                cpu[name] += time.process_time() - used
    report(f"sync, {kind}", times, cpu)


async def in_flight(kind: str, ledger: str, url: str) -> None:
    """32 tasks at once; rounds of the two sides in turn."""
    async with keybrake.AsyncKeybrake(ledger, secrets=secrets(), base_urls={"stripe": url}) as kb:
        governed = kb.stripe(await kb.issue({**POLICY, "label": "async"}))
        http: Any = stripe.HTTPXClient()
        plain = stripe.StripeClient(Simulator.secret, base_addresses={"api": url}, http_client=http)
        sides: dict[str, stripe.StripeClient] = {"ungoverned": plain, "governed": governed}
        times: dict[str, list[float]] = {name: [] for name in sides}
        cpu: dict[str, float] = dict.fromkeys(sides, 0.0)
        for round_ in range(max(CALLS // IN_FLIGHT, 4) + 1):
            for name, client in sides.items():
                used = time.process_time()
                work = (one(client, f"a-{kind}-{name}-{round_}-{n}-{os.getpid()}") for n in range(IN_FLIGHT))
                took = await asyncio.gather(*work)
                if round_:
                    times[name] += took
                    cpu[name] += time.process_time() - used
        await http.close_async()
        report(f"asyncio, {IN_FLIGHT} in flight, {kind}", times, cpu)


async def one(client: stripe.StripeClient, key: str) -> float:
    """One call; how long it took."""
    options: Any = {"idempotency_key": key}
    began = time.perf_counter()
    await client.v1.payment_intents.create_async(INTENT, options)
    return time.perf_counter() - began


def report(what: str, times: dict[str, list[float]], cpu: dict[str, float]) -> None:
    """Two lines."""
    base = statistics.median(times["ungoverned"])
    for name, found in times.items():
        p50, p99 = statistics.median(found), statistics.quantiles(found, n=100)[98]
        share = "" if name == "ungoverned" else f"{p50 / base:12.2f}"
        each = cpu[name] / len(found)
        print(f"{what + ', ' + name:<34}{p50 * 1e6:>9.0f}{p99 * 1e6:>9.0f}{each * 1e6:>9.0f}{share}", flush=True)


def flush(place: Path) -> float:
    """Median microseconds of writing and flushing 4 KiB."""
    took = []
    with (place / "flush").open("wb", buffering=0) as file:
        for _ in range(200):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


if __name__ == "__main__":
    main()
