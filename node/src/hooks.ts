/** Functions that users attach to what happens. A failing hook never fails a call: it is reported as a warning. */

import type { Denied } from "./errors.js";
import type { Budget, CallInfo } from "./types.js";

/** What each event hands to its hooks. */
export interface HookEvents {
  call: CallInfo;
  denied: Denied;
  replayed: CallInfo;
  unknown: CallInfo;
  /** The tightest budget after a call, from 80 % of its cap on. */
  budget: Budget;
  stopped: Denied;
}

export type HookName = keyof HookEvents;
export type Hook<K extends HookName> = (what: HookEvents[K]) => void;

const NAMES: readonly HookName[] = ["call", "denied", "replayed", "unknown", "budget", "stopped"];

/** The hooks of one `Keybrake`, by event. */
export class Hooks {
  readonly #hooks = new Map<HookName, Set<Hook<HookName>>>();

  /** Attaches a hook; answers a function that takes it off again. */
  on<K extends HookName>(event: K, hook: Hook<K>): () => void {
    if (!NAMES.includes(event)) throw new TypeError(`no event ${JSON.stringify(event)}: one of ${NAMES.join(", ")}`);
    const attached = this.#hooks.get(event) ?? new Set();
    this.#hooks.set(event, attached);
    attached.add(hook as Hook<HookName>);
    return () => void attached.delete(hook as Hook<HookName>);
  }

  /** Whether anybody listens to an event. */
  heard(event: HookName): boolean {
    return (this.#hooks.get(event)?.size ?? 0) > 0;
  }

  /** Calls every hook of an event, in the order of attachment. A promise that a hook returns may reject. */
  fire<K extends HookName>(event: K, what: HookEvents[K]): void {
    for (const hook of this.#hooks.get(event) ?? []) {
      try {
        const returned: unknown = (hook as Hook<K>)(what);
        if (returned instanceof Promise) returned.catch((error: unknown) => warn(event, error));
      } catch (error) {
        warn(event, error);
      }
    }
  }
}

function warn(event: HookName, error: unknown): void {
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  process.emitWarning(`the ${event} hook failed; the call is not affected: ${text}`, { type: "KeybrakeHook" });
}
