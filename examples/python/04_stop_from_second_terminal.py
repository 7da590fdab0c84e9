"""The person who is paged stops one run from another terminal. Its very next call is refused; other runs go on."""

from __future__ import annotations

import subprocess

from shop import paid_charges

import keybrake

policy: keybrake.Policy = {
    "vendor": "stripe",
    "label": "support-agent-2",
    "daily_usd_cap": 250,
    "allowed_endpoints": ["refunds.create", "reads"],
}

charges = paid_charges(4, 1000)

with keybrake.run(policy=policy, run="run_42") as run, keybrake.run(policy=policy, run="run_43") as other:
    run.stripe().v1.refunds.create({"charge": charges[0]})
    print("run_42 refunds; then, in another terminal:\n\n$ keybrake stop run_42 --reason 'refund loop'", flush=True)
    subprocess.run(["keybrake", "stop", "run_42", "--reason", "refund loop"], check=True)
    try:
        run.stripe().v1.refunds.create({"charge": charges[1]})
    except keybrake.Denied as denied:
        print("\nrun_42:", denied.for_model())
        code = denied.code
    refund = other.stripe().v1.refunds.create({"charge": charges[2]})
    print(f"run_43 goes on: refunded ${refund.amount / 100:.2f}")

assert code == "stopped"
