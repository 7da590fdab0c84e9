"""A worker is killed right after it refunded. The one that takes over gets the receipt, not a second refund."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from shop import paid_charges

import keybrake

policy: keybrake.Policy = {
    "vendor": "stripe",
    "label": "night-batch",
    "daily_usd_cap": 250,
    "allowed_endpoints": ["refunds.create", "reads"],
}


def work(charge: str, *, crash: bool) -> None:
    """One worker: a key of its own, the same run and step."""
    with keybrake.run(policy=policy, run="run_crash") as run, run.step("refund-order-1002"):
        refund = run.stripe().v1.refunds.create({"charge": charge, "amount": 3000})
        call = run.calls[-1]
        print(f"  {refund.id} ${refund.amount / 100:.2f}  replayed: {call.replayed}  spent {run.spent}", flush=True)
        if crash:
            os.kill(os.getpid(), signal.SIGKILL)  # before anything could be written down


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1], crash=True)
    (charge,) = paid_charges(1, 5000)
    print("first worker:", flush=True)
    first = subprocess.run([sys.executable, __file__, charge], check=False)
    print(f"  killed by signal {-first.returncode}; the next worker takes over:", flush=True)
    work(charge, crash=False)
