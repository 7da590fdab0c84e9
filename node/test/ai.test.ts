import { generateText, isStepCount, streamText, type ToolSet, tool } from "ai";
import { MockLanguageModelV4 } from "ai/test";
import { afterEach, beforeEach, expect, test } from "vitest";
import { z } from "zod";
import { governTools, stopOnDenied, ToolDenied } from "../src/ai.js";
import { currentRun, denied, Keybrake, type Policy, type Run } from "../src/index.js";
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

beforeEach(() => {
  sim = simulator();
  keybrake = new Keybrake({ ledger: "memory:", secrets: { stripe: sim.secret }, baseUrls: { stripe: sim.url } });
});

afterEach(async () => {
  await keybrake.close();
  sim.stop();
});

const usage = {
  inputTokens: { total: 1, noCache: 1, cacheRead: 0, cacheWrite: 0 },
  outputTokens: { total: 1, text: 1, reasoning: 0 },
};

/** A model that asks for the same refunds forever, whatever it is told. Its prompts are what it saw. */
function stubborn(...charges: string[]) {
  let count = 0;
  const content = () =>
    charges.map((charge) => {
      count += 1;
      return {
        type: "tool-call" as const,
        toolCallId: `call_${count}`,
        toolName: "refund",
        input: JSON.stringify({ charge }),
      };
    });
  return new MockLanguageModelV4({
    doGenerate: async () => ({
      content: content(),
      finishReason: { unified: "tool-calls" as const, raw: undefined },
      usage,
      warnings: [],
    }),
  });
}

/** What the model read of its tools, oldest first. */
function read(model: MockLanguageModelV4): unknown[] {
  const last = model.doGenerateCalls.at(-1)?.prompt ?? [];
  const parts = last.flatMap((message) => (message.role === "tool" ? message.content : []));
  return parts.flatMap((part) => (part.type === "tool-result" ? [part.output] : []));
}

function tools(run: Run): ToolSet {
  const stripe = createStripe(run, { maxNetworkRetries: 2 });
  return {
    refund: tool({
      inputSchema: z.object({ charge: z.string() }),
      execute: async ({ charge }) => (await stripe.refunds.create({ charge })).id,
    }),
  };
}

test("a model that loops on a refused tool reads our words alone, and nothing reaches the vendor", async () => {
  const charges = await sim.charges(3, 5000);
  await using run = await keybrake.open({ policy });
  await using other = await keybrake.open({ policy });
  const stripe = createStripe(other);
  for (const charge of charges.slice(0, 2)) await stripe.refunds.create({ charge });
  const before = (await sim.requests("/v1/refunds", "POST")).length;
  const model = stubborn(charges[2] as string);
  await generateText({ model, prompt: "refund", tools: governTools(run, tools(run)), stopWhen: isStepCount(4) });
  const words = read(model) as { type: string; value: string }[];
  expect(words).toHaveLength(3);
  expect(run.calls).toHaveLength(4);
  for (const output of words) {
    expect(output.type).toBe("error-text");
    expect(output.value).toMatch(/^NOT DONE\. Spending limit reached: this refund of \$50\.00 was refused/);
    expect(output.value).toMatch(/Tell the user\.$/);
  }
  expect((await sim.requests("/v1/refunds", "POST")).length).toBe(before);
  expect(await sim.moved()).toBe(10_000);
});

test("stopOnDenied ends the loop with the refused step, after one attempt", async () => {
  const charges = await sim.charges(1, 20_000);
  await using run = await keybrake.open({ policy });
  const model = stubborn(charges[0] as string);
  const stopWhen = [isStepCount(8), stopOnDenied()];
  const result = await generateText({ model, prompt: "refund", tools: governTools(run, tools(run)), stopWhen });
  expect(result.steps).toHaveLength(1);
  expect(run.calls.map(({ code }) => code)).toEqual(["cap_exceeded"]);
  const [failed] = result.content.filter(({ type }) => type === "tool-error") as { error: unknown }[];
  expect(failed?.error).toBeInstanceOf(ToolDenied);
  expect(denied(failed?.error)).toMatchObject({ code: "cap_exceeded", requestedUsd: "200.00", capUsd: "120.00" });
});

test("stopOnDenied with moreSteps lets the model tell the user", async () => {
  const charges = await sim.charges(1, 20_000);
  await using run = await keybrake.open({ policy });
  const model = stubborn(charges[0] as string);
  const stopWhen = [isStepCount(8), stopOnDenied({ moreSteps: 1 })];
  const result = await generateText({ model, prompt: "refund", tools: governTools(run, tools(run)), stopWhen });
  expect(result.steps).toHaveLength(2);
  expect(read(model)).toHaveLength(1);
});

test("a failure that is no refusal stays what it is and does not end the loop", async () => {
  await using run = await keybrake.open({ policy });
  const broken = tool({
    inputSchema: z.object({ charge: z.string() }),
    execute: (): string => {
      throw new TypeError("broken");
    },
  });
  const model = stubborn("ch_1");
  const stopWhen = [isStepCount(3), stopOnDenied()];
  const result = await generateText({ model, prompt: "x", tools: governTools(run, { refund: broken }), stopWhen });
  expect(result.steps).toHaveLength(3);
  expect(read(model)).toEqual(Array(2).fill({ type: "error-text", value: "TypeError: broken" }));
});

test("a refusal that is returned as { error }, as Resend does, is a refusal", async () => {
  const charges = await sim.charges(1, 20_000);
  await using run = await keybrake.open({ policy });
  const stripe = createStripe(run);
  const quiet = tool({
    inputSchema: z.object({ charge: z.string() }),
    execute: ({ charge }) => stripe.refunds.create({ charge }).catch((error: unknown) => ({ data: null, error })),
  });
  const model = stubborn(charges[0] as string);
  const stopWhen = [isStepCount(5), stopOnDenied({ moreSteps: 1 })];
  await generateText({ model, prompt: "x", tools: governTools(run, { refund: quiet }), stopWhen });
  expect(read(model)).toEqual([{ type: "error-text", value: expect.stringMatching(/^NOT DONE\./) }]);
});

test("three calls in one step with room for two: two pass and the third is refused", async () => {
  const charges = await sim.charges(3, 5000);
  await using run = await keybrake.open({ policy });
  const model = stubborn(...charges);
  const governed = governTools(run, tools(run));
  const result = await generateText({
    model,
    prompt: "x",
    tools: governed,
    stopWhen: [isStepCount(5), stopOnDenied()],
  });
  expect(result.content.filter(({ type }) => type === "tool-result")).toHaveLength(2);
  expect(result.content.filter(({ type }) => type === "tool-error")).toHaveLength(1);
  expect(await sim.moved()).toBe(10_000);
});

test("the run and the tool are known inside execute and in the audit, also between the yields of a generator", async () => {
  const charges = await sim.charges(2, 1000);
  await using run = await keybrake.open({ policy, run: "run_ai" });
  const stripe = createStripe(keybrake, run.token);
  const yielding = tool({
    inputSchema: z.object({ charge: z.string() }),
    execute: async function* ({ charge }) {
      yield "working";
      expect(currentRun()).toBe(run);
      yield (await stripe.refunds.create({ charge })).id;
    },
  });
  const governed = governTools(run, { refund: yielding });
  const model = stubborn(...charges);
  const result = await generateText({ model, prompt: "x", tools: governed, stopWhen: isStepCount(1) });
  expect(result.toolResults.map(({ output }) => String(output))).toEqual([
    expect.stringMatching(/^re_/),
    expect.stringMatching(/^re_/),
  ]);
  await keybrake.flush();
  const rows = (await keybrake.audit({ run: "run_ai" })).filter(({ operation }) => operation === "refunds.create");
  expect(rows.map(({ metadata }) => metadata.context)).toEqual(
    expect.arrayContaining([
      expect.objectContaining({ tool: "refund", tool_call_id: "call_1" }),
      expect.objectContaining({ tool: "refund", tool_call_id: "call_2" }),
    ]),
  );
});

test("closing the run aborts what its tools do, and the stream ends", async () => {
  const charges = await sim.charges(1, 1000);
  const run = await keybrake.open({ policy });
  const waiting = tool({
    inputSchema: z.object({ charge: z.string() }),
    execute: (_input, { abortSignal }) =>
      new Promise<string>((_, reject) => {
        abortSignal?.addEventListener("abort", () => reject(abortSignal.reason), { once: true });
        void run.close();
      }),
  });
  const model = stubborn(charges[0] as string);
  const governed = governTools(run, { refund: waiting });
  await expect(
    generateText({ model, prompt: "x", tools: governed, stopWhen: isStepCount(3), abortSignal: run.signal }),
  ).rejects.toThrow("the run was closed");
  expect(model.doGenerateCalls).toHaveLength(1);
});

test("an operator's stop ends a stream that runs by run.signal", async () => {
  const [charge] = await sim.charges(1, 1000);
  await using run = await keybrake.open({ policy, run: "run_stopped" });
  await keybrake.stop({ run: "run_stopped", reason: "test" });
  const chunks = [
    { type: "stream-start" as const, warnings: [] },
    { type: "tool-call" as const, toolCallId: "1", toolName: "refund", input: JSON.stringify({ charge }) },
    { type: "finish" as const, finishReason: { unified: "tool-calls" as const, raw: undefined }, usage },
  ];
  const model = new MockLanguageModelV4({ doStream: async () => ({ stream: ReadableStream.from(chunks) }) });
  const governed = governTools(run, tools(run));
  const result = streamText({ model, prompt: "x", tools: governed, stopWhen: isStepCount(9), abortSignal: run.signal });
  const seen: string[] = [];
  for await (const part of result.stream) seen.push(part.type);
  expect(seen).toContain("abort");
  expect(model.doStreamCalls).toHaveLength(1);
  expect(await sim.movements()).toBe(0);
});

test("ten sessions at once: each under its own cap, by the simulator's journal", async () => {
  const charges = await sim.charges(50, 1000);
  const sessions = Array.from({ length: 10 }, async (_, index) => {
    const mine = charges.slice(index * 5, index * 5 + 5);
    const narrow = { run_usd_cap: 25 };
    await using run = await keybrake.open({ policy: { ...policy, daily_usd_cap: 1000 }, run: `chat_${index}`, narrow });
    let next = 0;
    const model = new MockLanguageModelV4({
      doGenerate: async () => ({
        content: [
          {
            type: "tool-call" as const,
            toolCallId: String(next),
            toolName: "refund",
            input: JSON.stringify({ charge: mine[next++] }),
          },
        ],
        finishReason: { unified: "tool-calls" as const, raw: undefined },
        usage,
        warnings: [],
      }),
    });
    const stopWhen = [isStepCount(8), stopOnDenied()];
    const result = await generateText({ model, prompt: "x", tools: governTools(run, tools(run)), stopWhen });
    expect(await run.spent()).toBe("20.00");
    return result.steps.length;
  });
  expect(await Promise.all(sessions)).toEqual(Array(10).fill(3));
  expect(await sim.movements()).toBe(20);
  expect(await sim.moved()).toBe(20_000);
});
