/**
 * LangChain.js: a middleware by which the model reads our words when a tool was refused.
 *
 *     const agent = createAgent({
 *       model, tools,
 *       middleware: [toolRetryMiddleware({ retryOn }), keybrakeMiddleware(run)],   // ours last: next to the tools
 *     });
 *
 * Without it the model reads the vendor's error and "Please fix your mistakes". The limits themselves are enforced
 * under the vendor's SDK, not by this.
 */

import { ToolMessage } from "@langchain/core/messages";
import { type AgentMiddleware, createMiddleware } from "langchain";
import { here } from "./context.js";
import { type Denied, denied } from "./errors.js";
import { refuseUnknown } from "./options.js";
import type { Run } from "./run.js";
import { inTool } from "./tools.js";

/** How the middleware takes a refusal. */
export interface KeybrakeMiddlewareOptions {
  /**
   * Ends the agent after a refused tool, before its model is asked again; false by default, so that the model can tell
   * the user.
   */
  endOnDenied?: boolean;
}

/**
 * Runs each tool in `run` (without one, in whatever run is current), so that its calls are attributed, and answers a
 * refusal with a tool message of status `error` that says `Denied.forModel()`. Put it last in `middleware`, next to the
 * tools: a retry around it then sees an answer, and has nothing to try again.
 */
export function keybrakeMiddleware(run?: Run | null, options: KeybrakeMiddlewareOptions = {}): AgentMiddleware {
  refuseUnknown(options, ["endOnDenied"], "keybrakeMiddleware");
  return createMiddleware({
    name: "Keybrake",
    async wrapToolCall(request, handler) {
      const { name, id = "" } = request.toolCall;
      const words = (refusal: Denied) =>
        new ToolMessage({
          content: refusal.forModel(),
          tool_call_id: id,
          name,
          status: "error",
          artifact: { keybrake: refusal.toJSON() },
        });
      try {
        const answer = await inTool(run ?? null, name, id, () => handler(request));
        const refusal = returned(answer, run ?? here().run);
        return refusal ? words(refusal) : answer;
      } catch (error) {
        const refusal = denied(error);
        if (!refusal) throw error;
        return words(refusal);
      }
    },
    ...(options.endOnDenied
      ? {
          beforeModel: {
            canJumpTo: ["end" as const],
            hook: ({ messages }: { messages: readonly unknown[] }) =>
              refusedLast(messages) ? { jumpTo: "end" as const } : undefined,
          },
        }
      : {}),
  }) as AgentMiddleware;
}

/**
 * The refusal that a tool returned as `{ error }`, as Resend answers it. LangChain has made text of it by now, and text
 * is anybody's; so it has to be a call that this run has seen refused.
 */
function returned(answer: unknown, run: Run | null): Denied | null {
  if (!ToolMessage.isInstance(answer) || typeof answer.content !== "string") return null;
  const refusal = denied({ error: parsed(answer.content)?.error });
  const ours = refusal !== null && run?.calls.some((call) => call.callId === refusal.callId && call.code !== null);
  return ours ? refusal : null;
}

function parsed(text: string): { error?: unknown } | null {
  try {
    return JSON.parse(text) as { error?: unknown } | null;
  } catch {
    return null;
  }
}

/** For `toolRetryMiddleware({ retryOn })`: a refusal is final, anything else is tried again. */
export function retryOn(error: Error): boolean {
  return denied(error) === null;
}

/** Whether a tool that was called last was refused: its messages stand after the model's. */
function refusedLast(messages: readonly unknown[]): boolean {
  for (let i = messages.length - 1; i >= 0; i -= 1) {
    const message = messages[i];
    if (!ToolMessage.isInstance(message)) return false;
    if (message.status === "error" && denied(message.artifact)) return true;
  }
  return false;
}
