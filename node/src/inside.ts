/**
 * What an object of ours keeps to itself, for our own modules alone: the `Keybrake` behind a run or an agent, what a
 * `Secret` refers to. No field and no method of the object leads there. One store for the ESM and the CommonJS build,
 * and across bundles, so that what one made is understood by the other.
 */

const KEY = Symbol.for("keybrake.inside");
const shared = globalThis as { [KEY]?: WeakMap<object, unknown> };
shared[KEY] ??= new WeakMap();
const store = shared[KEY];

/** Keeps something for an object, for as long as there is that object. */
export function keep(owner: object, what: unknown): void {
  store.set(owner, what);
}

/** What is kept for it; `undefined` for what is not ours. */
export function kept(owner: unknown): unknown {
  return typeof owner === "object" && owner !== null ? store.get(owner) : undefined;
}
