/** When the server starts: the budget that all chats of a tenant share. */
export async function register(): Promise<void> {
  if (process.env.NEXT_RUNTIME !== "nodejs") return;
  const { defaultKeybrake } = await import("keybrake");
  await defaultKeybrake().budgets.set("tenant:acme", [{ usd: 500, per: "month" }], { reason: "plan" });
}
