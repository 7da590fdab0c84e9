import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Keybrake, type Policy } from "../src/index.js";
import { createStripe } from "../src/stripe.js";
import { type Simulator, simulator } from "../src/testing.js";

const policy: Policy = { vendor: "stripe", daily_usd_cap: 250, allowed_endpoints: ["refunds.create", "reads"] };
const program = (name: string) => fileURLToPath(new URL(`./programs/${name}.mjs`, import.meta.url));

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

test("five hundred workers terminated during a call crash nothing", { timeout: 300_000 }, async () => {
  const { stdout } = await promisify(execFile)(process.execPath, [program("terminate"), sim.url, "500"]);
  expect(stdout).toContain("terminated 500");
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

test("a thousand calls at once need bounded memory and do not block the event loop", async () => {
  await using kb = new Keybrake(settings());
  await using run = await kb.open({ policy });
  const stripe = createStripe(run);
  await stripe.charges.list({ limit: 1 });
  globalThis.gc?.();
  const before = process.memoryUsage().rss;
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  for (let round = 0; round < 3; round++) {
    await Promise.all(Array.from({ length: 1000 }, () => stripe.charges.list({ limit: 1 })));
  }
  delay.disable();
  const grown = (process.memoryUsage().rss - before) / 2 ** 20;
  console.log(`memory grew by ${grown.toFixed(0)} MiB; loop delay p99 ${(delay.percentile(99) / 1e6).toFixed(1)} ms`);
  expect(run.calls).toHaveLength(3001);
  expect(grown).toBeLessThan(400);
});

test("handles that are forgotten are collected without harm", async () => {
  for (let i = 0; i < 50; i++) {
    const kb = new Keybrake(settings());
    const run = await kb.open({ policy });
    createStripe(run);
    await run.spent();
  }
  globalThis.gc?.();
  await using kb = new Keybrake(settings());
  await using run = await kb.open({ policy });
  expect(await run.spent()).toBe("0.00");
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
