"""A run: one task's execution, with the key it spends by."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from keybrake._context import Entered, Here, carried, entered_run, entered_step, here
from keybrake._errors import KeybrakeError
from keybrake._money import moment
from keybrake._types import Budget, CallInfo, Check

if TYPE_CHECKING:
    import stripe

    from keybrake._async_client import AsyncKeybrake
    from keybrake._client import Keybrake

log = logging.getLogger("keybrake")
P = ParamSpec("P")
T = TypeVar("T")

_CALLS = 1000
"""How many calls a handle remembers."""


@dataclass(frozen=True)
class Key:
    """A vault key as issued. The token is shown once, here; `repr` never shows it."""

    id: str
    token: str
    expires_at: datetime
    run: str | None = None

    def __repr__(self) -> str:
        return f"Key(id={self.id!r}, expires_at={self.expires_at.isoformat()!r}, token=...)"

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> Key:
        """From the engine's form."""
        return cls(answer["id"], answer["token"], moment(answer["expires_at_ms"]), answer.get("run"))


class _RunState:
    """What a run is in both worlds: who it is, what it did, and what is current inside it."""

    def __init__(self, key_id: str, token: str, run_id: str | None, owned: bool) -> None:
        self.key_id = key_id
        """The key's public id."""
        self.token = token
        """The vault key, to give to any SDK as its API key."""
        self.id = run_id
        """The run's id, if the key is bound to one."""
        self._to_revoke = owned
        self._closed = False
        self._calls: deque[CallInfo] = deque(maxlen=_CALLS)
        self._entered: list[Entered] = []

    @property
    def calls(self) -> tuple[CallInfo, ...]:
        """The calls made through this handle so far, the newest thousand: verdict, cost, replayed, call_id."""
        return tuple(self._calls)

    @property
    def closed(self) -> bool:
        """Whether the run was closed: its calls are then refused as `key_expired`."""
        return self._closed

    def record(self, call: CallInfo) -> None:
        """Notes a call; the transports do it."""
        self._calls.append(call)

    def _not_revoked(self, error: KeybrakeError) -> None:
        """The end of a block undoes no work: the handle is closed and the key expires.

        Logged: a warning would be raised by `-W error`, in place of what the block raised.
        """
        log.warning("keybrake: the key %s was not revoked and ends when it expires: %s", self.key_id, error)

    def _enter(self, run: Run | AsyncRun) -> None:
        entered = entered_run(run)
        entered.__enter__()
        self._entered.append(entered)

    def _leave(self) -> None:
        if self._entered:
            self._entered.pop().__exit__(None, None, None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, key_id={self.key_id!r})"


class Run(_RunState):
    """An open run. `with` makes it current and closes it; `close` ends it without a block."""

    def __init__(self, keybrake: Keybrake, key_id: str, token: str, run_id: str | None, owned: bool) -> None:
        super().__init__(key_id, token, run_id, owned)
        self._keybrake = keybrake

    def stripe(self, **options: Any) -> stripe.StripeClient:
        """A real `stripe.StripeClient` that spends by this run. Options are the SDK's own, and `wait_ms`."""
        from keybrake.stripe import client  # noqa: PLC0415 - the SDK is loaded only when it is used

        return client(self._keybrake, self.token, run=self, **options)

    def step(self, step: str, *, item: str | None = None, **context: Any) -> AbstractContextManager[None]:
        """A named step: within it, the same call is the same spend. `context` goes to the audit's metadata."""
        return entered_step(self, step, item, context)

    def item(self, item: str, **context: Any) -> AbstractContextManager[None]:
        """One thing worked on: within it, the same call is the same spend for this thing."""
        return entered_step(self, None, item, context)

    def carry(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, to run in a thread of your own, in this run and the present step."""
        current = here() if here().run is self else Here(run=self)
        return carried(current, function)

    def check(self, endpoint: str, fields: Mapping[str, Any] | None = None, *, vendor: str = "stripe") -> Check:
        """What would happen to a call such as `"POST /v1/refunds", {"amount": 5000}`. Nothing is reserved or sent."""
        return self._keybrake.check(self.token, endpoint, fields, vendor=vendor)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets that this run draws on, as they stand now."""
        return self._keybrake.usage(self.key_id)

    @property
    def spent(self) -> Decimal | None:
        """Dollars settled in the tightest money budget (the one with least left); `None` when none limits the run."""
        return _of(tightest(self.budgets), "used")

    @property
    def held(self) -> Decimal | None:
        """Dollars reserved and not yet proven in the tightest money budget; `None` when none limits the run."""
        return _of(tightest(self.budgets), "held")

    @property
    def cap(self) -> Decimal | None:
        """The cap of the tightest money budget; `None` when none limits the run."""
        return _of(tightest(self.budgets), "cap")

    @property
    def remaining(self) -> Decimal | None:
        """What is left of the tightest money budget; `None` when none limits the run."""
        return _of(tightest(self.budgets), "remaining")

    def close(self) -> None:
        """Ends the run: a key made for it is revoked, later calls get `key_expired`, holds stay.

        Safe to repeat; where the ledger did not take the revocation, that tries again.
        """
        self._closed = True
        if self._to_revoke:
            self._keybrake.revoke(self.key_id, reason="run closed")
            self._to_revoke = False

    def __enter__(self) -> Run:
        self._enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        try:
            self.close()
        except KeybrakeError as failed:
            self._not_revoked(failed)


class AsyncRun(_RunState):
    """An open run in asyncio. What touches the ledger is a coroutine."""

    def __init__(self, keybrake: AsyncKeybrake, key_id: str, token: str, run_id: str | None, owned: bool) -> None:
        super().__init__(key_id, token, run_id, owned)
        self._keybrake = keybrake

    def stripe(self, **options: Any) -> stripe.StripeClient:
        """A real `stripe.StripeClient`; use its `*_async` methods."""
        from keybrake.stripe import client  # noqa: PLC0415 - the SDK is loaded only when it is used

        return client(self._keybrake, self.token, run=self, **options)

    def step(self, step: str, *, item: str | None = None, **context: Any) -> AbstractContextManager[None]:
        """A named step: within it, the same call is the same spend. A plain `with`."""
        return entered_step(self, step, item, context)

    def item(self, item: str, **context: Any) -> AbstractContextManager[None]:
        """One thing worked on."""
        return entered_step(self, None, item, context)

    def carry(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, to run in a thread of your own, in this run and the present step."""
        current = here() if here().run is self else Here(run=self)
        return carried(current, function)

    async def check(self, endpoint: str, fields: Mapping[str, Any] | None = None, *, vendor: str = "stripe") -> Check:
        """What would happen to a call. Nothing is reserved or sent."""
        return await self._keybrake.check(self.token, endpoint, fields, vendor=vendor)

    async def budgets(self) -> tuple[Budget, ...]:
        """The budgets that this run draws on, as they stand now."""
        return await self._keybrake.usage(self.key_id)

    async def spent(self) -> Decimal | None:
        """Dollars settled in the tightest money budget; `None` when none limits the run."""
        return _of(tightest(await self.budgets()), "used")

    async def held(self) -> Decimal | None:
        """Dollars reserved and not yet proven in the tightest money budget; `None` when none limits the run."""
        return _of(tightest(await self.budgets()), "held")

    async def cap(self) -> Decimal | None:
        """The cap of the tightest money budget; `None` when none limits the run."""
        return _of(tightest(await self.budgets()), "cap")

    async def remaining(self) -> Decimal | None:
        """What is left of the tightest money budget; `None` when none limits the run."""
        return _of(tightest(await self.budgets()), "remaining")

    async def close(self) -> None:
        """Ends the run: a key made for it is revoked, later calls get `key_expired`, holds stay.

        Safe to repeat; where the ledger did not take the revocation, that tries again.
        """
        self._closed = True
        if self._to_revoke:
            await self._keybrake.revoke(self.key_id, reason="run closed")
            self._to_revoke = False

    async def __aenter__(self) -> AsyncRun:
        self._enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        try:
            await self.close()
        except KeybrakeError as failed:
            self._not_revoked(failed)


def tightest(budgets: tuple[Budget, ...]) -> Budget | None:
    """The money budget with least left, if there is one."""
    money = [budget for budget in budgets if budget.unit == "usd"]
    return min(money, key=lambda budget: budget.remaining, default=None)


def _of(budget: Budget | None, amount: Literal["used", "held", "cap", "remaining"]) -> Decimal | None:
    found: Decimal | None = None if budget is None else getattr(budget, amount)
    return found


__all__ = ["AsyncRun", "Key", "Run", "tightest"]
