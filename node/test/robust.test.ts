import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Keybrake, type Policy } from "../src/index.js";
import { microsFromUsd } from "../src/money.js";
import { createStripe } from "../src/stripe.js";
import { type Simulator, simulator } from "../src/testing.js";

const policy: Policy = { vendor: "stripe", daily_usd_cap: 250, allowed_endpoints: ["refunds.create", "reads"] };
setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;
const program = (name: string) => fileURLToPath(new URL(`./programs/${name}.mjs`, import.meta.url));

/** As many as leave a crash of the native module no place to hide, a multiple of the program's batches of eight. */
const WORKERS = 500;

let sim: Simulator;
let place: string;

beforeEach(() => {
  sim = simulator();
  place = mkdtempSync(join(tmpdir(), "keybrake-"));
});

afterEach(() => {
  sim.stop();
  rmSync(place, { recursive: true, force: true });
});

function settings(ledger = "memory:") {
  return { ledger, secrets: { stripe: sim.secret }, baseUrls: { stripe: sim.url } };
}

test("workers terminated in the middle of a refund crash nothing, and what moved stays counted", {
  timeout: 300_000,
}, async () => {
  const ledger = `sqlite:${join(place, "spend.db")}`;
  await using kb = new Keybrake(settings(ledger));
  const key = await kb.issue(policy);
  const charges = await sim.charges(WORKERS, 5000);
  const argv = [program("terminate"), sim.url, ledger, key.token, charges.join(",")];
  const { stdout } = await promisify(execFile)(process.execPath, argv);
  expect(stdout).toContain(`terminated ${WORKERS}`);
  const budgets = await kb.usage(key.id);
  const micros = budgets.flatMap(({ used, held }) => [microsFromUsd(used), microsFromUsd(held)]);
  const counted = Number(micros.reduce((sum, more) => sum + more, 0n) / 10_000n);
  const posted = (await sim.requests("/v1/refunds", "POST")).length;
  expect(posted).toBeGreaterThanOrEqual(WORKERS / 2);
  expect(counted).toBeGreaterThanOrEqual(await sim.moved());
  expect(counted).toBeLessThanOrEqual(WORKERS * 10);
});

test("a process that exits with calls in flight leaves their holds", async () => {
  const ledger = `sqlite:${join(place, "spend.db")}`;
  await sim.charges(5, 5000);
  await sim.fault("hold_until_released", { pathPrefix: "/v1/refunds", times: 5 });
  const child = spawn(process.execPath, [program("exit"), sim.url, ledger, "5"], {
    stdio: ["pipe", "inherit", "inherit"],
  });
  await sim.waitHeld(5);
  child.stdin.write("exit\n");
  const [code, signal] = await once(child, "exit");
  expect([code, signal]).toEqual([0, null]);
  await using kb = new Keybrake(settings(ledger));
  const holds = await kb.holds({ run: "run_exit" });
  expect(holds.map((hold) => hold.heldUsd)).toEqual(["1.00", "1.00", "1.00", "1.00", "1.00"]);
});

test("a call given up by its signal is aborted, and its hold stays", async () => {
  const [charge] = await sim.charges(1, 5000);
  await using kb = new Keybrake(settings());
  await using run = await kb.open({ policy });
  await sim.fault("hold_until_released", { pathPrefix: "/v1/refunds" });
  const stripe = createStripe(run, { maxNetworkRetries: 0, timeout: 500 });
  await expect(stripe.refunds.create({ charge: charge as string })).rejects.toThrow(/aborted|timeout/i);
  const [hold] = await kb.holds();
  expect([hold?.state, hold?.heldUsd]).toEqual(["unknown", "50.00"]);
});

test("a thousand calls at once need bounded memory", async () => {
  await using kb = new Keybrake(settings());
  await using run = await kb.open({ policy });
  const stripe = createStripe(run, { telemetry: false });
  await stripe.charges.list({ limit: 1 });
  collect();
  const before = process.memoryUsage().rss;
  let answered = 0;
  for (let round = 0; round < 3; round++) {
    const lists = await Promise.all(Array.from({ length: 1000 }, () => stripe.charges.list({ limit: 1 })));
    answered += lists.length;
  }
  const grown = (process.memoryUsage().rss - before) / 2 ** 20;
  expect(answered).toBe(3000);
  expect(grown).toBeLessThan(400);
});

test("the event loop turns while calls wait for the vendor", async () => {
  await using kb = new Keybrake(settings());
  await using run = await kb.open({ policy });
  const stripe = createStripe(run);
  await sim.fault("hold_until_released", { method: "GET", times: 50 });
  let answered = 0;
  const calls = Array.from({ length: 50 }, () => stripe.charges.list({ limit: 1 }).then(() => (answered += 1)));
  // These are answered in this process, by the loop that a blocking call would hold.
  await sim.waitHeld(50);
  for (let turn = 0; turn < 1000; turn += 1) await new Promise((resolve) => setImmediate(resolve));
  expect(answered).toBe(0);
  await sim.release();
  await Promise.all(calls);
  expect(answered).toBe(50);
});

test("runs and clients that are forgotten are collected, and what they spent stays counted", async () => {
  await using kb = new Keybrake(settings());
  const charges = await sim.charges(5, 5000);
  const forgotten: WeakRef<object>[] = [];
  for (const charge of charges) {
    const run = await kb.open({ policy });
    const stripe = createStripe(run);
    await stripe.refunds.create({ charge, amount: 100 });
    forgotten.push(new WeakRef(run), new WeakRef(stripe));
  }
  const left = () => forgotten.filter((reference) => reference.deref()).length;
  // The last ones may still be on the stack of what has just run.
  for (let turn = 0; turn < 100 && left() > 2; turn += 1) {
    await new Promise((resolve) => setImmediate(resolve));
    collect();
  }
  expect(left()).toBeLessThanOrEqual(2);
  await using run = await kb.open({ policy });
  expect([await run.spent(), await sim.moved()]).toEqual(["5.00", 500]);
});

test("closing a Keybrake ends its calls with an error", async () => {
  await using kb = new Keybrake(settings());
  const run = await kb.open({ policy });
  const stripe = createStripe(run);
  const lost = expect(stripe.charges.list({ limit: 1 })).rejects.toThrow(/closed/);
  await kb.close();
  await lost;
});

test("a panic in the native module is an error", async () => {
  const native = (await import("../src/native.cjs")).default;
  expect(() => native.panic()).toThrow(/^internal: a defect inside Keybrake/);
});
