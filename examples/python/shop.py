"""Something to refund: a customer pays, as in any shop. Test cards only; works in the simulator and in test mode."""

from __future__ import annotations

import keybrake

SHOP: keybrake.Policy = {
    "vendor": "stripe",
    "label": "shop",
    "daily_usd_cap": 10_000,
    "allowed_endpoints": ["payment_intents.create"],
}


def paid_charges(count: int, amount: int) -> list[str]:
    """The ids of so many fresh charges of `amount` cents each."""
    charges = []
    with keybrake.run(policy=SHOP) as run:
        client = run.stripe()
        for order in range(count):
            with run.item(f"order-{order}"):
                intent = client.v1.payment_intents.create(
                    {
                        "amount": amount,
                        "currency": "usd",
                        "payment_method": "pm_card_visa",
                        "confirm": True,
                        "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
                    }
                )
            charges.append(str(intent.latest_charge))
    return charges
