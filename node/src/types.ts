/** The nouns: policies as object types, and what the ledger answers as readonly interfaces. */

import { type Money, usdFromMicros } from "./money.js";

/** Why a call was refused, in the order of the checks. */
export type Code =
  | "key_missing"
  | "key_unknown"
  | "stopped"
  | "key_revoked"
  | "key_expired"
  | "request_malformed"
  | "vendor_not_allowed"
  | "endpoint_not_allowed"
  | "account_not_allowed"
  | "customer_not_allowed"
  | "destination_not_allowed"
  | "param_not_allowed"
  | "outcome_unknown"
  | "already_done"
  | "idempotency_conflict"
  | "attempts_exhausted"
  | "cost_unknown"
  | "currency_not_allowed"
  | "amount_over_limit"
  | "needs_approval"
  | "cap_exceeded"
  | "cap_held"
  | "ledger_unavailable"
  | "ledger_recovering";

export type Vendor = "stripe" | "twilio" | "resend";
/** An operation by name (`refunds.create`), `reads`, or a method and a path (`POST /v1/refunds`). */
export type Endpoint = "reads" | (string & {});
export type Per = "hour" | "day" | "rolling_24h" | "month" | "run" | "lifetime";
export type Unit = "usd" | "calls" | "writes" | "sends";
export type State = "held" | "unknown" | "pending" | "provisional" | "settled" | "voided";
export type Verdict = "allowed" | "denied" | "replayed" | "unknown";

/** One entry of a policy's `budgets`: exactly one of the units, a window, and perhaps a scope and a vendor. */
export interface BudgetEntry {
  usd?: Money;
  calls?: number;
  writes?: number;
  sends?: number;
  per: Per;
  scope?: string;
  vendor?: Vendor;
  timezone?: string;
}

/** What a key may do. Unknown fields are refused with the nearest valid name. The guide explains each. */
export interface Policy {
  vendor?: Vendor;
  vendors?: readonly Vendor[];
  secret?: string;
  budgets?: readonly BudgetEntry[];
  daily_usd_cap?: Money;
  daily_usd_cap_total?: Money;
  per_vendor_daily_caps?: Partial<Record<Vendor, Money>>;
  hourly_usd_cap?: Money;
  monthly_usd_cap?: Money;
  run_usd_cap?: Money;
  per_customer_daily_usd_cap?: Money;
  daily_send_cap?: number;
  hourly_call_cap?: number;
  daily_call_cap?: number;
  max_write_operations_per_run?: number;
  window?: "calendar_day" | "rolling_24h";
  timezone?: string;
  max_amount_per_call_usd?: Money;
  allowed_endpoints?: readonly Endpoint[] | Partial<Record<Vendor, readonly Endpoint[]>>;
  denied_endpoints?: readonly Endpoint[] | Partial<Record<Vendor, readonly Endpoint[]>>;
  allowed_customers?: readonly string[];
  allowed_accounts?: readonly string[];
  params?: Readonly<Record<string, unknown>>;
  idempotency?: "auto" | "require" | "off";
  on_repeat?: "replay" | "refuse" | "execute";
  operation_costs?: Readonly<Record<string, unknown>>;
  unknown_cost?: "lookup" | "deny";
  count_intents?: "at_creation" | "at_confirm";
  caller_keys?: "trust" | "replace";
  currency_rates?: Readonly<Record<string, unknown>>;
  expires_in?: string;
  expires_at?: string;
  cap_status?: 429 | 403;
  model_detail?: "full" | "reason";
  mode?: "enforce" | "observe";
  label?: string;
  agent_id?: string;
  agent_run_id?: string;
  metadata?: Readonly<Record<string, unknown>>;
  parent?: string;
  groups?: readonly string[];
}

/** One budget as it stood at one moment. Amounts are decimal dollars for `usd` budgets, counts for the others. */
export interface Budget {
  readonly name: string;
  readonly unit: Unit;
  readonly per: Per;
  readonly cap: string;
  readonly used: string;
  /** Reserved and not yet proven. */
  readonly held: string;
  /** `cap - used - held`, never below zero. */
  readonly remaining: string;
  /** When its window ends; `null` for run and lifetime budgets. */
  readonly resetsAt: Date | null;
  /** Calls that hold part of it, at most ten (in a `cap_held` refusal). */
  readonly holdIds: readonly string[];
  readonly livemode: boolean | null;
}

/** A standing stop. */
export interface StopInfo {
  /** What it covers, such as `run:run_42`, `label:billing`, `all`. */
  readonly scope: string;
  readonly reason: string;
  readonly since: Date;
  readonly by: string;
}

/** An earlier call that stands in the way of a repeat. */
export interface ExistingCall {
  readonly callId: string;
  /** The vendor's object, if known, such as `re_...`. */
  readonly object: string | null;
  readonly amountUsd: string;
  readonly at: Date;
  /** The identity fields that differ, for `idempotency_conflict`. */
  readonly differing: readonly string[];
}

/** What became of one governed call, as its caller sees it. */
export interface CallInfo {
  readonly callId: string;
  readonly operation: string;
  readonly verdict: Verdict;
  /** Dollars that this call moved; zero for a replay, `null` when nothing is known. */
  readonly cost: string | null;
  /** Whether this is the receipt of an earlier call: no money moved now. */
  readonly replayed: boolean;
  readonly status: number | null;
  /** Why it was refused. */
  readonly code: Code | null;
}

/** A reservation that still holds something. */
export interface Hold {
  readonly callId: string;
  readonly state: State;
  readonly operation: string;
  readonly run: string | null;
  readonly heldUsd: string;
  readonly reservedAt: Date;
  /** When it counts as unknown. */
  readonly notAfter: Date;
  /** Why nothing is known of it. */
  readonly reason: string | null;
}

/** What a stop met when it was set. */
export interface StopResult {
  readonly stop: StopInfo;
  /** Open keys that it refuses from the next call on. */
  readonly keysRefused: number;
  /** Calls on their way that may still complete. */
  readonly inFlight: readonly Hold[];
  /** Open runs that it does not touch. */
  readonly otherRuns: number;
  /** With `hard`: how many processes were told at once; `null` when they look by themselves, within seconds. */
  readonly processesTold: number | null;
}

/** One call in the audit: the sixteen columns and what else was known. */
export interface AuditRow {
  readonly callId: string;
  readonly calledAt: Date;
  readonly vaultKeyId: string | null;
  readonly agentRunId: string | null;
  readonly agentLabel: string | null;
  readonly vendor: string | null;
  readonly operation: string;
  readonly customerScopeId: string | null;
  readonly policyVerdict: string;
  readonly statusCode: number | null;
  /** Signed: negative when money went out. */
  readonly costUsdParsed: string | null;
  readonly costSource: string;
  readonly capUsageAfterUsd: string | null;
  readonly vendorRequestId: string | null;
  readonly idempotencyKey: string | null;
  readonly latencyMs: number | null;
  readonly metadata: Readonly<Record<string, unknown>>;
}

/** What would happen to a call. Nothing was reserved or sent. */
export interface Check {
  /** Whether nothing stands in its way; with `needsLookup`, nothing but perhaps a cap. */
  readonly allowed: boolean;
  /** What it moves is known only by asking the vendor, as for a refund: it was not judged against caps. */
  readonly needsLookup: boolean;
  readonly code: Code | null;
  readonly message: string;
  readonly amountUsd: string | null;
}

/** A budget as the engine writes it: micro-USD or counts, and Unix milliseconds. */
export interface BudgetView {
  name: string;
  unit: Unit;
  per: Per;
  cap: number;
  used: number;
  held: number;
  resets_at_ms?: number | null;
  hold_ids?: string[];
}

/** From the engine's form. */
export function budgetFrom(view: BudgetView, livemode: boolean | null = null): Budget {
  const text = view.unit === "usd" ? usdFromMicros : String;
  const left = view.cap - view.used - view.held;
  return {
    name: view.name,
    unit: view.unit,
    per: view.per,
    cap: text(view.cap),
    used: text(view.used),
    held: text(view.held),
    remaining: text(Math.max(left, 0)),
    resetsAt: view.resets_at_ms == null ? null : new Date(view.resets_at_ms),
    holdIds: view.hold_ids ?? [],
    livemode,
  };
}
