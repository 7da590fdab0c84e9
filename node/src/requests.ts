/** What is asked of the engine, and how its answers read. */

import { userInfo } from "node:os";
import { isAbsolute, resolve } from "node:path";
import { types } from "node:util";
import { ConfigError, PolicyError } from "./errors.js";
import { plain, usdFromMicros } from "./money.js";
import { flagOf, refuseOdd, refuseUndefined, refuseUnknown, runOf, shown, textOf, wholeOf } from "./options.js";
import {
  type AuditRow,
  type Budget,
  type BudgetEntry,
  type BudgetView,
  budgetFrom,
  type Check,
  type Hold,
  type Per,
  type Policy,
  type State,
  type StopInfo,
  type StopResult,
  type Vendor,
} from "./types.js";

/** A policy: a document, or the path of a JSON, YAML or TOML file. */
export type PolicyLike = Policy | string;

/** What binds a key besides its policy. */
export interface Ties {
  run?: string;
  /** The same as `run`, by its name in the audit. */
  agent_run_id?: string;
  agent?: string;
  label?: string;
  group?: string | readonly string[];
  /** A narrower policy on top: lists intersect, caps take the lower. */
  narrow?: Policy;
  /** A lifetime such as `"2h"`. */
  expiresIn?: string;
}

/** What rows of the audit to read; the newest `limit` that match, oldest first. */
export interface AuditFilter {
  run?: string;
  /** The same as `run`, by its name in the audit. */
  agent_run_id?: string;
  callId?: string;
  keyId?: string;
  agent?: string;
  denied?: boolean;
  since?: Date;
  limit?: number;
}

/** What a stop covers: exactly one of these. */
export interface Scope {
  run?: string;
  /** The same as `run`, by its name in the audit. */
  agent_run_id?: string;
  agent?: string;
  label?: string;
  group?: string;
  vendor?: string;
  key?: string;
  all?: true;
}

const SCOPES = ["run", "agent", "label", "group", "vendor", "key"] as const;
/** The names of `Ties`. */
export const TIES = ["run", "agent_run_id", "agent", "label", "group", "narrow", "expiresIn"] as const;
/** The names of `Scope`. */
export const SCOPE_NAMES = [...SCOPES, "agent_run_id", "all"] as const;

export function policyArgument(policy: PolicyLike): Record<string, unknown> {
  if (typeof policy === "string") return { policy_file: isAbsolute(policy) ? policy : resolve(policy) };
  if (typeof policy !== "object" || policy === null)
    throw new PolicyError(`policy: a document or the path of a file, not ${String(policy)}`);
  return { policy: documentOf(policy, "policy") };
}

const VENDORS: readonly Vendor[] = ["stripe", "twilio", "resend"];

/** Where calls go instead of to the vendors themselves, by vendor. */
export function baseUrlsArgument(given: Partial<Record<Vendor, string>>): Record<string, string> {
  refuseUnknown(given, VENDORS, "baseUrls");
  refuseUndefined(given, "baseUrls");
  // The variables are read once, here: what the guard of tests goes by is what the engine uses, whatever they say later.
  const urls = VENDORS.map((vendor) => {
    const byVariable = process.env[`KEYBRAKE_BASE_URL_${vendor.toUpperCase()}`];
    return [vendor, textOf(given, vendor, "baseUrls", "http://127.0.0.1:12111") ?? byVariable];
  });
  return Object.fromEntries(urls.filter(([, url]) => url)) as Record<string, string>;
}

/** A document as the engine reads it; a mistake names its place. */
export function documentOf(fields: object, what: string): unknown {
  if (typeof fields !== "object" || fields === null)
    throw new PolicyError(`${what}: a document, not ${String(fields)}`);
  try {
    return plain(fields, what);
  } catch (error) {
    throw new PolicyError(error instanceof Error ? error.message : String(error));
  }
}

export function tiesArgument(ties: Ties, what: string): Record<string, unknown> {
  refuseUnknown(ties, TIES, what);
  refuseUndefined(ties, what);
  const { narrow } = ties;
  return {
    run: runOf(ties, what),
    agent: textOf(ties, "agent", what, "support-v2"),
    label: textOf(ties, "label", what, "support"),
    groups: groupsOf(ties, what),
    narrow: narrow === undefined ? null : documentOf(narrow, "narrow"),
    expires_in: textOf(ties, "expiresIn", what, "2h"),
    by: who(),
  };
}

function groupsOf({ group }: Ties, what: string): string[] {
  const given: unknown[] = Array.isArray(group) ? Array.from(group) : group === undefined ? [] : [group];
  return given.map((item) => {
    if (typeof item === "string" && item !== "") return item;
    throw new ConfigError(`${what}: group is a text such as "tenant:acme", or a list of them, not ${shown(item)}`);
  });
}

const WINDOWS: readonly Per[] = ["hour", "day", "rolling_24h", "month", "run", "lifetime"];
const COUNTS = ["calls", "writes", "sends"] as const;
const BUDGET = ["usd", ...COUNTS, "per", "scope", "vendor", "timezone"] as const;

/** One budget of a scope, for `set_budgets`. */
export function budgetArgument(scope: string, entry: BudgetEntry): unknown {
  const what = `a budget of ${scope}`;
  refuseUnknown(entry, BUDGET, what);
  for (const name of COUNTS) wholeOf(entry[name], `${what}: ${name}`, 0, Number.MAX_SAFE_INTEGER);
  for (const name of ["vendor", "timezone"] as const) textOf(entry, name, what, name === "vendor" ? "stripe" : "UTC");
  if (!WINDOWS.includes(entry.per))
    throw new ConfigError(`${what}: per is one of ${WINDOWS.join(", ")}, not ${shown(entry.per)}`);
  return documentOf({ scope, ...entry }, "budget");
}

/** The id of a key, as `issue` answers it. */
export function keyIdOf(id: string, what: string): string {
  if (typeof id === "string" && id !== "") return id;
  throw new ConfigError(`${what}: give the id of a key (key.id, run.keyId), not ${shown(id)}`);
}

/** Which of the ties are given. */
export function tiesGiven(ties: Ties): string[] {
  return TIES.filter((name) => name in ties);
}

/** Who does this, for the audit. */
export function who(): string {
  try {
    return userInfo().username;
  } catch {
    return "node";
  }
}

export function scopeArgument(scope: Scope, what: string): Record<string, string> {
  refuseUnknown(scope, SCOPE_NAMES, what);
  refuseUndefined(scope, what);
  const given = SCOPES.map((kind) => [kind, kind === "run" ? runOf(scope, what) : textOf(scope, kind, what)] as const);
  const [first, ...others] = [
    ...given.filter(([, id]) => id !== null),
    ...(scope.all === true ? [["all", null] as const] : []),
  ];
  if (!first || others.length > 0) {
    const names = SCOPES.join(", ");
    const count = others.length + (first ? 1 : 0);
    throw new ConfigError(`${what}: say what with exactly one of ${names}, or all: true; got ${count}`);
  }
  const [kind, id] = first;
  return id === null ? { kind } : { kind, id };
}

function sinceMs(since: Date | undefined): number | null {
  if (since === undefined) return null;
  if (!types.isDate(since) || Number.isNaN(since.getTime()))
    throw new ConfigError(`audit: since is a valid Date, not ${shown(since)}`);
  return since.getTime();
}

const AUDIT = ["run", "agent_run_id", "callId", "keyId", "agent", "denied", "since", "limit"] as const;

export function auditArgument(filter: AuditFilter): Record<string, unknown> {
  refuseUnknown(filter, AUDIT, "audit");
  const { denied, since, limit } = filter;
  return {
    run: runOf(filter, "audit"),
    call_id: textOf(filter, "callId", "audit"),
    key_id: textOf(filter, "keyId", "audit"),
    agent: textOf(filter, "agent", "audit"),
    denied: denied === undefined ? null : flagOf(denied, "audit: denied"),
    since_ms: sinceMs(since),
    limit: wholeOf(limit, "audit: limit", 0, Number.MAX_SAFE_INTEGER) ?? 1000,
  };
}

const STATES: readonly State[] = ["held", "unknown", "pending", "provisional", "settled", "voided"];

export function holdsArgument(filter: { run?: string; agent_run_id?: string; state?: State }): Record<string, unknown> {
  refuseUnknown(filter, ["run", "agent_run_id", "state"], "holds");
  const { state = null } = filter;
  if (state !== null && !STATES.includes(state))
    throw new ConfigError(`holds: state is one of ${STATES.join(", ")}, not ${shown(state)}`);
  return { run: runOf(filter, "holds"), state };
}

/** A call such as `"POST /v1/refunds"` with its fields, encoded as the vendor's SDK would. */
export function checkedCall(token: string, endpoint: string, fields: object, vendor: string): Record<string, string> {
  const gap = String(endpoint).indexOf(" ");
  const [method, path] = [endpoint.slice(0, gap).toUpperCase(), endpoint.slice(gap + 1)];
  if (gap < 1 || !path.startsWith("/")) {
    throw new ConfigError(
      `${JSON.stringify(endpoint)} is no endpoint: write a method and a path, such as "POST /v1/refunds"`,
    );
  }
  refuseOdd(fields, "check: its fields");
  const call = { token, vendor, method };
  if (JSON_VENDORS.includes(vendor) && !IN_URL.includes(method)) {
    const body = Object.keys(fields).length > 0 ? JSON.stringify(fields) : "";
    return { ...call, path, body, content_type: "application/json" };
  }
  const text = [...flat("", fields)]
    .map(([name, value]) => `${bracketed(name)}=${encodeURIComponent(value)}`)
    .join("&");
  return IN_URL.includes(method)
    ? { ...call, path: text ? `${path}?${text}` : path, body: "" }
    : { ...call, path, body: text };
}

/** Methods whose fields stand in the URL. */
const IN_URL = ["GET", "HEAD", "DELETE"];
/** Vendors whose SDKs send JSON; the others send forms. */
const JSON_VENDORS: readonly string[] = ["resend"];

function bracketed(name: string): string {
  return encodeURIComponent(name).replaceAll("%5B", "[").replaceAll("%5D", "]");
}

function* flat(name: string, value: unknown): Generator<[string, string]> {
  if (value === undefined || value === null) return;
  if (typeof value === "object") {
    for (const [key, inner] of Object.entries(value)) yield* flat(name ? `${name}[${key}]` : key, inner);
  } else yield [name, String(value)];
}

// Answers, as the engine writes them.

export interface HoldAnswer {
  facts: { call_id: string; operation: string; run?: string | null };
  state: State;
  held: number;
  reserved_at_ms: number;
  not_after_ms: number;
  unknown_reason?: string | null;
}

export interface StopAnswer {
  scope: { kind: string; id?: string };
  admin: { reason: string; by: string };
  since_ms: number;
}

export interface StopResultAnswer {
  stop: StopAnswer;
  keys_refused: number;
  in_flight: HoldAnswer[];
  other_runs: number;
  processes_told: number | null;
}

export interface CheckAnswer {
  amount_micros?: number | null;
  denial?: { code: Check["code"]; message: string } | null;
}

export type UsageAnswer = { view: BudgetView; livemode: boolean }[];
export type AuditAnswer = Record<string, unknown> & { called_at: string };

export function budgetsFrom(answer: UsageAnswer): Budget[] {
  return answer.map(({ view, livemode }) => budgetFrom(view, livemode));
}

export function holdFrom(item: HoldAnswer): Hold {
  return {
    callId: item.facts.call_id,
    state: item.state,
    operation: item.facts.operation,
    run: item.facts.run ?? null,
    heldUsd: usdFromMicros(item.held),
    reservedAt: new Date(item.reserved_at_ms),
    notAfter: new Date(item.not_after_ms),
    reason: item.unknown_reason ?? null,
  };
}

export function stopFrom(item: StopAnswer): StopInfo {
  const { kind, id } = item.scope;
  const scope = kind === "all" ? kind : `${kind}:${id}`;
  return { scope, reason: item.admin.reason, since: new Date(item.since_ms), by: item.admin.by };
}

export function stopResultFrom(item: StopResultAnswer): StopResult {
  return {
    stop: stopFrom(item.stop),
    keysRefused: item.keys_refused,
    inFlight: item.in_flight.map(holdFrom),
    otherRuns: item.other_runs,
    processesTold: item.processes_told,
  };
}

/** A row of the audit: its names in camel case, its time a `Date`. Money is decimal text already. */
export function auditFrom(item: AuditAnswer): AuditRow {
  const fields = Object.entries(item).map(([name, value]) => [camel(name), value]);
  return { ...Object.fromEntries(fields), calledAt: new Date(item.called_at) } as AuditRow;
}

function camel(name: string): string {
  return name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

export function checkFrom(item: CheckAnswer): Check {
  const { amount_micros: amount, denial } = item;
  const needsLookup = !denial && amount == null;
  return {
    allowed: !denial,
    needsLookup,
    code: denial?.code ?? null,
    message: denial?.message ?? (needsLookup ? NOT_JUDGED : ""),
    amountUsd: amount == null ? null : usdFromMicros(amount),
  };
}

const NOT_JUDGED =
  "the policy allows the call; what it moves is known only by asking the vendor, so it was not judged against caps";
