/** The vectors under `tests/vectors`, which Rust and Python run too: words, policies, and how requests are read. */

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { governed, type Outgoing } from "../src/call.js";
import {
  type Denial,
  Denied,
  type Key,
  Keybrake,
  type Policy,
  PolicyError,
  type Ties,
  type Vendor,
} from "../src/index.js";
import { microsFromUsd } from "../src/money.js";
import { rejection } from "./fixture.js";

const folder = fileURLToPath(new URL("../../tests/vectors", import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), "keybrake-vectors-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

function files(kind: string): string[] {
  const found = readdirSync(join(folder, kind)).map((name) => join(folder, kind, name));
  expect(found).not.toEqual([]);
  return found.sort();
}

function cases<Case>(file: string): Case[] {
  const found = (JSON.parse(readFileSync(file, "utf8")) as { cases: Case[] }).cases;
  expect(found).not.toEqual([]);
  return found;
}

const secrets = { stripe: "sk_test_x", twilio: "test:AC0123456789abcdef0123456789abcdef:x", resend: "re_test_x" };

/** A ledger of its own. Nothing of these tests is ever sent: port 9 discards. */
function keybrake(): Keybrake {
  const nowhere = "http://127.0.0.1:9";
  const baseUrls = { stripe: nowhere, twilio: nowhere, resend: nowhere };
  return new Keybrake({ ledger: "memory:", secrets, baseUrls, allowLiveInTests: true });
}

test("words for the model", () => {
  const file = join(folder, "words", "for_model.json");
  for (const { denial, text } of cases<{ denial: Denial; text: string }>(file)) {
    expect(new Denied(denial).forModel(), JSON.stringify(denial)).toBe(text);
  }
});

interface PolicyCase {
  name: string;
  document?: Policy;
  json?: string;
  yaml?: string;
  toml?: string;
  narrow?: Policy[];
  binding?: { agent?: string; label?: string; run?: string };
  budgets?: { id: string; per: string; cap: number }[];
  calls?: PolicyCall[];
  error?: string;
}

interface PolicyCall {
  vendor?: string;
  method: string;
  path: string;
  fields?: Record<string, string>;
  code?: string;
  message?: string;
  customer?: string;
  account?: string;
  currency?: string;
  pins?: object;
}

describe("policies", () => {
  for (const file of files("policy")) {
    test(basename(file), async () => {
      for (const one of cases<PolicyCase>(file)) {
        // A key is narrowed once.
        if ((one.narrow?.length ?? 0) > 1) continue;
        await using kb = keybrake();
        const policy = policyOf(one);
        const issued = kb.issue(policy, tiesOf(one));
        if (one.error !== undefined) {
          const error = await rejection(issued);
          expect(error, one.name).toBeInstanceOf(PolicyError);
          // A mistake in a file is told with the file's name.
          const place = typeof policy === "string" ? `${policy}: ` : "";
          expect(unquoted((error as Error).message), one.name).toBe(unquoted(place + one.error));
          continue;
        }
        const key = await issued;
        for (const call of one.calls ?? []) await asked(kb, key, call, one.name);
        if (one.budgets === undefined) continue;
        const usage = await kb.usage(key.id);
        const shown = usage.filter((budget) => budget.livemode === false);
        const caps = shown.map(({ name, per, unit, cap }) => ({
          name,
          per,
          cap: unit === "usd" ? Number(microsFromUsd(cap)) : Number(cap),
        }));
        const expected = one.budgets.map(({ id, per, cap }) => ({ name: nameOf(id, per), per, cap }));
        expect(caps, one.name).toEqual(expected);
      }
    });
  }
});

/** What the request itself decides can be asked; customers, accounts and a refund's amount are found out later. */
async function asked(kb: Keybrake, key: Key, call: PolicyCall, name: string): Promise<void> {
  if (call.vendor || call.customer || call.account || call.currency || call.pins) return;
  if (call.path === "/v1/refunds" && call.fields?.charge && !call.fields.amount) return;
  const check = await kb.check(key, `${call.method} ${call.path}`, call.fields ?? {});
  // Not a whole request by itself; the vector names no more of it than its rule looks at.
  if (check.code === "request_malformed") return;
  if (JUDGED.includes(check.code ?? "") || JUDGED.includes(call.code ?? "")) {
    expect([check.code, name, call], check.message).toEqual([call.code ?? null, name, call]);
    if (call.message !== undefined) expect(check.message, name).toBe(call.message);
  }
}

/** Codes that the policy alone decides on. */
const JUDGED: readonly string[] = ["endpoint_not_allowed", "param_not_allowed"];

function policyOf(one: PolicyCase): Policy | string {
  for (const form of ["json", "yaml", "toml"] as const) {
    const text = one[form];
    if (text === undefined) continue;
    const place = join(scratch, `policy.${form}`);
    writeFileSync(place, text);
    return place;
  }
  return one.document as Policy;
}

/** A key is issued for a run where the policy caps each. */
function tiesOf({ narrow, binding, budgets }: PolicyCase): Ties {
  const anyRun = budgets?.some(({ id }) => id.includes("run:*")) ? { run: "any" } : {};
  return { ...anyRun, ...binding, ...(narrow?.[0] ? { narrow: narrow[0] } : {}) };
}

/** A fraction crosses as text, so that no digit of it is lost. */
function unquoted(message: string): string {
  return message.replace(/"([\d.e+-]+)"/g, "$1");
}

/** A budget's id as people read it, with its window in full. */
function nameOf(id: string, per: string): string {
  const scope = id.replace(/^\*/, "all").replace("run:*", "run:any").split("|").slice(0, -1);
  return `${scope.join(" ")} per ${per}`;
}

interface RequestCase {
  name: string;
  request: { method: string; url: string; headers?: Record<string, string | null>; body?: string };
  refused?: string;
  says?: string;
  operation?: string;
}

const TYPES: Record<string, string> = {
  stripe: "application/x-www-form-urlencoded",
  twilio: "application/x-www-form-urlencoded",
  resend: "application/json",
};

/** Opens nothing that exists, so that what is recognised is refused right after, and what is refused before says why. */
const NOTHING = { allowed_endpoints: ["GET /v9/nothing"], operation_costs: { "GET /v9/nothing": 1 } };

describe("requests cross as they are, and are read as everywhere", () => {
  for (const vendor of ["stripe", "twilio", "resend"] as const) {
    for (const file of files(vendor)) {
      test(`${vendor}/${basename(file)}`, async () => {
        await using kb = keybrake();
        const { token } = await kb.issue({ vendor, daily_usd_cap: 1, ...NOTHING });
        for (const one of cases<RequestCase>(file)) {
          const ended = await governed(kb, outgoing(vendor, token, one));
          expect(ended.kind, one.name).toBe("denied");
          if (ended.kind !== "denied") continue;
          const { code, operation, message } = ended.denied;
          if (one.refused === undefined) {
            expect([code, operation], one.name).toEqual(["endpoint_not_allowed", named(one)]);
          } else {
            expect(code, one.name).toBe(one.refused);
            expect(message, one.name).toContain(one.says ?? "");
          }
        }
        expect(await kb.holds()).toEqual([]);
      });
    }
  }
});

/** What is in no table is named by its path, and so is the old path of a refund. */
function named({ request: { method, url }, operation }: RequestCase): string {
  const path = new URL(url).pathname;
  return operation === "unknown" || /^\/v1\/charges\/.*\/refund$/.test(path) ? `${method} ${path}` : (operation ?? "");
}

function outgoing(vendor: Vendor, token: string, { request }: RequestCase): Outgoing {
  const { method, url, body = "", headers = {} } = request;
  const own: Record<string, string | null> = { Authorization: `Bearer ${token}` };
  if (body || (vendor === "stripe" && method === "POST")) own["Content-Type"] = TYPES[vendor] as string;
  const pairs = Object.entries({ ...own, ...headers }).filter((pair): pair is [string, string] => pair[1] !== null);
  return { method, url, headers: pairs, body: Buffer.from(body, "utf8"), keyOrigin: "caller" };
}
