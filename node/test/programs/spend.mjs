// One process of a fleet: refunds a dollar of each of its charges, eight at a time. argv: simulator URL, ledger URL,
// token, charge ids separated by commas. Prints a line for every refund that it saw succeed.
import { denied, Keybrake } from "../../dist/esm/index.js";
import { createStripe } from "../../dist/esm/stripe.js";

const [url, ledger, token, charges] = process.argv.slice(2);
const kb = new Keybrake({ ledger, secrets: { stripe: "sk_test_simulator" }, baseUrls: { stripe: url } });
const stripe = createStripe(kb, token, { maxNetworkRetries: 0, waitMs: 2_000 });
const left = charges.split(",");

async function spender() {
  for (let charge = left.pop(); charge; charge = left.pop()) {
    try {
      const refund = await stripe.refunds.create({ charge, amount: 100 });
      console.log(refund.id);
    } catch (error) {
      const refusal = denied(error);
      if (refusal?.code !== "cap_exceeded" && refusal?.code !== "cap_held") throw error;
    }
  }
}
await Promise.all(Array.from({ length: 8 }, spender));
await kb.close();
