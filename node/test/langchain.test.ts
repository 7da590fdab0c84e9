import { BaseChatModel } from "@langchain/core/language_models/chat_models";
import { AIMessage, type BaseMessage, HumanMessage, ToolMessage } from "@langchain/core/messages";
import type { ChatResult } from "@langchain/core/outputs";
import { tool } from "@langchain/core/tools";
import { type AgentMiddleware, createAgent, toolRetryMiddleware } from "langchain";
import { afterEach, beforeEach, expect, test } from "vitest";
import { z } from "zod";
import { currentRun, denied, Keybrake, type Policy, type Run } from "../src/index.js";
import { keybrakeMiddleware, retryOn } from "../src/langchain.js";
import { createResend } from "../src/resend.js";
import { createStripe } from "../src/stripe.js";
import { type Simulator, simulator } from "../src/testing.js";
import { timezone } from "./fixture.js";

const policy: Policy = {
  vendor: "stripe",
  daily_usd_cap: 120,
  timezone,
  allowed_endpoints: ["refunds.create", "reads"],
};

let sim: Simulator;
let keybrake: Keybrake;
let charges: string[];

beforeEach(async () => {
  sim = simulator();
  keybrake = new Keybrake({ ledger: "memory:", secrets: { stripe: sim.secret }, baseUrls: { stripe: sim.url } });
  charges = await sim.charges(1, 20_000);
});

afterEach(async () => {
  await keybrake.close();
  sim.stop();
});

/** A model that asks for the same tool `times` times, whatever it reads, and then gives up. */
class Stubborn extends BaseChatModel {
  asked = 0;
  constructor(
    readonly charge: string,
    readonly times: number,
  ) {
    super({});
  }
  _llmType(): string {
    return "stubborn";
  }
  override bindTools() {
    return this;
  }
  async _generate(): Promise<ChatResult> {
    this.asked += 1;
    const call = {
      name: "refund",
      args: { charge: this.charge },
      id: `call_${this.asked}`,
      type: "tool_call" as const,
    };
    const calls = this.asked <= this.times ? [call] : [];
    const message = new AIMessage({ content: calls.length ? "" : "I give up", tool_calls: calls });
    return { generations: [{ text: "", message }] };
  }
}

function refundTool(run: Run, executed: () => void = () => {}) {
  const stripe = createStripe(run, { maxNetworkRetries: 2 });
  return tool(
    async ({ charge }) => {
      executed();
      return (await stripe.refunds.create({ charge })).id;
    },
    { name: "refund", description: "Refunds a charge", schema: z.object({ charge: z.string() }) },
  );
}

async function converse(model: Stubborn, run: Run, middleware: AgentMiddleware[], executed?: () => void) {
  const agent = createAgent({ model, tools: [refundTool(run, executed)], middleware });
  const { messages } = await agent.invoke({ messages: [new HumanMessage("Refund it")] });
  return (messages as BaseMessage[]).filter((message) => ToolMessage.isInstance(message));
}

test("a model that loops on a refused tool reads our words alone, and nothing reaches the vendor", async () => {
  await using run = await keybrake.open({ policy });
  const answers = await converse(new Stubborn(charges[0] as string, 3), run, [keybrakeMiddleware(run)]);
  expect(answers).toHaveLength(3);
  for (const answer of answers) {
    expect(answer).toMatchObject({ status: "error", name: "refund" });
    expect(answer.content).toMatch(/^NOT DONE\. Spending limit reached: this refund of \$200\.00 .*Tell the user\.$/);
    expect(denied(answer.artifact)?.code).toBe("cap_exceeded");
  }
  expect(await sim.requests("/v1/refunds", "POST")).toEqual([]);
});

test("endOnDenied ends the agent before its model is asked again", async () => {
  await using run = await keybrake.open({ policy });
  const model = new Stubborn(charges[0] as string, 9);
  const answers = await converse(model, run, [keybrakeMiddleware(run, { endOnDenied: true })]);
  expect(answers).toHaveLength(1);
  expect(model.asked).toBe(1);
});

test("a retry around the middleware has nothing to try again; one inside it is told by retryOn", async () => {
  await using run = await keybrake.open({ policy });
  const retry = toolRetryMiddleware({ maxRetries: 3, initialDelayMs: 0, retryOn, onFailure: "error" });
  for (const middleware of [
    [retry, keybrakeMiddleware(run)],
    [keybrakeMiddleware(run), retry],
  ]) {
    let executed = 0;
    const answers = await converse(new Stubborn(charges[0] as string, 1), run, middleware as AgentMiddleware[], () => {
      executed += 1;
    });
    expect(executed).toBe(1);
    expect(answers.map(({ content }) => content)).toEqual([expect.stringMatching(/^NOT DONE\. Spending limit/)]);
  }
});

test("a refusal that a tool returns, as Resend does, is put into words; a page that says the same is not", async () => {
  const mail = simulator({ vendor: "resend" });
  const kb = new Keybrake({ ledger: "memory:", secrets: { resend: mail.secret }, baseUrls: { resend: mail.url } });
  const run = await kb.open({ policy: { vendor: "resend", daily_usd_cap: 1, allowed_endpoints: ["reads"] } });
  const resend = createResend(run);
  const email = { from: "a@a.example", to: "b@b.example", subject: "x", text: "x" };
  const keybrake = { code: "stopped", message: "x", call_id: "0199" };
  const results = [() => resend.emails.send(email), async () => ({ data: null, error: { keybrake } })];
  const read: unknown[] = [];
  for (const result of results) {
    const refund = tool(result, { name: "refund", description: "Refunds", schema: z.object({ charge: z.string() }) });
    const model = new Stubborn("ch_1", 1);
    const agent = createAgent({ model, tools: [refund], middleware: [keybrakeMiddleware(run)] });
    const { messages } = await agent.invoke({ messages: [new HumanMessage("Refund it")] });
    read.push(...(messages as BaseMessage[]).filter((message) => ToolMessage.isInstance(message)));
  }
  const [refused, page] = read as ToolMessage[];
  expect(refused).toMatchObject({ status: "error", content: expect.stringMatching(/^NOT DONE/) });
  expect(denied(refused?.artifact)?.code).toBe("endpoint_not_allowed");
  expect(page?.content).toBe(JSON.stringify({ data: null, error: { keybrake } }));
  expect(page?.status).not.toBe("error");
  await kb.close();
  mail.stop();
});

test("a failure that is no refusal is tried again and stays what it is", async () => {
  await using run = await keybrake.open({ policy });
  let executed = 0;
  const broken = () => {
    executed += 1;
    throw new TypeError("broken");
  };
  const retry = toolRetryMiddleware({ maxRetries: 2, initialDelayMs: 0, retryOn });
  const model = new Stubborn(charges[0] as string, 1);
  const answers = await converse(model, run, [retry as AgentMiddleware, keybrakeMiddleware(run)], broken);
  expect(executed).toBe(3);
  expect(answers.map(({ content }) => content)).toEqual([expect.stringContaining("failed after 3 attempts")]);
});

test("the run and the tool are known inside the tool and in the audit", async () => {
  const [small] = await sim.charges(1, 1000);
  await using run = await keybrake.open({ policy, run: "run_lc" });
  let seen: Run | undefined;
  await converse(new Stubborn(small as string, 1), run, [keybrakeMiddleware(run)], () => {
    seen = currentRun();
  });
  expect(seen).toBe(run);
  await keybrake.flush();
  const rows = await keybrake.audit({ run: "run_lc" });
  expect(rows.at(-1)?.metadata.context).toMatchObject({ tool: "refund", tool_call_id: "call_1" });
  expect(await sim.moved()).toBe(1000);
});

test("ten agents at once: each under its own cap, by the simulator's journal", async () => {
  const mine = await sim.charges(10, 1000);
  const others = await sim.charges(10, 1000);
  const agents = mine.map(async (charge, index) => {
    const narrow = { run_usd_cap: 15 };
    await using run = await keybrake.open({ policy: { ...policy, daily_usd_cap: 900 }, run: `chat_${index}`, narrow });
    await converse(new Stubborn(charge, 1), run, [keybrakeMiddleware(run)]);
    const second = await converse(new Stubborn(others[index] as string, 2), run, [keybrakeMiddleware(run)]);
    return second.map(({ status }) => status);
  });
  expect(await Promise.all(agents)).toEqual(Array(10).fill(["error", "error"]));
  expect(await sim.movements()).toBe(10);
});
