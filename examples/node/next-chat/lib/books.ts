import { defaultKeybrake } from "keybrake";
import { CHATS, runOf } from "./policy";

/** What a chat has done, for the page. */
export interface Row {
  chat: string;
  run: string;
  refunds: number;
  refused: string[];
  /** Dollars, as the ledger has them. */
  spent: string;
  remaining: string;
  cap: string;
  stopped: string | null;
}

export interface Entry {
  callId: string;
  run: string;
  operation: string;
  verdict: string;
  cost: string | null;
}

export interface Books {
  rows: Row[];
  audit: Entry[];
}

/** The books as they stand: budgets, stops and the audit, from the ledger. */
export async function books(): Promise<Books> {
  const keybrake = defaultKeybrake();
  const [audit, budgets, stops] = await Promise.all([
    keybrake.audit({ limit: 500 }),
    keybrake.budgets.list(),
    keybrake.stops(),
  ]);
  const rows = CHATS.map((chat) => {
    const run = runOf(chat);
    const calls = audit.filter((row) => row.agentRunId === run);
    const budget = budgets.find(({ name, livemode }) => name.includes(` run:${run} `) && !livemode);
    return {
      chat,
      run,
      refunds: calls.filter((row) => row.operation === "refunds.create" && row.policyVerdict === "allowed").length,
      refused: calls.filter((row) => row.policyVerdict !== "allowed").map((row) => row.policyVerdict),
      spent: budget?.used ?? "0.00",
      remaining: budget?.remaining ?? "",
      cap: budget?.cap ?? "",
      stopped: stops.find((stop) => stop.scope === `run:${run}`)?.reason ?? null,
    };
  });
  const entries = audit.map(({ callId, agentRunId, operation, policyVerdict, costUsdParsed }) => {
    return { callId, run: agentRunId ?? "", operation, verdict: policyVerdict, cost: costUsdParsed };
  });
  return { rows, audit: entries };
}
