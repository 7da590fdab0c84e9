/** The Nest example, served by its own command; the simulator's journal is the truth about which money moved. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { Keybrake } from "../src/index.js";
import { type Simulator, simulator } from "../src/testing.js";

const node = join(import.meta.dirname, "..");
const directory = mkdtempSync(join(tmpdir(), "keybrake-nest-"));
const ledger = `sqlite:${join(directory, "spend.db")}`;

let sim: Simulator;
let keybrake: Keybrake;
let server: ChildProcess;
let url: string;
let complaints = "";

beforeAll(async () => {
  sim = simulator();
  keybrake = new Keybrake({ ledger, secrets: { stripe: sim.secret }, baseUrls: { stripe: sim.url } });
  const kept = Object.entries(process.env).filter(([name]) => !/^(VITEST|NODE_ENV|JEST|KEYBRAKE|STRIPE)/.test(name));
  const env = {
    ...Object.fromEntries(kept),
    PORT: "0",
    KEYBRAKE_LEDGER: ledger,
    KEYBRAKE_BASE_URL_STRIPE: sim.url,
    STRIPE_SECRET_KEY: sim.secret,
  };
  const args = ["--import", "tsx", "main.ts"];
  const cwd = join(node, "..", "examples", "node", "nest-agent");
  server = spawn(process.execPath, args, { cwd, env, stdio: ["ignore", "pipe", "pipe"] });
  server.stderr?.on("data", (text) => {
    complaints += text;
  });
  url = await new Promise((resolve, reject) => {
    let said = "";
    server.stdout?.on("data", (text) => {
      said += text;
      const found = /^(http:\/\/\S+)\n/m.exec(said)?.[1];
      if (found) resolve(found);
    });
    server.once("exit", () => reject(new Error(`the server ended: ${complaints}`)));
  });
});

afterAll(async () => {
  if (server.exitCode === null && server.signalCode === null) {
    const gone = new Promise((resolve) => server.once("exit", resolve));
    server.kill();
    await gone;
  }
  await keybrake.close();
  sim.stop();
  rmSync(directory, { recursive: true, force: true });
});

function post(path: string, charges: string[] = [], more: RequestInit = {}): Promise<Response> {
  const headers = { "Content-Type": "application/json" };
  return fetch(`${url}/chats/${path}`, { method: "POST", headers, body: JSON.stringify({ charges }), ...more });
}

test("ten chats at once: each under its own cap, attributed, the model told why", async () => {
  const charges = await sim.charges(40, 1000);
  const chats = Array.from({ length: 10 }, async (_, chat) => {
    const response = await post(`${chat}/refunds`, charges.slice(chat * 4, chat * 4 + 4));
    return (await response.json()) as { code?: string; words?: string }[];
  });
  for (const said of await Promise.all(chats)) {
    expect(said.map(({ code }) => code)).toEqual([undefined, undefined, "cap_exceeded"]);
    expect(said[2]?.words).toMatch(/^NOT DONE\. Spending limit reached/);
  }
  expect(await sim.movements()).toBe(20);
  expect(await (await post("7/whoami")).json()).toEqual({ run: "chat_7" });
  const rows = await keybrake.audit({ run: "chat_3" });
  expect(rows.filter(({ costUsdParsed }) => costUsdParsed === "-10.00")).toHaveLength(2);
});

test("a client that goes away ends the agent after the call that is under way", async () => {
  const charges = await sim.charges(2, 1000);
  const before = await sim.movements();
  await sim.fault("hold_until_released", { pathPrefix: "/v1/refunds", times: 1 });
  const leaving = new AbortController();
  const asked = post("gone/refunds", charges, { signal: leaving.signal }).catch((error: Error) => error.name);
  await sim.waitHeld();
  const [hold] = await keybrake.holds({ run: "chat_gone" });
  leaving.abort();
  expect(await asked).toBe("AbortError");
  // What the ledger says: a stop finds no open key of that run any more.
  await vi.waitFor(async () => {
    const stop = await keybrake.stop({ run: "chat_gone" });
    await keybrake.resume({ run: "chat_gone" });
    expect(stop.keysRefused).toBe(0);
  }, 30_000);
  await sim.release();
  await vi.waitFor(async () => expect(await keybrake.holds({ run: "chat_gone" })).toEqual([]), 30_000);
  const [row] = await keybrake.audit({ callId: hold?.callId ?? "" });
  expect(row).toMatchObject({ policyVerdict: "allowed", costUsdParsed: "-10.00" });
  expect((await sim.movements()) - before).toBe(1);
});

test("no key is issued while a run is stopped, and the server ends in order", async () => {
  await keybrake.stop({ run: "chat_x", reason: "loop" });
  const response = await post("x/refunds", await sim.charges(1, 1000));
  expect(response.status).toBe(403);
  expect(await response.text()).toMatch(/STOPPED by an operator/);
  const gone = new Promise((resolve) => server.once("exit", (code, signal) => resolve(code ?? signal)));
  server.kill("SIGTERM");
  expect(await gone).toBe("SIGTERM");
  expect(complaints).toBe("");
});
