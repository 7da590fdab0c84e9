import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Keybrake, type Policy } from "../src/index.js";
import { microsFromUsd } from "../src/money.js";
import { createStripe } from "../src/stripe.js";
import { type Simulator, simulator } from "../src/testing.js";
import { collect, left, timezone } from "./fixture.js";

const policy: Policy = {
  vendor: "stripe",
  daily_usd_cap: 250,
  timezone,
  allowed_endpoints: ["refunds.create", "reads"],
};
const program = (name: string) => fileURLToPath(new URL(`./programs/${name}.mjs`, import.meta.url));

/**
 * As many as leave a crash of the native module no place to hide: whole pairs of the program's batches of four, of which
 * one is terminated while the vendor has its calls.
 */
const WORKERS = 504;

/** What a thousand calls may leave behind in a process that also keeps the simulator's journal of them. */
const GROWTH_MIB = 32;

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

test("a thousand calls at once need memory once, not each time", async () => {
  await using kb = new Keybrake(settings());
  await using run = await kb.open({ policy });
  const stripe = createStripe(run, { telemetry: false });
  const round = async () => {
    const lists = await Promise.all(Array.from({ length: 1000 }, () => stripe.charges.list({ limit: 1 })));
    expect(lists).toHaveLength(1000);
    collect();
    return process.memoryUsage().rss / 2 ** 20;
  };
  // The first ones make what all of them use: connections, threads, compiled code.
  await round();
  await round();
  const before = await round();
  const after = [await round(), await round(), await round()];
  expect(Math.min(...after) - before).toBeLessThan(GROWTH_MIB);
});

/** Refunds by a run and a client that only this function ever held. */
async function forgetful(kb: Keybrake, charge: string): Promise<WeakRef<object>[]> {
  const run = await kb.open({ policy });
  const stripe = createStripe(run);
  await stripe.refunds.create({ charge, amount: 100 });
  return [new WeakRef(run), new WeakRef(stripe)];
}

test("runs and clients that are forgotten are collected, and what they spent stays counted", async () => {
  await using kb = new Keybrake(settings());
  const charges = await sim.charges(5, 5000);
  const forgotten: WeakRef<object>[] = [];
  for (const charge of charges) forgotten.push(...(await forgetful(kb, charge)));
  expect(await left(forgotten)).toBe(0);
  await using run = await kb.open({ policy });
  expect([await run.spent(), await sim.moved()]).toEqual(["5.00", 500]);
});

test("a panic in the native module is an error", async () => {
  const native = (await import("../src/native.cjs")).default;
  expect(() => native.panic()).toThrow(/^internal: a defect inside Keybrake/);
});
