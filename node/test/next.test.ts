/**
 * The Next.js example as its users get it: built by `next build`, served by `next start`, used in a real browser. The
 * simulator's journal is the truth about which money moved.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { type Simulator, simulator } from "../src/testing.js";

const run = promisify(execFile);
const node = join(import.meta.dirname, "..");
const app = join(node, "..", "examples", "node", "next-chat");
const next = join(node, "node_modules", "next", "dist", "bin", "next");
const WAIT = 30_000;

let sim: Simulator;
let directory: string;
let ledger: string;
let server: ChildProcess;
let browser: Browser;
let page: Page;
let url: string;
/** What went wrong in the page, and what the server complained of, since the last test. */
const trouble: string[] = [];

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "keybrake-next-"));
  ledger = `sqlite:${join(directory, "spend.db")}`;
  await run(process.execPath, [next, "build"], { cwd: app, env: environment({}) }).catch((error) => {
    throw new Error(`next build failed:\n${error.stdout}\n${error.stderr}`);
  });
  sim = simulator();
  const charges = await sim.charges(50, 1000);
  await serve({
    KEYBRAKE_LEDGER: ledger,
    KEYBRAKE_BASE_URL_STRIPE: sim.url,
    STRIPE_SECRET_KEY: sim.secret,
    SHOP_CHARGES: charges.join(","),
  });
  browser = await chromium.launch({ executablePath: chromiumPath(), args: ["--no-sandbox", "--disable-gpu"] });
  page = await browser.newPage();
  page.setDefaultTimeout(WAIT);
  page.on("pageerror", (error) => trouble.push(`page: ${error.message}`));
  await page.goto(url);
}, 300_000);

afterEach(() => expect(trouble.splice(0)).toEqual([]));

afterAll(async () => {
  await browser?.close();
  if (server?.exitCode === null && server.signalCode === null) {
    const gone = new Promise((resolve) => server.once("exit", resolve));
    server.kill();
    await gone;
  }
  sim?.stop();
  rmSync(directory, { recursive: true, force: true });
});

/** This process's environment without what a test runner puts into it. */
function environment(more: Record<string, string>): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(([name]) => !/^(VITEST|NODE_ENV|JEST|KEYBRAKE|STRIPE)/.test(name));
  return { ...Object.fromEntries(kept), NEXT_TELEMETRY_DISABLED: "1", ...more } as NodeJS.ProcessEnv;
}

/** Starts the server on a free port; it says which. */
async function serve(settings: Record<string, string>): Promise<void> {
  const args = [next, "start", "--hostname", "127.0.0.1", "--port", "0"];
  server = spawn(process.execPath, args, { cwd: app, env: environment(settings), stdio: ["ignore", "pipe", "pipe"] });
  server.stderr?.on("data", (text) => {
    // Warnings of Node's own, which differ between its versions, are none.
    if (!/Warning: /.test(String(text))) trouble.push(`server: ${text}`);
  });
  url = await new Promise((resolve, reject) => {
    let said = "";
    server.stdout?.on("data", (text) => {
      said += text;
      const found = /http:\/\/127\.0\.0\.1:\d+/.exec(said);
      if (found && said.includes("Ready")) resolve(found[0]);
    });
    server.once("exit", () => reject(new Error(`next start ended: ${said} ${trouble.join("")}`)));
  });
}

function chromiumPath(): string {
  const names = ["chromium", "chromium-browser", "google-chrome"];
  const places = (process.env.PATH ?? "").split(delimiter).flatMap((place) => names.map((name) => join(place, name)));
  const found = process.env.CHROMIUM ?? places.find((place) => existsSync(place));
  if (!found) throw new Error("no chromium on the PATH: `make setup-node` says how to get it (or set CHROMIUM)");
  return found;
}

/** A cell of a chat's row, once it says this. */
async function cell(chat: number, field: string, text: RegExp): Promise<void> {
  const row = page.locator(`tr[data-run="chat_${chat}"] [data-field="${field}"]`);
  await row.filter({ hasText: text }).waitFor();
}

async function press(chat: number, button: string): Promise<void> {
  await page.locator(`tr[data-run="chat_${chat}"]`).getByRole("button", { name: button, exact: true }).click();
}

/** Keys that the ledger still takes, by the command line of the installed package. */
async function openKeys(): Promise<{ id: string }[]> {
  const cli = join(app, "..", "node_modules", "keybrake", "bin", "keybrake.cjs");
  const { stdout } = await run(process.execPath, [cli, "keys", "list", "--json", "--ledger", ledger]);
  return JSON.parse(stdout).keys;
}

test("the native module is in the trace of the build, for standalone and serverless output", () => {
  const trace = readFileSync(join(app, ".next", "server", "app", "api", "chat", "route.js.nft.json"), "utf8");
  expect(trace).toMatch(/node_modules\/@keybrake\/[a-z0-9-]+\/keybrake\.[a-z0-9-]+\.node"/);
});

test("a Server Action refunds under the chat's cap", async () => {
  await press(5, "Refund last");
  await cell(5, "said", /^refunded: re_/);
  await cell(5, "spent", /^10\.00$/);
  expect(await sim.movements()).toBe(1);
  expect(await openKeys()).toEqual([]);
});

test("a user who goes away in the middle of a refund: the key is revoked and the loop ends", async () => {
  await sim.fault("hold_until_released", { pathPrefix: "/v1/refunds", times: 1 });
  const leaving = new AbortController();
  const messages = [{ id: "q", role: "user", parts: [{ type: "text", text: "Refund all my orders" }] }];
  const response = await fetch(`${url}/api/chat?chat=6`, {
    method: "POST",
    body: JSON.stringify({ messages }),
    headers: { "Content-Type": "application/json" },
    signal: leaving.signal,
  });
  await sim.waitHeld();
  expect(await openKeys()).toHaveLength(1);
  leaving.abort();
  await expect(response.text()).rejects.toThrow();
  await vi.waitFor(async () => expect(await openKeys()).toEqual([]), WAIT);
  await sim.release();
  // What was under way is settled; nothing follows it.
  await cell(6, "spent", /^10\.00$/);
  await cell(6, "refunds", /^1$/);
  expect(await sim.movements()).toBe(2);
});

test("a stop pressed in the middle of a chat: its next call is refused and its stream ends", async () => {
  await sim.fault("hold_until_released", { pathPrefix: "/v1/refunds", times: 1 });
  await press(7, "Start");
  await sim.waitHeld();
  await press(7, "Stop");
  await cell(7, "state", /^stopped: stopped on the page$/);
  await sim.release();
  await cell(7, "said", /^\(ended before it said anything\)$/);
  await cell(7, "refused", /stopped/);
  expect(await sim.movements()).toBe(3);
  // No key is issued while it stands, neither for a chat nor for an action; other runs go on.
  await press(7, "Start");
  await cell(7, "said", /"code":"stopped","message":"STOPPED by an operator/);
  await press(7, "Refund last");
  await cell(7, "said", /^refused: stopped$/);
  await press(7, "Resume");
  await cell(7, "state", /^open$/);
});

test("ten chats at once: each under its own cap, the model told why, all of it on the page", {
  timeout: 180_000,
}, async () => {
  await page.getByRole("button", { name: "Start all" }).click();
  for (let chat = 1; chat <= 10; chat += 1) {
    await cell(chat, "said", /^I was told: NOT DONE\. Spending limit reached: this refund of \$10\.00 was refused/);
    await cell(chat, "spent", /^20\.00$/);
    await cell(chat, "cap", /^25\.00$/);
    await cell(chat, "remaining", /^5\.00$/);
    await cell(chat, "refused", /cap_exceeded/);
  }
  expect(await sim.movements()).toBe(20);
  expect(await sim.moved()).toBe(20_000);
  const rows = page.locator("#audit tr", { hasText: "refunds.create" });
  await expect.poll(() => rows.count(), { timeout: WAIT }).toBeGreaterThanOrEqual(30);
  // A chat's last words are on the page before its key is revoked.
  await vi.waitFor(async () => expect(await openKeys()).toEqual([]), WAIT);
});
