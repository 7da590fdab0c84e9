import { convertToModelMessages, isStepCount, streamText, tool, type UIMessage } from "ai";
import { governTools, stopOnDenied } from "keybrake/ai";
import { withVaultKey } from "keybrake/next";
import { createStripe } from "keybrake/stripe";
import { z } from "zod";
import { scriptedModel } from "../../../lib/model";
import { CHAT_CAP, policy, runOf } from "../../../lib/policy";
import { ordersOf } from "../../../lib/shop";

export const runtime = "nodejs";

/** One chat: its model may refund the orders of its customer, within the chat's own cap. While it is stopped the answer is a 403. */
export const POST = withVaultKey(
  async (request) => ({
    policy,
    run: runOf(new URL(request.url).searchParams.get("chat")),
    // From the user's session in a real application, never from the request.
    group: "tenant:acme",
    narrow: { run_usd_cap: CHAT_CAP },
    maxDuration: 60,
  }),
  async (request, { run }) => {
    const { messages } = (await request.json()) as { messages: UIMessage[] };
    const orders = ordersOf(new URL(request.url).searchParams.get("chat") ?? "");
    const stripe = createStripe(run);
    const result = streamText({
      model: scriptedModel(orders.length),
      messages: await convertToModelMessages(messages),
      tools: governTools(run, {
        refund: tool({
          description: "Refunds an order in full",
          inputSchema: z.object({ order: z.number().int().min(0) }),
          execute: async ({ order }) => {
            const charge = orders[order];
            if (!charge) throw new Error(`there is no order ${order}`);
            const { id, amount } = await stripe.refunds.create({ charge });
            return { refund: id, cents: amount };
          },
        }),
      }),
      stopWhen: [isStepCount(20), stopOnDenied({ moreSteps: 1 })],
      abortSignal: run.signal,
    });
    return result.toUIMessageStreamResponse();
  },
);
