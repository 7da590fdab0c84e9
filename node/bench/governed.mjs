// Governed against ungoverned calls, in interleaved pairs on the same simulator: stripe-node's default client and the
// platform's fetch, at 1 and at 32 in flight. Prints p50, p99 and CPU of a call.
//
// Run it with `make bench`. One call is `payment_intents.create`, confirmed, with an idempotency key of the caller's: a write
// that reserves and settles money, and needs no lookup. CALLS=1000 sets the length.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import Stripe from "stripe";
import { createFetch } from "../dist/esm/fetch.js";
import { Keybrake } from "../dist/esm/index.js";
import { createStripe } from "../dist/esm/stripe.js";

const CALLS = Number(process.env.CALLS ?? 1000);
const WARM = 320;
const SECRET = "sk_test_simulator";
const POLICY = { vendor: "stripe", daily_usd_cap: 100_000_000, allowed_endpoints: ["payment_intents.create"] };
const PAYMENT = { amount: 500, currency: "usd", confirm: true, payment_method: "pm_card_visa" };

const command = fileURLToPath(new URL("../bin/keybrake.cjs", import.meta.url));
const simulator = spawn(process.execPath, [command, "simulate", "--port", "0"], {
  stdio: ["ignore", "pipe", "inherit"],
});
const place = mkdtempSync(join(tmpdir(), "keybrake-bench-"));
try {
  const url = await listening(simulator.stdout);
  console.log(`${"".padEnd(46)}   p50 us   p99 us   cpu us   p50 of ungoverned`);
  for (const ledger of ["memory:", `sqlite:${join(place, "spend.db")}`]) {
    const kb = new Keybrake({ ledger, secrets: { stripe: SECRET }, baseUrls: { stripe: url } });
    const key = await kb.issue(POLICY);
    for (const inFlight of [1, 32]) {
      const kind = `${ledger.split(":")[0]}, ${inFlight} in flight`;
      await pairs(`stripe-node, ${kind}`, inFlight, bySdk(plainStripe(url)), bySdk(createStripe(kb, key)));
      await pairs(
        `fetch, ${kind}`,
        inFlight,
        byFetch(fetch, url, SECRET),
        byFetch(createFetch(kb, key), "https://api.stripe.com", key.token),
      );
    }
    await kb.close();
  }
} finally {
  simulator.kill();
  await once(simulator, "exit");
  rmSync(place, { recursive: true, force: true });
}

async function listening(output) {
  for await (const line of createInterface({ input: output })) {
    const found = /http:\/\/127\.0\.0\.1:\d+/.exec(line);
    if (found) return found[0];
  }
  throw new Error("the simulator did not start");
}

function plainStripe(url) {
  const { hostname, port } = new URL(url);
  return new Stripe(SECRET, { host: hostname, port, protocol: "http" });
}

function bySdk(stripe) {
  return (idempotencyKey) => stripe.paymentIntents.create(PAYMENT, { idempotencyKey });
}

function byFetch(send, base, token) {
  return async (key) => {
    const reply = await send(`${base}/v1/payment_intents`, {
      method: "POST",
      headers: { Authorization: `Bearer ${token}`, "Idempotency-Key": key },
      body: new URLSearchParams({ ...PAYMENT, amount: `${PAYMENT.amount}`, confirm: "true" }),
    });
    if (reply.status !== 200) throw new Error(`${reply.status}: ${await reply.text()}`);
    await reply.json();
  };
}

/** Measures the two sides in turn: call by call alone, else round by round. */
async function pairs(what, inFlight, ungoverned, governed) {
  const sides = {
    ungoverned: { call: ungoverned, times: [], cpu: 0 },
    governed: { call: governed, times: [], cpu: 0 },
  };
  const rounds = Math.ceil((CALLS + WARM) / inFlight);
  for (let round = 0; round < rounds; round++) {
    for (const [name, side] of Object.entries(sides)) {
      const used = process.cpuUsage();
      const key = (n) => `${what}-${name}-${round}-${n}-${process.pid}`.replaceAll(/[^\w-]/g, "_");
      const took = await Promise.all(Array.from({ length: inFlight }, (_, n) => timed(side.call, key(n))));
      if (round * inFlight < WARM) continue;
      const { user, system } = process.cpuUsage(used);
      side.times.push(...took);
      side.cpu += user + system;
    }
  }
  const base = quantile(sides.ungoverned.times, 0.5);
  for (const [name, { times, cpu }] of Object.entries(sides)) {
    const p50 = quantile(times, 0.5);
    const cells = [p50, quantile(times, 0.99), cpu / times.length].map((us) => us.toFixed(0).padStart(9)).join("");
    const share = name === "governed" ? (p50 / base).toFixed(2).padStart(12) : "";
    console.log(`${`${what}, ${name}`.padEnd(46)}${cells}${share}`);
  }
}

async function timed(call, key) {
  const began = process.hrtime.bigint();
  await call(key);
  return Number(process.hrtime.bigint() - began) / 1000;
}

function quantile(times, share) {
  const sorted = [...times].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
}
