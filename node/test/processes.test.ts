// Several processes on one ledger and one cap. The simulator's journal is the truth.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Keybrake } from "../src/index.js";
import { type Simulator, simulator } from "../src/testing.js";
import { timezone } from "./fixture.js";

const PROCESSES = 4;
const EACH = 50;
/** How many refunds one process makes at a time. */
const SPENDERS = 8;
const CAP = 120;

let sim: Simulator;
let place: string;
let ledger: string;

beforeEach(() => {
  sim = simulator();
  place = mkdtempSync(join(tmpdir(), "keybrake-"));
  ledger = `sqlite:${join(place, "spend.db")}`;
});

afterEach(() => {
  sim.stop();
  rmSync(place, { recursive: true, force: true });
});

/** Starts the fleet: each process has charges of its own, all share the key. */
async function fleet(kb: Keybrake): Promise<ChildProcess[]> {
  const allowed_endpoints = ["refunds.create", "reads"];
  const key = await kb.issue({ vendor: "stripe", daily_usd_cap: CAP, timezone, allowed_endpoints });
  const charges = await sim.charges(PROCESSES * EACH, 5000);
  const program = fileURLToPath(new URL("./programs/spend.mjs", import.meta.url));
  return Array.from({ length: PROCESSES }, (_, i) => {
    const mine = charges.slice(i * EACH, (i + 1) * EACH).join(",");
    return spawn(process.execPath, [program, sim.url, ledger, key.token, mine], {
      stdio: ["ignore", "pipe", "inherit"],
    });
  });
}

function open(): Keybrake {
  return new Keybrake({ ledger, secrets: { stripe: sim.secret }, baseUrls: { stripe: sim.url } });
}

test("four processes spend one cap exactly", async () => {
  await using kb = open();
  const children = await fleet(kb);
  const ended = await Promise.all(children.map((child) => once(child, "exit")));
  expect(ended).toEqual(children.map(() => [0, null]));
  expect(await sim.moved()).toBe(CAP * 100);
  expect(await kb.holds()).toEqual([]);
});

test("half of them killed: never above the cap, and nothing that moved is unrecorded", async () => {
  await using kb = open();
  await sim.fault("hold_until_released", { pathPrefix: "/v1/refunds", skip: EACH - 10, times: 0 });
  const children = await fleet(kb);
  // None of them can be through before all of them wait for an answer: each has more charges than are let pass.
  await sim.waitHeld(PROCESSES * SPENDERS);
  const exits = Promise.all(children.map((child) => once(child, "exit")));
  for (const child of children.slice(0, PROCESSES / 2)) child.kill("SIGKILL");
  await sim.clearFaults();
  await sim.release();
  const ways = children.map((_, i) => (i < PROCESSES / 2 ? [null, "SIGKILL"] : [0, null]));
  expect(await exits).toEqual(ways);
  const moved = await sim.moved();
  expect(moved).toBeLessThanOrEqual(CAP * 100);
  const rows = await kb.audit({ limit: 10_000 });
  const settled = rows.filter((row) => row.operation === "refunds.create" && row.policyVerdict === "allowed");
  const holds = await kb.holds();
  const recorded = settled.reduce((cents, row) => cents + Math.abs(Number(row.costUsdParsed ?? 0)) * 100, 0);
  const held = holds.reduce((cents, hold) => cents + Number(hold.heldUsd) * 100, 0);
  expect(recorded).toBeLessThanOrEqual(moved);
  expect(recorded + held).toBeGreaterThanOrEqual(moved);
});
