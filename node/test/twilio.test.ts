/** A real twilio client over the engine, against Twilio's simulator: its list of what was sent is the truth. */

import twilio from "twilio";
import { describe, expect, test } from "vitest";
import { ConfigError, denied, type Policy, VendorError } from "../src/index.js";
import { createTwilio, type TwilioOptions } from "../src/twilio.js";
import { rejection, timezone, world } from "./fixture.js";

const here = world("twilio");

const policy: Policy = {
  vendor: "twilio",
  daily_usd_cap: 1,
  timezone,
  allowed_endpoints: ["messages.create", "messages.update", "messages.delete", "calls.create", "reads"],
  operation_costs: { "messages.create": "0.05", "calls.create": "0.40" },
};
const message = { to: "+15558675310", from: "+15557122661", body: "Ahoy, 1 + 1 = 2 & café ☕" };
const RestException = twilio.RestException;

test("a message is sent once at the policy's cost, as it was given", async () => {
  await using run = await here.kb.open({ policy });
  const client = createTwilio(run);
  const sent = await client.messages.create({
    ...message,
    mediaUrl: ["https://a.example/1.png", "https://a.example/2.png"],
  });
  expect(sent.sid).toMatch(/^MM/);
  expect([sent.to, sent.from, sent.body]).toEqual([message.to, message.from, message.body]);
  expect(sent.numMedia).toBe("2");
  expect(sent.dateCreated).toBeInstanceOf(Date);
  expect((await here.sim.sent()).map(({ object, to }) => [object, to])).toEqual([[sent.sid, [message.to]]]);
  expect(await run.spent()).toBe("0.05");
  expect(run.calls.map((call) => [call.operation, call.verdict, call.cost])).toEqual([
    ["messages.create", "allowed", "0.05"],
  ]);
});

test("what the SDK can do else goes the same way", async () => {
  await using run = await here.kb.open({ policy });
  const client = createTwilio(run);
  const { sid } = await client.messages.create(message);
  expect((await client.messages(sid).fetch()).sid).toBe(sid);
  const second = await client.messages.create({ ...message, body: "second" });
  expect((await client.messages.list({ limit: 10 })).map((one) => one.sid).sort()).toEqual([sid, second.sid].sort());
  expect(
    (await client.messages.list({ to: message.to, dateSentAfter: new Date("2020-01-01"), limit: 5 })).length,
  ).toBeLessThan(6);
  const paged: string[] = [];
  await client.messages.each({
    pageSize: 1,
    limit: 2,
    callback: (one: { sid: string }) => void paged.push(one.sid),
  } as never);
  expect(await client.messages(sid).remove()).toBe(true);
  const called = await client.calls.create({
    to: message.to,
    timeLimit: 60,
    from: message.from,
    twiml: "<Response><Say>Hi</Say></Response>",
  });
  expect(called.sid).toMatch(/^CA/);
  expect(await run.spent()).toBe("0.50");
  const details = await client.messages.createWithHttpInfo({ ...message, body: "third" });
  expect([details.statusCode, details.body.sid.slice(0, 2)]).toEqual([201, "SM"]);
});

test("the real secret goes out, and the vault key does not", async () => {
  await using run = await here.kb.open({ policy });
  await createTwilio(run).messages.create(message);
  const [request] = await here.sim.requests();
  expect(request?.authorization).toBe("basic_test_key");
  expect(JSON.stringify(request)).not.toContain(run.token);
});

describe("a refusal", () => {
  test.for<TwilioOptions>([{}, { autoRetry: true, maxRetries: 3 }])(
    "is a RestException, made once, with %j",
    async (options) => {
      await using run = await here.kb.open({ policy: { ...policy, daily_usd_cap: "0.08" } });
      const client = createTwilio(run, options);
      await client.messages.create(message);
      const error = await rejection(client.messages.create({ ...message, body: "second" }));
      expect(error).toBeInstanceOf(RestException);
      const { status, code, message: text, details } = error as InstanceType<typeof RestException>;
      expect([status, code]).toEqual([403, 90001]);
      expect(text).toMatch("cap");
      expect((details as { keybrake?: { code?: string } }).keybrake?.code).toBe("cap_exceeded");
      expect(denied(error)).toMatchObject({
        code: "cap_exceeded",
        capUsd: "0.08",
        usedUsd: "0.05",
        requestedUsd: "0.05",
        status: 403,
      });
      expect(denied(error)?.forModel()).toMatch(/^NOT DONE\./);
      expect(run.calls.map((call) => call.verdict)).toEqual(["allowed", "denied"]);
      expect(await here.sim.sent()).toHaveLength(1);
      expect(await here.sim.requests()).toHaveLength(1);
    },
  );

  test("without a cost in the policy nothing is sent, and the message gives the line to add", async () => {
    const { operation_costs, ...bare } = policy;
    await using run = await here.kb.open({ policy: bare });
    const error = await rejection(createTwilio(run).messages.create(message));
    expect(denied(error)?.code).toBe("cost_unknown");
    expect(denied(error)?.message).toContain("operation_costs");
    expect(await here.sim.requests()).toEqual([]);
    expect(operation_costs).toBeDefined();
  });

  test("another account is refused, one's own by its name is not", async () => {
    await using run = await here.kb.open({ policy });
    const other = `AC${"1".repeat(32)}`;
    expect(denied(await rejection(createTwilio(run, { accountSid: other }).messages.create(message)))?.code).toBe(
      "account_not_allowed",
    );
    await createTwilio(run, { accountSid: `AC${"0".repeat(32)}` }).messages.create(message);
  });

  test("of a closed run", async () => {
    const run = await here.kb.open({ policy });
    const client = createTwilio(run);
    await run.close();
    const error = await rejection(client.messages.create(message));
    expect(error).toBeInstanceOf(RestException);
    expect(denied(error)?.code).toBe("key_expired");
  });
});

describe("the vendor's own answers", () => {
  test("an error of Twilio's is a RestException that is no refusal, and gives the cost back", async () => {
    await using run = await here.kb.open({ policy });
    const error = await rejection(createTwilio(run).messages.create({ ...message, to: "+15005550001" }));
    expect(error).toBeInstanceOf(RestException);
    expect((error as InstanceType<typeof RestException>).status).toBe(400);
    expect(denied(error)).toBeNull();
    expect([await run.spent(), await run.held()]).toEqual(["0.00", "0.00"]);
  });

  test("autoRetry sends again after Twilio's 429, and it is one message", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("rate_limit", { times: 2 });
    const client = createTwilio(run, { autoRetry: true, maxRetryDelay: 20 });
    expect((await client.messages.create(message)).sid).toMatch(/^SM/);
    expect([(await here.sim.requests()).length, (await here.sim.sent()).length]).toEqual([3, 1]);
    expect([await run.spent(), await run.held()]).toEqual(["0.05", "0.00"]);
    await here.sim.fault("rate_limit", { times: 1 });
    const error = await rejection(createTwilio(run).messages.create({ ...message, body: "second" }));
    expect((error as InstanceType<typeof RestException>).status).toBe(429);
    expect(denied(error)).toBeNull();
  });

  test("a lost answer stays held; made again the call is not sent again, because Twilio keeps no keys", async () => {
    await using run = await here.kb.open({ policy });
    await here.sim.fault("drop_after_executing");
    const client = createTwilio(run);
    const error = await rejection(client.messages.create(message));
    expect(error).toBeInstanceOf(VendorError);
    expect(error).toMatchObject({ code: "ECONNRESET" });
    expect(await run.held()).toBe("0.05");
    expect(denied(await rejection(client.messages.create(message)))?.code).toBe("outcome_unknown");
    expect(await here.sim.sent()).toHaveLength(1);
  });
});

describe("the client", () => {
  test("is made of a Keybrake and a token too", async () => {
    const key = await here.kb.issue(policy);
    expect((await createTwilio(here.kb, key).messages.create(message)).sid).toMatch(/^SM/);
    await createTwilio(here.kb, key.token, { userAgentExtensions: ["shop/1"] }).messages.create({
      ...message,
      body: "2",
    });
    expect(await here.sim.sent()).toHaveLength(2);
  });

  test("made with a token belongs to the run and the step that are current: the same text in two steps is sent twice", async () => {
    await using run = await here.kb.open({ policy });
    const client = createTwilio(here.kb, run.token);
    const first = await run.step("greet", () => client.messages.create(message));
    const second = await run.step("remind", () => client.messages.create(message));
    expect(second.sid).not.toBe(first.sid);
    expect((await here.sim.sent()).map((sent) => sent.object)).toEqual([first.sid, second.sid]);
    expect(run.calls.map((call) => [call.verdict, call.cost])).toEqual([
      ["allowed", "0.05"],
      ["allowed", "0.05"],
    ]);
    const again = await run.step("remind", () => client.messages.create(message));
    expect([again.sid, (await here.sim.sent()).length]).toEqual([second.sid, 2]);
  });

  test("refuses options of the connection, and of secrets that the agent does not have", async () => {
    await using run = await here.kb.open({ policy });
    for (const taken of ["httpClient", "keepAlive", "ca", "validationClient", "maxSockets"])
      expect(() => createTwilio(run, { [taken]: {} } as TwilioOptions)).toThrow(ConfigError);
  });

  test("hosts of Twilio's that are not governed are refused as Twilio's, before anything is sent", async () => {
    await using run = await here.kb.open({ policy });
    const abroad = createTwilio(run, { region: "ie1", edge: "dublin" }).messages.create(message);
    for (const error of [await rejection(abroad), await rejection(createTwilio(run).studio.v2.flows.list())]) {
      expect(error).toBeInstanceOf(RestException);
      expect(error).toMatchObject({ status: 403, code: 90001 });
      expect(denied(error)?.code).toBe("vendor_not_allowed");
    }
    expect(await here.sim.requests()).toEqual([]);
  });

  test("fifty at once spend the cap and not a cent more", async () => {
    await using run = await here.kb.open({ policy });
    const client = createTwilio(run);
    const all = Array.from({ length: 50 }, (_, index) =>
      client.messages.create({ ...message, body: `number ${index}` }),
    );
    const ended = await Promise.allSettled(all);
    expect(ended.filter(({ status }) => status === "fulfilled")).toHaveLength(20);
    for (const one of ended) if (one.status === "rejected") expect(denied(one.reason)?.code).toMatch(/^cap_/);
    expect(await here.sim.sent()).toHaveLength(20);
    expect(await run.spent()).toBe("1.00");
  });
});
