/** What the governed fetch makes without the platform's own `Request` and `Response` is what those would make. */

import { describe, expect, test } from "vitest";
import { governed } from "../src/call.js";
import { type GovernedResponse, replyOf } from "../src/response.js";
import { webCall } from "../src/web.js";
import { policy, rejection, world } from "./fixture.js";

const URL_ = "https://api.stripe.com/v1/refunds";

describe("a request", () => {
  const key = { "Idempotency-Key": "k 1", authorization: "Bearer t" };
  const forms: [string, string | URL, RequestInit?][] = [
    ["nothing but a URL", URL_],
    ["a URL that is written otherwise", "HTTPS://API.stripe.com:443/v1/./refunds?a=b c#part"],
    ["a URL object and a read", new URL(URL_), { method: "GET", headers: key }],
    ["text", URL_, { method: "POST", body: "charge=ch_ü", headers: key }],
    ["a form", URL_, { method: "POST", body: new URLSearchParams({ charge: "ch 1" }) }],
    [
      "a form with a type",
      URL_,
      { method: "POST", body: new URLSearchParams({ a: "1" }), headers: { "Content-type": "x" } },
    ],
    ["bytes", URL_, { method: "PUT", body: new Uint8Array([0, 255]), headers: key }],
    ["no bytes", URL_, { method: "POST", body: "" }],
    ["a body that is null", URL_, { method: "DELETE", body: null, headers: undefined as never }],
    ["headers with space around them", URL_, { headers: { a: "  b\t", c: "" } }],
    ["the same header twice", URL_, { headers: { A: "1", a: "2" } }],
    ["Headers", URL_, { headers: new Headers(key) }],
    [
      "pairs of headers",
      URL_,
      {
        headers: [
          ["b", "2"],
          ["a", "1"],
        ],
      },
    ],
    ["two keys in one header", URL_, { method: "POST", headers: { "Idempotency-Key": "k1, k2" } }],
    ["a method in lower case", URL_, { method: "post", body: "x" }],
    ["fields of fetch that say nothing here", URL_, { keepalive: true, integrity: "" }],
    ["a redirect that is an error", URL_, { redirect: "error" }],
  ];
  test.for(forms)("%s", async ([, input, init]) => {
    const call = await webCall("token", input, init);
    const platforms = new Request(input, init);
    const headers = new Headers(platforms.headers);
    if (!headers.has("authorization")) headers.set("authorization", "Bearer token");
    const url = typeof input === "string" ? input : platforms.url;
    expect([call.method, call.url, call.redirect]).toEqual([platforms.method, url, platforms.redirect]);
    expect([...new Headers(call.headers)]).toEqual([...headers]);
    expect(call.headers.filter(([name]) => name === "idempotency-key").every(([, key]) => !key.includes(","))).toBe(
      true,
    );
    expect(Buffer.from(call.body)).toEqual(Buffer.from(await platforms.arrayBuffer()));
  });

  const refused: [string, string, RequestInit][] = [
    ["a body on a read", URL_, { body: "x" }],
    ["a path alone", "/v1/refunds", {}],
    ["a password", "https://user:secret@api.stripe.com/", {}],
    ["a header with a line break", URL_, { headers: { a: "b\nc" } }],
    ["a header that is none", URL_, { headers: { "a b": "c" } }],
    ["headers that are none", URL_, { headers: null as never }],
    ["a method that is none", URL_, { method: "CONNECT" }],
  ];
  test.for(refused)("%s is refused as the platform refuses it", async ([, input, init]) => {
    const error = (await rejection(webCall("token", input, init))) as Error;
    expect(error).toBeInstanceOf(TypeError);
    expect(() => new Request(input, init)).toThrow(error.message);
  });

  test("a signal that has fired is thrown", async () => {
    const reason = new Error("enough");
    expect(await rejection(webCall("token", URL_, { signal: AbortSignal.abort(reason) }))).toBe(reason);
    const signal = new AbortController().signal;
    expect((await webCall("token", URL_, { signal })).signal).toBe(signal);
  });
});

describe("a reply", () => {
  const headers = [
    ["content-type", "application/json"],
    ["set-cookie", "a=1"],
    ["set-cookie", "b=2"],
  ] as const;
  const made = (body: string | Buffer, status = 200) => replyOf({ status, headers, body }, URL_, null);
  const platforms = (body: string | Buffer, status = 200) =>
    new Response(status === 204 ? null : new Uint8Array(Buffer.from(body as string)), {
      status,
      headers: headers as never,
    });
  const bodies: [string, string | Buffer][] = [
    ["an object", '{"a":"ü"}'],
    ["no JSON", "<html>"],
    ["nothing", ""],
    ["bytes that are no text", Buffer.from([0x7b, 0xff, 0x7d])],
    ["text with a byte order mark", Buffer.from("\ufeff{}")],
  ];
  const ways = ["text", "json", "arrayBuffer", "blob"] as const;
  const read = async (reply: Response, way: (typeof ways)[number]) => {
    try {
      const got = await reply[way]();
      return got instanceof Blob ? [got.type, await got.text()] : got instanceof ArrayBuffer ? Buffer.from(got) : got;
    } catch (error) {
      return (error as Error).name;
    }
  };

  test.for(bodies.flatMap((body) => ways.map((way) => [...body, way] as const)))("%s %s %s", async ([, body, way]) => {
    const [ours, theirs] = [made(body), platforms(body)];
    expect([ours instanceof Response, ours.ok, ours.bodyUsed]).toEqual([true, theirs.ok, false]);
    expect([...ours.headers]).toEqual([...theirs.headers]);
    expect(await read(ours, way)).toEqual(await read(theirs, way));
    expect([ours.bodyUsed, theirs.bodyUsed]).toEqual([true, true]);
    expect([await read(ours, way), await read(ours, "text")]).toEqual(["TypeError", "TypeError"]);
    expect(() => ours.clone()).toThrow(TypeError);
    expect(ours.body).toBeInstanceOf(ReadableStream);
  });

  test("a clone is read by itself, and so is its original", async () => {
    const first = made("{}");
    const second = first.clone() as GovernedResponse;
    expect([await first.text(), second.bodyUsed, second.url]).toEqual(["{}", false, URL_]);
    expect(await second.clone().json()).toEqual({});
    expect(second.headers.getSetCookie()).toEqual(["a=1", "b=2"]);
  });

  test("as a stream, and in a response of the caller's", async () => {
    const reply = made("piece");
    const again = new Response(reply.body, reply);
    expect([again.status, again.headers.get("content-type"), await again.text()]).toEqual([
      200,
      "application/json",
      "piece",
    ]);
    expect(reply.bodyUsed).toBe(true);
  });

  test("one without a body, and a form", async () => {
    const none = made("", 204);
    expect([none.status, none.statusText, none.body, await none.text()]).toEqual([204, "No Content", null, ""]);
    expect(none.bodyUsed).toBe(platforms("", 204).bodyUsed);
    const type = [["content-type", "application/x-www-form-urlencoded"]] as const;
    const form = replyOf({ status: 200, headers: type, body: "a=b" }, URL_, null);
    expect((await form.formData()).get("a")).toBe("b");
  });
});

const here = world();

test("a header with a line break in it is judged as it is", async () => {
  await using run = await here.kb.open({ policy });
  const headers: [string, string][] = [
    ["authorization", `Bearer ${run.token}`],
    ["x-note", "a\nstripe-account: acct_1"],
  ];
  const call = { method: "GET", url: "https://api.stripe.com/v1/charges", headers, body: new Uint8Array() };
  const ended = await governed(here.kb, { ...call, keyOrigin: "generated", run });
  expect(ended.kind === "denied" && ended.denied.code).toBe("request_malformed");
  expect(await here.sim.requests()).toEqual([]);
});
