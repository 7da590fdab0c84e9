/** What edge runtimes and browsers get instead: the error that helps. */

throw new Error(
  "Keybrake enforces spending limits inside a Node.js process with a native module, which edge runtimes and browsers " +
    'cannot load. In Next.js put `export const runtime = "nodejs"` into the route; never import keybrake in code that ' +
    "runs in a browser.",
);

export {};
