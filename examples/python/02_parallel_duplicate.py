"""Eight workers pick up the same refund at the same moment. The money moves once."""

from __future__ import annotations

import threading

from shop import paid_charges

import keybrake

policy: keybrake.Policy = {
    "vendor": "stripe",
    "label": "order-workers",
    "daily_usd_cap": 250,
    "allowed_endpoints": ["refunds.create", "reads"],
}

(charge,) = paid_charges(1, 5000)
together = threading.Barrier(8)

with keybrake.run(policy=policy, run="run_duplicate") as run:
    stripe = run.stripe(max_network_retries=3)

    def worker() -> str:
        together.wait()
        with run.step("refund-order-1001"):  # the name of the deed, the same for every worker
            return stripe.v1.refunds.create({"charge": charge, "amount": 2000}).id

    with keybrake.Executor(8) as pool:
        receipts = [future.result() for future in [pool.submit(worker) for _ in range(8)]]

    print(f"8 workers, {len(set(receipts))} refund: {receipts[0]}; spent {run.spent} of {run.cap}")
    refunds = stripe.v1.refunds.list({"charge": charge}).data
    print("Stripe knows of", [f"{refund.id} ${refund.amount / 100:.2f}" for refund in refunds])

assert len(set(receipts)) == len(refunds) == 1
