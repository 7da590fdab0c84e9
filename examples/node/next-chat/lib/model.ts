import { type LanguageModel, simulateReadableStream } from "ai";
import { MockLanguageModelV4 } from "ai/test";

type Streamed = Awaited<ReturnType<MockLanguageModelV4["doStream"]>>["stream"];
type Part = Streamed extends ReadableStream<infer P> ? P : never;

/**
 * A model that follows a script, so that this example needs no network: it refunds one order after the other until a
 * tool fails, then it says what it read. Put a real one here, such as `openai("gpt-5")`.
 */
export function scriptedModel(orders: number): LanguageModel {
  return new MockLanguageModelV4({
    modelId: "scripted",
    doStream: async ({ prompt }) => {
      const results = prompt.flatMap((message) => (message.role === "tool" ? message.content : []));
      const outputs = results.flatMap((part) => (part.type === "tool-result" ? [part.output] : []));
      const failed = outputs.find((output) => output.type === "error-text");
      const parts =
        failed || outputs.length >= orders
          ? said(failed ? `I was told: ${String(failed.value)}` : "All orders are refunded.")
          : called(outputs.length);
      return { stream: simulateReadableStream({ chunks: parts }) };
    },
  });
}

const usage = {
  inputTokens: { total: 1, noCache: 1, cacheRead: 0, cacheWrite: 0 },
  outputTokens: { total: 1, text: 1, reasoning: 0 },
};

function said(text: string): Part[] {
  return [
    { type: "stream-start", warnings: [] },
    { type: "text-start", id: "1" },
    { type: "text-delta", id: "1", delta: text },
    { type: "text-end", id: "1" },
    { type: "finish", finishReason: { unified: "stop", raw: "stop" }, usage },
  ];
}

function called(order: number): Part[] {
  const toolCallId = `call_${order}`;
  return [
    { type: "stream-start", warnings: [] },
    { type: "tool-call", toolCallId, toolName: "refund", input: JSON.stringify({ order }) },
    { type: "finish", finishReason: { unified: "tool-calls", raw: "tool_calls" }, usage },
  ];
}
