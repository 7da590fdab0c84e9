import { afterEach, beforeEach, expect, expectTypeOf, test, vi } from "vitest";
import { currentRun, denied, Keybrake, type Policy, Run } from "../src/index.js";
import { type Granted, withVaultKey } from "../src/next.js";
import { withKeybrake } from "../src/next-config.js";
import { createStripe } from "../src/stripe.js";
import { type Simulator, simulator } from "../src/testing.js";
import { rejection, timezone } from "./fixture.js";

const policy: Policy = {
  vendor: "stripe",
  daily_usd_cap: 250,
  timezone,
  allowed_endpoints: ["refunds.create", "reads"],
};
const request = (init?: RequestInit) => new Request("http://localhost/api/chat", { method: "POST", ...init });

let sim: Simulator;
let keybrake: Keybrake;
/** Runs that the handlers were given, in order. */
let runs: Run[];

beforeEach(() => {
  sim = simulator();
  keybrake = new Keybrake({ ledger: "memory:", secrets: { stripe: sim.secret }, baseUrls: { stripe: sim.url } });
  runs = [];
});

afterEach(async () => {
  vi.restoreAllMocks();
  await keybrake.close();
  sim.stop();
});

/** A Route Handler whose response has this body. */
function handlerOf(body: (run: Run) => ReadableStream | string | null, more: { maxDuration?: number } = {}) {
  return withVaultKey({ keybrake, policy, ...more }, async (_request, { run }) => {
    runs.push(run);
    return new Response(body(run), {
      status: 201,
      headers: [
        ["set-cookie", "a=1"],
        ["set-cookie", "b=2"],
      ],
    });
  });
}

/** What the ledger says of a run's key, whatever the handle believes. */
async function verdict(run: Run): Promise<string | null> {
  return (await keybrake.check(run.token, "POST /v1/refunds", { charge: "ch_1", amount: 100 })).code;
}

function only(): Run {
  expect(runs).toHaveLength(1);
  return runs[0] as Run;
}

/** A body of pieces; `after` is what happens when they are read. */
function pieces(count: number, after: (controller: ReadableStreamDefaultController) => void): ReadableStream {
  let left = count;
  return new ReadableStream(
    {
      pull(controller) {
        if (left-- > 0) controller.enqueue(new TextEncoder().encode(`${left} `));
        else after(controller);
      },
    },
    { highWaterMark: 0 },
  );
}

test("the key lives while the body is read and is revoked in the ledger when it ends", async () => {
  const POST = handlerOf(() => pieces(3, (controller) => controller.close()));
  const response = await POST(request());
  expect(response.status).toBe(201);
  expect(response.headers.getSetCookie()).toEqual(["a=1", "b=2"]);
  const reader = response.body?.getReader();
  await reader?.read();
  expect(only().closed).toBe(false);
  expect(await verdict(only())).toBeNull();
  for (let end = await reader?.read(); !end?.done; end = await reader?.read());
  expect(only().closed).toBe(true);
  expect(only().signal.aborted).toBe(true);
  expect(await verdict(only())).toBe("key_revoked");
});

test("a cancelled body revokes the key and cancels what feeds it", async () => {
  const cancelled = vi.fn();
  const POST = handlerOf(() => new ReadableStream({ cancel: cancelled }));
  const response = await POST(request());
  await response.body?.cancel("the user left");
  expect(cancelled).toHaveBeenCalledWith("the user left");
  expect(await verdict(only())).toBe("key_revoked");
});

test("a body that fails revokes the key and fails for its reader", async () => {
  const POST = handlerOf(() => pieces(1, (controller) => controller.error(new Error("broken"))));
  const response = await POST(request());
  await expect(response.text()).rejects.toThrow("broken");
  expect(await verdict(only())).toBe("key_revoked");
});

test("a body that nobody reads: the handle is over after maxDuration, and revokes the key", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  try {
    const POST = handlerOf(() => pieces(1, (controller) => controller.close()), { maxDuration: 60 });
    await POST(request());
    vi.advanceTimersByTime(59_999);
    expect(only().signal.aborted).toBe(false);
    vi.advanceTimersByTime(1);
    expect(only().signal.aborted).toBe(true);
  } finally {
    vi.useRealTimers();
  }
  await vi.waitFor(async () => expect(await verdict(only())).toBe("key_revoked"), 30_000);
});

test("a process that is gone: the ledger ends the key after maxDuration, or when its policy says", async () => {
  const closing = vi.spyOn(Run.prototype, "closeAfter").mockImplementation(() => {});
  await handlerOf(() => pieces(1, () => {}), { maxDuration: 1 })(request());
  const shorter = { ...policy, expires_in: "1s" };
  await withVaultKey({ keybrake, policy: shorter }, async (_request, { run }) => {
    runs.push(run);
    return new Response(pieces(1, () => {}));
  })(request());
  expect(closing.mock.calls).toEqual([[1000], [900_000]]);
  expect(runs).toHaveLength(2);
  await vi.waitFor(
    async () => expect(await Promise.all(runs.map(verdict))).toEqual(Array(2).fill("key_expired")),
    30_000,
  );
  expect(runs.map(({ closed }) => closed)).toEqual([false, false]);
});

test("a client that goes away ends the run, also while its response has not been read", async () => {
  const client = new AbortController();
  const cancelled = vi.fn();
  const POST = handlerOf(() => new ReadableStream({ cancel: cancelled }));
  const response = await POST(request({ signal: client.signal }));
  client.abort();
  await expect(response.text()).rejects.toThrow();
  await only().close();
  expect(cancelled).toHaveBeenCalledOnce();
  expect(await verdict(only())).toBe("key_revoked");
});

test("a client that left before the response, and HEAD: nobody will read the body", async () => {
  const client = new AbortController();
  const POST = withVaultKey({ keybrake, policy }, async (_request, { run }) => {
    runs.push(run);
    client.abort();
    return new Response(new ReadableStream({}));
  });
  expect((await POST(request({ signal: client.signal }))).body).toBeNull();
  await handlerOf(() => "text")(new Request("http://localhost/", { method: "HEAD" }));
  expect(await Promise.all(runs.map(verdict))).toEqual(["key_revoked", "key_revoked"]);
});

test("no body, an error and a redirect end the run at once", async () => {
  await handlerOf(() => null)(request());
  const redirect = Object.assign(new Error("NEXT_REDIRECT"), { digest: "NEXT_REDIRECT;replace;/;307;" });
  const POST = withVaultKey({ keybrake, policy }, async (_request, { run }): Promise<Response> => {
    runs.push(run);
    throw redirect;
  });
  await expect(POST(request())).rejects.toBe(redirect);
  expect(await Promise.all(runs.map(verdict))).toEqual(["key_revoked", "key_revoked"]);
});

test("what a body does to be read belongs to the run, and a call after its end is refused unsent", async () => {
  const [charge] = await sim.charges(1, 5000);
  let late: () => Promise<unknown> = () => Promise.resolve();
  const POST = handlerOf((run) => {
    const stripe = createStripe(run);
    late = () => stripe.refunds.create({ charge: charge as string });
    let asked = false;
    const pull = async (controller: ReadableStreamDefaultController) => {
      if (asked) return controller.close();
      asked = true;
      expect(currentRun()).toBe(run);
      const { id } = await stripe.refunds.create({ charge: charge as string });
      controller.enqueue(new TextEncoder().encode(id));
    };
    return new ReadableStream({ pull }, { highWaterMark: 0 });
  });
  expect(await (await POST(request())).text()).toMatch(/^re_/);
  expect(only().calls).toHaveLength(1);
  const error = await late().catch((error: unknown) => error);
  expect(denied(error)?.code).toBe("key_expired");
  expect(await sim.movements()).toBe(1);
});

test("the options may depend on the request and its params; keys of one run share its cap", async () => {
  const charges = await sim.charges(3, 1000);
  const POST = withVaultKey(
    async (_request, { params }: { params: Promise<{ chat: string }> }) => ({
      keybrake,
      policy,
      run: `chat_${(await params).chat}`,
      narrow: { run_usd_cap: 20 },
    }),
    async (req, { run, params }) => {
      expect(run.id).toBe(`chat_${(await params).chat}`);
      const refund = createStripe(run).refunds.create({ charge: await req.text() });
      return refund.then(
        ({ id }) => Response.json({ id }),
        (error: unknown) => Response.json({ code: denied(error)?.code }, { status: 403 }),
      );
    },
  );
  const statuses: number[] = [];
  for (const charge of charges) {
    const response = await POST(request({ body: charge }), { params: Promise.resolve({ chat: "7" }) });
    statuses.push(response.status);
    await response.text();
  }
  expect(statuses).toEqual([200, 200, 403]);
  expect(await sim.moved()).toBe(2000);
});

test("a Server Action gets the run after its arguments, and it ends with the action", async () => {
  const [charge] = await sim.charges(1, 5000);
  const refund = withVaultKey({ keybrake, policy }, async (state: number, form: FormData, { run }: Granted) => {
    runs.push(run);
    await createStripe(run).refunds.create({ charge: String(form.get("charge")) });
    return state + 1;
  });
  expectTypeOf(refund).toEqualTypeOf<(state: number, form: FormData) => Promise<number>>();
  const form = new FormData();
  form.set("charge", charge as string);
  expect(await refund(1, form)).toBe(2);
  expect(await verdict(only())).toBe("key_revoked");
  expect(await sim.moved()).toBe(5000);
});

test("a Server Action that returns a stream keeps its run until the stream ends", async () => {
  const act = withVaultKey({ keybrake, policy }, async ({ run }: Granted) => {
    runs.push(run);
    return (async function* () {
      yield 1;
      yield 2;
    })();
  });
  const seen: number[] = [];
  for await (const item of await act()) {
    seen.push(item);
    expect(only().closed).toBe(false);
  }
  expect(seen).toEqual([1, 2]);
  expect(await verdict(only())).toBe("key_revoked");
});

test("while its run is stopped a request is answered 403 in our words, and an action throws the refusal", async () => {
  await keybrake.stop({ run: "run_9", reason: "a loop that Alice saw" });
  const work = vi.fn(async () => new Response());
  const reply = await withVaultKey({ keybrake, policy, run: "run_9" }, work)(request());
  expect([reply.status, await reply.json()]).toEqual([
    403,
    { error: { code: "stopped", message: expect.stringMatching(/^STOPPED by an operator\./) } },
  ]);
  const act = withVaultKey({ keybrake, policy, run: "run_9" }, async (_form: FormData, _granted: Granted) => work());
  const refusal = denied(await rejection(act(new FormData())));
  expect([refusal?.code, refusal?.stop?.scope, refusal?.stop?.reason]).toEqual([
    "stopped",
    "run:run_9",
    "a loop that Alice saw",
  ]);
  expect(refusal?.message).toMatch(/^no key is issued while run:run_9 is stopped/);
  for (const opened of [keybrake.open({ policy, run: "run_9" }), keybrake.issue(policy, { run: "run_9" })]) {
    expect(denied(await rejection(opened))?.code).toBe("stopped");
  }
  expect(work).not.toHaveBeenCalled();
});

test("nothing that a browser sends becomes the run of a Server Action: no extra argument, no missing one", async () => {
  const forged = { run: { id: "attacker", token: "vault_key_attacker" } };
  const form = new FormData();
  const seen: unknown[][] = [];
  const note = (...args: unknown[]) => {
    const granted = args.at(-1) as Granted;
    runs.push(granted.run);
    seen.push(args.slice(0, -1));
  };
  const options = { keybrake, policy };
  const actions = [
    withVaultKey(options, async (state: unknown, data: FormData, granted: Granted) => note(state, data, granted)),
    withVaultKey(options, async (data: FormData, { run }: Granted) => note(data, { run })),
    withVaultKey(options, async (granted: Granted) => note(granted)),
    withVaultKey(options, async (...args: [unknown, Granted]) => note(...args)),
  ];
  const sent = [[], [form], [form, forged], [form, forged, forged, forged], [1, form, forged]];
  for (const action of actions)
    for (const args of sent) await (action as (...args: unknown[]) => Promise<void>)(...args);
  expect(runs.every((run) => run instanceof Run)).toBe(true);
  expect(new Set(runs).size).toBe(actions.length * sent.length);
  expect(seen.slice(0, 5)).toEqual([
    [undefined, undefined],
    [form, undefined],
    [form, forged],
    [form, forged],
    [1, form],
  ]);
  expect(seen.slice(5, 10)).toEqual([[undefined], [form], [form], [form], [1]]);
});

test("what an action returns to be iterated runs in the run, and ends it also when nobody begins to read", async () => {
  const inside: (Run | null)[] = [];
  const act = withVaultKey({ keybrake, policy }, async ({ run }: Granted) => {
    runs.push(run);
    return (async function* () {
      for (;;) {
        inside.push(currentRun());
        yield inside.length;
      }
    })();
  });
  for await (const item of await act()) if (item === 2) break;
  expect(inside).toEqual([runs[0], runs[0]]);
  expect(await verdict(runs[0] as Run)).toBe("key_revoked");

  await (await act()).return(undefined as never);
  expect(await verdict(runs[1] as Run)).toBe("key_revoked");

  const items = await act();
  await items.next();
  await expect(items.throw(new Error("gone"))).rejects.toThrow("gone");
  expect(await verdict(runs[2] as Run)).toBe("key_revoked");
  expect((await items.next()).done).toBe(true);
});

test("the key of a token is not revoked, since it was not made for the request", async () => {
  const key = await keybrake.issue(policy);
  const POST = withVaultKey({ keybrake, token: key }, async (_request, { run }) => {
    runs.push(run);
    return new Response("done");
  });
  await (await POST(request())).text();
  expect(only().closed).toBe(true);
  expect(await verdict(only())).toBeNull();
});

test.each([0, 1.5, 86_401, Number.NaN])("maxDuration %s is refused", async (maxDuration) => {
  await expect(handlerOf(() => null, { maxDuration })(request())).rejects.toThrow("whole seconds from 1 to 86400");
});

test("withKeybrake adds to a configuration, an object or a function, and keeps the rest", async () => {
  const given = { serverExternalPackages: ["sharp", "stripe"], poweredByHeader: false };
  const config = withKeybrake(given) as typeof given & { outputFileTracingIncludes: Record<string, string[]> };
  expect(config.poweredByHeader).toBe(false);
  expect(config.serverExternalPackages.filter((name) => name === "stripe")).toHaveLength(1);
  expect(config.serverExternalPackages).toEqual(expect.arrayContaining(["sharp", "keybrake"]));
  expect(config.outputFileTracingIncludes["/**"]).toEqual(["./native/*"]);
  expect(given.serverExternalPackages).toEqual(["sharp", "stripe"]);
  // Next.js refuses a package that is in both lists.
  const bundled = withKeybrake({ transpilePackages: ["langchain"] }) as { serverExternalPackages?: string[] };
  expect(bundled.serverExternalPackages).not.toContain("langchain");
  const made = await withKeybrake(async (phase: string) => ({
    distDir: phase,
    serverExternalPackages: [] as string[],
  }))("p");
  expect(made).toMatchObject({ distDir: "p", serverExternalPackages: expect.arrayContaining(["keybrake"]) });
});
