"""What `Keybrake` and `AsyncKeybrake` share: the settings, the hooks, and the clients of vendors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from keybrake import _requests as requests
from keybrake._asks import token_of
from keybrake._context import carried, here
from keybrake._engine import Engine
from keybrake._hooks import Hook, Hooks
from keybrake._run import Key, P, T
from keybrake._secret import Secret
from keybrake._types import HookName

if TYPE_CHECKING:
    import stripe


class Front:
    """A ledger, the vendors' secrets, and the clients that the ledger governs."""

    def __init__(
        self,
        ledger: str | None = None,
        *,
        secrets: Mapping[str, Secret | str] | None = None,
        base_urls: Mapping[str, str] | None = None,
        transport: str = "rust",
        allow_live_in_tests: bool = False,
    ) -> None:
        self.engine = Engine(requests.settings(ledger, secrets, base_urls, transport))
        self.hooks = Hooks()
        self.allow_live_in_tests = allow_live_in_tests
        self._begin()

    def _begin(self) -> None:
        """What a front does once its engine is there."""

    def on(self, event: HookName, hook: Hook) -> Callable[[], None]:
        """Calls `hook` on `call`, `denied`, `replayed`, `unknown`, `budget` or `stopped`; answers how to take it off.

        It gets the `CallInfo`, the `Denied` (for `denied` and `stopped`) or the tightest `Budget` after a call. A
        failing hook never fails a call.
        """
        return self.hooks.on(event, hook)

    def carry(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, to run in a thread of your own, in the present run and step."""
        return carried(here(), function)

    def stripe(self, token: str | Key, *, wait_ms: int = 0, **options: Any) -> stripe.StripeClient:
        """A real `stripe.StripeClient` that spends by this key; in asyncio, use its `*_async` methods.

        `wait_ms` is how long a call may wait while only open holds stand in its way. `options` are the SDK's own.
        """
        from keybrake.stripe import client  # noqa: PLC0415 - the SDK is loaded only when it is used

        return client(self, token_of(token), wait_ms=wait_ms, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' closed' if self.engine.closed else ''}>"
