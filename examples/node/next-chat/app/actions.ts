"use server";

import { defaultKeybrake, denied } from "keybrake";
import { withVaultKey } from "keybrake/next";
import { createStripe } from "keybrake/stripe";
import { CHAT_CAP, policy, runOf } from "../lib/policy";
import { ordersOf } from "../lib/shop";

/** An operator's button. A real application asks who presses it. */
export async function stopChat(chat: string): Promise<void> {
  await defaultKeybrake().stop({ run: runOf(chat), reason: "stopped on the page" });
}

/** The same, the other way round. */
export async function resumeChat(chat: string): Promise<void> {
  await defaultKeybrake().resume({ run: runOf(chat) });
}

/** Refunds a chat's last order without its model, under the same cap. */
export async function refundLast(chat: string): Promise<string> {
  try {
    return await refund(chat);
  } catch (error) {
    const refusal = denied(error); // also when no key is issued, while the chat is stopped
    if (refusal) return `refused: ${refusal.code}`;
    throw error;
  }
}

const refund = withVaultKey(
  async (chat: string) => ({ policy, run: runOf(chat), narrow: { run_usd_cap: CHAT_CAP }, maxDuration: 60 }),
  async (chat: string, { run }): Promise<string> => {
    const { id } = await createStripe(run).refunds.create({ charge: ordersOf(chat).at(-1) ?? "" });
    return `refunded: ${id}`;
  },
);
