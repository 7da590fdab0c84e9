// Closes a Keybrake while a permit of it is open, then says how it ended. argv: simulator URL.
import { Keybrake } from "../../dist/esm/index.js";

const [url] = process.argv.slice(2);
const kb = new Keybrake({ ledger: "memory:", secrets: { stripe: "sk_test_simulator" }, baseUrls: { stripe: url } });
const run = await kb.open({ policy: { vendor: "stripe", daily_usd_cap: 250, allowed_endpoints: ["refunds.create"] } });
const permits = [];
for (const charge of ["ch_1", "ch_2"]) {
  const body = new URLSearchParams({ charge });
  permits.push((await run.authorize("https://api.stripe.com/v1/refunds", { method: "POST", body })).permit);
}
await kb.close();
const told = await Promise.allSettled([permits[0].lost(), permits[1].neverSent()]);
console.log(...told.map(({ reason }) => reason?.name));
