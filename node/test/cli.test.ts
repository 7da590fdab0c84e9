// The command line as npm installs it, with what only Node can do to it.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const command = fileURLToPath(new URL("../bin/keybrake.cjs", import.meta.url));

test.each(["SIGINT", "SIGTERM"] as const)("%s ends a simulator, which says what it did", async (signal) => {
  const child = spawn(process.execPath, [command, "simulate", "--port", "0"], { stdio: ["ignore", "pipe", "inherit"] });
  try {
    const ended = once(child, "exit");
    const said: string[] = [];
    for await (const line of createInterface({ input: child.stdout })) {
      said.push(line);
      if (line === "Ctrl-C ends it.") child.kill(signal);
    }
    expect(await ended).toEqual([0, null]);
    expect(said.indexOf("Ctrl-C ends it.")).toBeLessThan(said.length - 1);
  } finally {
    child.kill("SIGKILL");
  }
});

test("exit codes are the program's", async () => {
  const child = spawn(process.execPath, [command, "no-such-command"], { stdio: "ignore" });
  expect(await once(child, "exit")).toEqual([2, null]);
});
