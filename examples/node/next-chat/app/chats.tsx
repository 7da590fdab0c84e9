"use client";

import { DefaultChatTransport, readUIMessageStream, type UIMessage } from "ai";
import { useCallback, useEffect, useState } from "react";
import type { Books } from "../lib/books";
import { refundLast, resumeChat, stopChat } from "./actions";

/** Ten chats that can run at once, what each has spent, and a way to stop it. */
export function Chats({ first }: { first: Books }) {
  const [books, setBooks] = useState(first);
  const [said, setSaid] = useState<Record<string, string>>({});
  const say = useCallback((chat: string, text: string) => setSaid((all) => ({ ...all, [chat]: text })), []);

  const look = useCallback(async () => {
    setBooks((await (await fetch("/api/books")).json()) as Books);
  }, []);
  useEffect(() => {
    const timer = setInterval(() => void look(), 1000);
    return () => clearInterval(timer);
  }, [look]);

  const after = (work: Promise<unknown>) => void work.then(look, look);
  const start = (chat: string) => {
    const failed = (error: unknown) => say(chat, error instanceof Error ? error.message : String(error));
    after(chatOnce(chat, (text) => say(chat, text)).catch(failed));
  };
  return (
    <>
      <button type="button" onClick={() => books.rows.forEach((row) => void start(row.chat))}>
        Start all
      </button>
      <table cellPadding={6}>
        <thead>
          <tr>
            {["Chat", "Spent", "Cap", "Left", "Refunds", "Refused", "State", "", "The model says"].map((title) => (
              <th key={title} align="left">
                {title}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {books.rows.map((row) => (
            <tr key={row.run} data-run={row.run}>
              <td>{row.run}</td>
              <td data-field="spent">{row.spent}</td>
              <td data-field="cap">{row.cap}</td>
              <td data-field="remaining">{row.remaining}</td>
              <td data-field="refunds">{row.refunds}</td>
              <td data-field="refused">{row.refused.join(", ")}</td>
              <td data-field="state">{row.stopped === null ? "open" : `stopped: ${row.stopped}`}</td>
              <td>
                <button type="button" onClick={() => start(row.chat)}>
                  Start
                </button>
                <button type="button" onClick={() => after(stopChat(row.chat))}>
                  Stop
                </button>
                <button type="button" onClick={() => after(resumeChat(row.chat))}>
                  Resume
                </button>
                <button type="button" onClick={() => after(refundLast(row.chat).then((text) => say(row.chat, text)))}>
                  Refund last
                </button>
              </td>
              <td data-field="said">{said[row.chat] ?? ""}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <h2>Audit</h2>
      <table cellPadding={6} id="audit">
        <tbody>
          {books.audit.map((entry) => (
            <tr key={entry.callId}>
              <td>{entry.run}</td>
              <td>{entry.operation}</td>
              <td>{entry.verdict}</td>
              <td>{entry.cost ?? ""}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </>
  );
}

/** One turn of one chat; tells its text as it arrives. */
async function chatOnce(chat: string, tell: (text: string) => void): Promise<void> {
  tell("…");
  const transport = new DefaultChatTransport({ api: `/api/chat?chat=${chat}` });
  const question: UIMessage = { id: "q", role: "user", parts: [{ type: "text", text: "Refund all my orders" }] };
  const stream = await transport.sendMessages({
    trigger: "submit-message",
    chatId: chat,
    messageId: undefined,
    messages: [question],
    abortSignal: undefined,
  });
  let text = "";
  for await (const message of readUIMessageStream({ stream })) {
    text = message.parts.flatMap((part) => (part.type === "text" ? [part.text] : [])).join("");
    tell(text || "…");
  }
  if (!text) tell("(ended before it said anything)");
}
