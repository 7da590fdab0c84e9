/**
 * The Vercel AI SDK: tools whose refusals the model understands, and a loop that ends with them.
 *
 *     streamText({
 *       model, messages, tools: governTools(run, { refund: refundTool(createStripe(run)) }),
 *       stopWhen: [isStepCount(8), stopOnDenied()], abortSignal: run.signal,
 *     });
 *
 * Only types of the SDK are used here; the limits themselves are enforced under the vendor's SDK, not by this.
 */

import type { StopCondition, ToolExecutionOptions, ToolSet } from "ai";
import { type Denied, denied, deniedResult } from "./errors.js";
import { refuseUnknown, wholeOf } from "./options.js";
import type { Run } from "./run.js";
import { inTool } from "./tools.js";

/**
 * The tools, each running in `run`: its calls are attributed to it, its `abortSignal` also aborts when the run ends,
 * and a refusal in it (thrown, or returned as `{ error }`) becomes a tool error that reads as `Denied.forModel()`.
 * Tools that run elsewhere (without `execute`) are left as they are.
 */
export function governTools<T extends ToolSet>(run: Run, tools: T): T {
  const governed = Object.entries(tools).map(([name, tool]) => [name, governTool(run, name, tool)] as const);
  return Object.fromEntries(governed) as T;
}

/** What a tool throws instead of the vendor's error. `denied(error)` finds the refusal; as text it is our words alone. */
export class ToolDenied extends Error {
  override name = "ToolDenied";
  override readonly cause: Denied;

  constructor(refusal: Denied) {
    super(refusal.forModel());
    this.cause = refusal;
  }

  /** The SDK gives this to the model. */
  override toString(): string {
    return this.message;
  }
}

/** When the loop ends. */
export interface StopOnDenied {
  /** Steps that the model still gets after the first refused one, to tell the user: 0 by default. */
  moreSteps?: number;
}

/** For `stopWhen`: true once a tool was refused, so that the loop ends with the step that saw it. */
// biome-ignore lint/suspicious/noExplicitAny: as the SDK declares its own conditions, for tools of every type
export function stopOnDenied(options: StopOnDenied = {}): StopCondition<any, any> {
  refuseUnknown(options, ["moreSteps"], "stopOnDenied");
  const moreSteps = wholeOf(options.moreSteps, "moreSteps", 0, Number.MAX_SAFE_INTEGER) ?? 0;
  return ({ steps }) => {
    const first = steps.findIndex((step) => step.content.some(refused));
    return first >= 0 && steps.length - 1 - first >= moreSteps;
  };
}

function refused(part: { type: string; error?: unknown; output?: unknown }): boolean {
  if (part.type === "tool-error") return denied(part.error) !== null;
  return part.type === "tool-result" && deniedResult(part.output) !== null;
}

type AnyTool = ToolSet[string];
type Options = Pick<ToolExecutionOptions<never>, "toolCallId" | "abortSignal">;

function governTool(run: Run, name: string, tool: AnyTool): AnyTool {
  const execute = tool.execute as ((input: unknown, options: Options) => unknown) | undefined;
  if (typeof execute !== "function") return tool;
  const governed = (input: unknown, options: Options): unknown => {
    const abortSignal = options?.abortSignal ? AbortSignal.any([options.abortSignal, run.signal]) : run.signal;
    const work = <R>(step: () => R): R => inTool(run, name, options?.toolCallId, step);
    const result = attempt(() => work(() => execute.call(tool, input, { ...options, abortSignal })));
    return isIterable(result) ? each(result, work) : Promise.resolve(result).then(told, refuse);
  };
  return { ...tool, execute: governed } as AnyTool;
}

/** A tool that yields its progress: each turn runs in the run. */
async function* each(results: AsyncIterable<unknown>, work: <R>(step: () => R) => R): AsyncGenerator<unknown> {
  const turns = results[Symbol.asyncIterator]();
  try {
    for (let turn = await work(() => turns.next()); !turn.done; turn = await work(() => turns.next())) {
      yield told(turn.value);
    }
  } catch (error) {
    refuse(error);
  } finally {
    await work(() => turns.return?.());
  }
}

function attempt(work: () => unknown): unknown {
  try {
    return work();
  } catch (error) {
    return Promise.reject(error);
  }
}

/** A result that is a refusal is none. Resend answers `{ error }` instead of throwing. */
function told(result: unknown): unknown {
  const refusal = deniedResult(result);
  if (refusal) throw new ToolDenied(refusal);
  return result;
}

function refuse(error: unknown): never {
  if (error instanceof ToolDenied) throw error;
  const refusal = denied(error);
  throw refusal ? new ToolDenied(refusal) : error;
}

function isIterable(thing: unknown): thing is AsyncIterable<unknown> {
  return typeof thing === "object" && thing !== null && Symbol.asyncIterator in thing;
}
