"""Spending limits for the API keys that agents hold, enforced before a call leaves the process.

with keybrake.run(policy=policy) as run:
    stripe = run.stripe()                       # a real stripe.StripeClient
    stripe.v1.refunds.create({"charge": "ch_1"})
    print(run.spent, "of", run.cap)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from keybrake._async_client import AsyncAgent, AsyncKeybrake
from keybrake._client import Agent, Keybrake
from keybrake._context import Executor, current_run
from keybrake._errors import (
    ConfigError,
    Denied,
    KeybrakeError,
    LedgerError,
    NoRun,
    NotFound,
    PolicyError,
    VendorError,
    denied,
)
from keybrake._keybrake import __version__
from keybrake._keys import content_key, item_key, step_key
from keybrake._run import AsyncRun, Key, Run
from keybrake._secret import Secret
from keybrake._types import (
    AuditRow,
    Budget,
    BudgetEntry,
    CallInfo,
    Check,
    Code,
    ExistingCall,
    Hold,
    Policy,
    StopInfo,
    StopResult,
)

_default: list[Keybrake] = []


def default() -> Keybrake:
    """The `Keybrake` that the functions of this module use: opened from the environment on first use."""
    if not _default or _default[0].engine.closed:
        _default[:] = [Keybrake()]
    return _default[0]


def open(token: str | Key | None = None, **options: Any) -> Run:  # noqa: A001 - the API's name
    """`Keybrake.open` of the default Keybrake."""
    return default().open(token, **options)


def run(token: str | Key | None = None, **options: Any) -> Run:
    """`Keybrake.run` of the default Keybrake."""
    return default().run(token, **options)


def install(*vendors: str, keybrake: Keybrake | AsyncKeybrake | None = None) -> None:
    """Governs the module-level clients of these vendors' SDKs, such as `install("stripe")`; do it once, at start-up.

    Then give a vault key where the secret key was given: `stripe.api_key = os.environ["KEYBRAKE_TOKEN"]`.
    """
    for vendor in vendors:
        if vendor != "stripe":
            raise ConfigError(f"no integration {vendor!r}; there is one: 'stripe'")
        import_module(f"keybrake.{vendor}").install(keybrake or default())


__all__ = [
    "Agent",
    "AsyncAgent",
    "AsyncKeybrake",
    "AsyncRun",
    "AuditRow",
    "Budget",
    "BudgetEntry",
    "CallInfo",
    "Check",
    "Code",
    "ConfigError",
    "Denied",
    "Executor",
    "ExistingCall",
    "Hold",
    "Key",
    "Keybrake",
    "KeybrakeError",
    "LedgerError",
    "NoRun",
    "NotFound",
    "Policy",
    "PolicyError",
    "Run",
    "Secret",
    "StopInfo",
    "StopResult",
    "VendorError",
    "__version__",
    "content_key",
    "current_run",
    "default",
    "denied",
    "install",
    "item_key",
    "open",
    "run",
    "step_key",
]
