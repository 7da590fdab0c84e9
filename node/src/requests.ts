/** What is asked of the engine, and how its answers read. */

import { userInfo } from "node:os";
import { isAbsolute, resolve } from "node:path";
import { ConfigError, PolicyError } from "./errors.js";
import { plain, usdFromMicros } from "./money.js";
import {
  type AuditRow,
  type Budget,
  type BudgetView,
  budgetFrom,
  type Check,
  type Hold,
  type Policy,
  type State,
  type StopInfo,
  type StopResult,
} from "./types.js";

/** A policy: a document, or the path of a JSON, YAML or TOML file. */
export type PolicyLike = Policy | string;

/** What binds a key besides its policy. */
export interface Ties {
  run?: string;
  agent?: string;
  label?: string;
  group?: string | readonly string[];
  /** A narrower policy on top: lists intersect, caps take the lower. */
  narrow?: Policy;
  /** A lifetime such as `"2h"`. */
  expiresIn?: string;
}

/** What a stop covers: exactly one of these. */
export interface Scope {
  run?: string;
  agent?: string;
  label?: string;
  group?: string;
  vendor?: string;
  key?: string;
  all?: true;
}

const SCOPES = ["run", "agent", "label", "group", "vendor", "key"] as const;
const TIES = ["run", "agent", "label", "group", "narrow", "expiresIn"] as const;

export function policyArgument(policy: PolicyLike): Record<string, unknown> {
  if (typeof policy === "string") return { policy_file: isAbsolute(policy) ? policy : resolve(policy) };
  return { policy: documentOf(policy, "policy") };
}

/** A document as the engine reads it; a mistake names its place. */
export function documentOf(fields: object, what: string): unknown {
  try {
    return plain(fields, what);
  } catch (error) {
    throw new PolicyError(error instanceof Error ? error.message : String(error));
  }
}

export function tiesArgument(ties: Ties): Record<string, unknown> {
  const { run, agent, label, group, narrow, expiresIn } = ties;
  return {
    run: run ?? null,
    agent: agent ?? null,
    label: label ?? null,
    groups: typeof group === "string" ? [group] : (group ?? []),
    narrow: narrow ? documentOf(narrow, "narrow") : null,
    expires_in: expiresIn ?? null,
    by: who(),
  };
}

/** Which of the ties are given. */
export function tiesGiven(ties: Ties): string[] {
  return TIES.filter((name) => ties[name] !== undefined);
}

/** Who does this, for the audit. */
export function who(): string {
  try {
    return userInfo().username;
  } catch {
    return "node";
  }
}

export function scopeArgument(scope: Scope): Record<string, string> {
  const given: [string, string][] = SCOPES.flatMap((kind) => (scope[kind] === undefined ? [] : [[kind, scope[kind]]]));
  if (scope.all) given.push(["all", ""]);
  const [first, ...others] = given;
  if (!first || others.length > 0) {
    const names = SCOPES.join(", ");
    throw new ConfigError(`say what to stop with exactly one of ${names}, or all: true; got ${given.length}`);
  }
  const [kind, id] = first;
  return kind === "all" ? { kind } : { kind, id };
}

export function sinceMs(since: Date | undefined): number | null {
  return since === undefined ? null : since.getTime();
}

/** A call such as `"POST /v1/refunds"` with its fields, encoded as the vendor's SDK would. */
export function checkedCall(token: string, endpoint: string, fields: object, vendor: string): Record<string, string> {
  const gap = endpoint.indexOf(" ");
  const [method, path] = [endpoint.slice(0, gap), endpoint.slice(gap + 1)];
  if (gap < 1 || !path.startsWith("/")) {
    throw new ConfigError(
      `${JSON.stringify(endpoint)} is no endpoint: write a method and a path, such as "POST /v1/refunds"`,
    );
  }
  const text = [...flat("", fields)]
    .map(([name, value]) => `${bracketed(name)}=${encodeURIComponent(value)}`)
    .join("&");
  const inUrl = ["GET", "DELETE"].includes(method.toUpperCase());
  return inUrl
    ? { token, vendor, method, path: text ? `${path}?${text}` : path, body: "" }
    : { token, vendor, method, path, body: text };
}

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
  return {
    allowed: !denial,
    code: denial?.code ?? null,
    message: denial?.message ?? "",
    amountUsd: amount == null ? null : usdFromMicros(amount),
  };
}
