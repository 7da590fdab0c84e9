// `npm run demo`: the application against a Stripe on this machine, with a ledger in a new directory.
import { spawn } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { simulator } from "keybrake/testing";

const sim = simulator();
const charges = await sim.charges(50, 1000);
const env = {
  ...process.env,
  KEYBRAKE_LEDGER: `sqlite:${join(mkdtempSync(join(tmpdir(), "next-chat-")), "spend.db")}`,
  KEYBRAKE_BASE_URL_STRIPE: sim.url,
  STRIPE_SECRET_KEY: sim.secret,
  SHOP_CHARGES: charges.join(","),
};
const next = spawn("npx", ["next", "start", "--hostname", "127.0.0.1"], { env, stdio: "inherit" });
next.once("exit", async (code) => {
  console.log(`refunds that moved money: ${await sim.movements()}, ${await sim.moved()} cents`);
  sim.stop();
  process.exitCode = code ?? 0;
});
