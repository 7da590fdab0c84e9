/** Every TypeScript example of docs/node.md and the README runs, in order, against a simulator, as a reader would run it. */

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { simulator } from "../src/testing.js";

const node = dirname(dirname(fileURLToPath(import.meta.url)));
// Inside the package, so that `keybrake` and the SDKs are found as in a user's project.
const folder = mkdtempSync(join(node, "test", ".docs-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const tsx = createRequire(import.meta.url).resolve("tsx/cli");

function blocks(file: string): string[] {
  const text = readFileSync(join(node, "..", file), "utf8");
  return [...text.matchAll(/^```ts\n([\s\S]*?)^```$/gm)].map((found) => found[1] as string);
}

/** What its examples print, line by line. */
const PRINTED = [
  /^re_\w+ 50\.00 of 250\.00 left 200\.00$/,
  /^undefined$/,
  /^cap_exceeded 20\.00 \d{4}-\d\d-\d\dT00:00:00\.000Z$/,
  /^NOT DONE\. Spending limit reached: this refund of \$50\.00 was refused .* Tell the user\.$/,
  /^SM[0-9a-f]{32}$/,
  /^cap_exceeded$/,
  /^[0-9a-f]{8}-[0-9a-f-]{27}$/,
  /^200$/,
  /^429 cap_exceeded$/,
  /^permit 200$/,
];

test.for([["docs/node.md"]])("%s", { timeout: 150_000 }, ([file]) => {
  const found = blocks(file as string);
  expect(found.length).toBeGreaterThan(0);
  using stripe = simulator();
  using twilio = simulator({ vendor: "twilio" });
  using resend = simulator({ vendor: "resend" });
  const [account, token] = twilio.secret.split(":");
  for (const [index, block] of found.entries()) writeFileSync(join(folder, `example-${index + 1}.mts`), block);
  const all = found.map((_, index) => `await import("./example-${index + 1}.mts");`);
  writeFileSync(join(folder, "all.mts"), all.join("\n"));
  const env = {
    ...process.env,
    VITEST: "",
    KEYBRAKE_LEDGER: `sqlite:${join(folder, `${basename(file as string)}.db`)}`,
    KEYBRAKE_JOURNAL_DIR: join(folder, "journal"),
    KEYBRAKE_BASE_URL_STRIPE: stripe.url,
    STRIPE_SECRET_KEY: stripe.secret,
    KEYBRAKE_BASE_URL_TWILIO: twilio.url,
    TWILIO_ACCOUNT_SID: account,
    TWILIO_AUTH_TOKEN: token,
    KEYBRAKE_BASE_URL_RESEND: resend.url,
    RESEND_API_KEY: resend.secret,
  };
  const ran = spawnSync(process.execPath, [tsx, join(folder, "all.mts")], { env, encoding: "utf8", timeout: 120_000 });
  expect(ran.stderr + (ran.error ?? "")).toBe("");
  expect(ran.status).toBe(0);
  const lines = ran.stdout.trimEnd().split("\n");
  expect(lines).toEqual(PRINTED.map((line) => expect.stringMatching(line)));
});
