/** What the adapters of agent frameworks share. */

import { here, within } from "./context.js";
import type { Run } from "./run.js";

/**
 * Runs a tool in a run (without one, in whatever run is current): a step that is current stays, and the audit learns
 * which tool it was. The id of the tool call is attribution only; a model that asks again gets a new one.
 */
export function inTool<T>(run: Run | null, tool: string, callId: string | undefined, work: () => T): T {
  const around = here();
  const mine = run === null || around.run === run ? around : { run, step: null, item: null, context: {} };
  const context = { ...mine.context, tool, ...(callId ? { tool_call_id: callId } : {}) };
  return within({ ...mine, context }, work);
}
