// A worker in the middle of a governed call; reach.mjs holds the vendor's answer and terminates it.
import { workerData } from "node:worker_threads";
import { Keybrake } from "../../dist/esm/index.js";
import { createStripe } from "../../dist/esm/stripe.js";

const { url, charge } = workerData;
const kb = new Keybrake({ ledger: "memory:", secrets: { stripe: "sk_test_simulator" }, baseUrls: { stripe: url } });
const run = await kb.open({
  policy: { vendor: "stripe", label: "worker", daily_usd_cap: 20, allowed_endpoints: ["refunds.create", "reads"] },
});
await createStripe(run).refunds.create({ charge, amount: 100 });
