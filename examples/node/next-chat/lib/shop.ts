import { CHATS } from "./policy";

/** The charges behind a customer's orders. A real shop asks its database; here they are in the environment. */
export function ordersOf(chat: string): string[] {
  const charges = (process.env.SHOP_CHARGES ?? "").split(",").filter(Boolean);
  const each = Math.floor(charges.length / CHATS.length);
  const first = CHATS.indexOf(chat) * each;
  return charges.slice(first, first + each);
}
