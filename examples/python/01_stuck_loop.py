"""An agent stuck in a refund loop is stopped at its cap, before the call leaves this process."""

from __future__ import annotations

from shop import paid_charges

import keybrake

policy: keybrake.Policy = {
    "vendor": "stripe",
    "label": "support-agent",
    "daily_usd_cap": 250,
    "allowed_endpoints": ["refunds.create", "reads"],
}

charges = paid_charges(10, 5000)

with keybrake.run(policy=policy, run="run_loop") as run:
    stripe = run.stripe()  # a real stripe.StripeClient; it holds a vault key, not the secret
    for charge in charges:  # the model asks for one more refund, again and again
        try:
            refund = stripe.v1.refunds.create({"charge": charge})
        except keybrake.Denied as denied:
            print("refused:", denied.for_model())
            break
        print(f"refunded ${refund.amount / 100:.2f}; spent {run.spent} of {run.cap}")

assert run.calls[-1].code == "cap_exceeded"
