// Exits with calls in flight. argv: simulator URL, ledger URL, how many calls.
import { Keybrake } from "../../dist/esm/index.js";
import { createStripe } from "../../dist/esm/stripe.js";

const [url, ledger, count] = process.argv.slice(2);
const kb = new Keybrake({ ledger, secrets: { stripe: "sk_test_simulator" }, baseUrls: { stripe: url } });
const policy = { vendor: "stripe", daily_usd_cap: 250, allowed_endpoints: ["refunds.create", "reads"] };
const key = await kb.issue(policy, { run: "run_exit" });
const stripe = createStripe(kb, key, { maxNetworkRetries: 0 });
const charges = await stripe.charges.list({ limit: Number(count) });
for (const charge of charges.data) stripe.refunds.create({ charge: charge.id, amount: 100 }).catch(() => {});
process.stdin.once("data", () => process.exit(0));
