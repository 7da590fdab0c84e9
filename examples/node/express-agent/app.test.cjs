"use strict";
const { testKeybrake } = require("keybrake/testing");
const { createApp } = require("./app.cjs");

let server;
let url;

// Before the books are closed: jest ends a test in the order in which it was told how.
afterEach(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

const books = testKeybrake({ beforeEach, afterEach });

beforeEach(async () => {
  server = createApp(books.keybrake).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  url = `http://127.0.0.1:${server.address().port}`;
});

function ask(chat, charges, more = {}) {
  const headers = { "Content-Type": "application/json" };
  return fetch(`${url}/chats/${chat}/refunds`, { method: "POST", headers, body: JSON.stringify({ charges }), ...more });
}

async function lines(response) {
  return (await response.text()).trim().split("\n").map(JSON.parse);
}

test("ten chats at once: each under its own cap", async () => {
  const charges = await books.sim.charges(40, 1000);
  const chats = Array.from({ length: 10 }, async (_, chat) => {
    const mine = charges.slice(chat * 4, chat * 4 + 4);
    return lines(await ask(chat, mine));
  });
  for (const said of await Promise.all(chats)) {
    expect(said.map(({ code }) => code)).toEqual([undefined, undefined, "cap_exceeded"]);
    expect(said[2].words).toMatch(/^NOT DONE\. Spending limit reached/);
  }
  expect(await books.sim.movements()).toBe(20);
  expect(await books.sim.moved()).toBe(20_000);
});

test("a client that goes away ends the agent after the call that is under way", async () => {
  const charges = await books.sim.charges(2, 1000);
  await books.sim.fault("hold_until_released", { pathPrefix: "/v1/refunds", times: 1 });
  const revoked = new Promise((resolve) => {
    const { revoke } = books.keybrake;
    jest.spyOn(books.keybrake, "revoke").mockImplementation(async (...args) => {
      const was = await revoke.apply(books.keybrake, args);
      resolve(was);
      return was;
    });
  });
  const leaving = new AbortController();
  const asked = ask("gone", charges, { signal: leaving.signal }).catch((error) => error.name);
  await books.sim.waitHeld();
  const settled = new Promise((resolve) => void books.keybrake.on("call", resolve));
  leaving.abort();
  expect(await asked).toBe("AbortError");
  expect(await revoked).toBe(true);
  await books.sim.release();
  expect(await settled).toMatchObject({ operation: "refunds.create", verdict: "allowed", cost: "10.00" });
  expect(await books.sim.movements()).toBe(1);
});

test("no key is issued while a run is stopped", async () => {
  await books.keybrake.stop({ run: "chat_x", reason: "loop" });
  const response = await ask("x", await books.sim.charges(1, 1000));
  expect(response.status).toBe(403);
  expect((await response.json()).error).toMatch(/^STOPPED by an operator/);
  expect(await books.sim.movements()).toBe(0);
});
