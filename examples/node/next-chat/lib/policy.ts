import type { Policy } from "keybrake";

/** What every chat may do. Each run has a cap of its own on top, and all of them together stay within the day's. */
export const policy: Policy = {
  vendor: "stripe",
  daily_usd_cap: 1000,
  allowed_endpoints: ["refunds.create", "reads"],
  label: "support-chat",
};

/** Dollars that one chat may refund. */
export const CHAT_CAP = 25;

export const CHATS = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];

/** The run of a chat. The id comes from a browser, so it is checked against the chats that there are. */
export function runOf(chat: unknown): string {
  if (typeof chat !== "string" || !CHATS.includes(chat)) throw new Error("no such chat");
  return `chat_${chat}`;
}
