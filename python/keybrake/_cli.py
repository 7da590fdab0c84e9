"""The `keybrake` command: the Rust command line, run from the package."""

from __future__ import annotations

import signal
import sys

from keybrake import _keybrake


def main() -> int:
    """Runs it with this process's arguments; answers its exit code."""
    # Ctrl-C belongs to the command line now, not to Python, which would notice only when it is over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _keybrake.cli(["keybrake", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
