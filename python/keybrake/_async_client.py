"""The front door for asyncio: `AsyncKeybrake`. What each call means is said at `Keybrake`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from keybrake import _asks as asks
from keybrake._engine import Engine
from keybrake._front import Front
from keybrake._hooks import Hook
from keybrake._requests import PolicyLike
from keybrake._run import AsyncRun, Key
from keybrake._types import AuditRow, Budget, BudgetEntry, Check, Hold, HookName, State, StopInfo, StopResult

if TYPE_CHECKING:
    import stripe


class AsyncKeybrake(Front):
    """`Keybrake` for asyncio: what touches the ledger is a coroutine; `stripe`, `on` and `carry` are plain."""

    budgets: AsyncBudgetDesk

    def _begin(self) -> None:
        self.budgets = AsyncBudgetDesk(self.engine)

    @classmethod
    def agent(cls, ledger: str | None = None, **settings: Any) -> AsyncAgent:
        """For an agent's own code: the same settings, without any way to issue, stop, revoke or change budgets."""
        return AsyncAgent(cls(ledger, **settings))

    async def issue(
        self,
        policy: PolicyLike,
        *,
        run: str | None = None,
        agent: str | None = None,
        label: str | None = None,
        group: str | Sequence[str] | None = None,
        narrow: Mapping[str, Any] | None = None,
        expires_in: str | timedelta | None = None,
    ) -> Key:
        """As `Keybrake.issue`."""
        return await asks.issue(policy, asks.Ties(run, agent, label, group, narrow, expires_in)).later(self.engine)

    async def open(
        self,
        token: str | Key | None = None,
        *,
        policy: PolicyLike | None = None,
        run: str | None = None,
        agent: str | None = None,
        label: str | None = None,
        group: str | Sequence[str] | None = None,
        narrow: Mapping[str, Any] | None = None,
        expires_in: str | timedelta | None = None,
        allow_run_caps_only: bool = False,
    ) -> AsyncRun:
        """As `Keybrake.open`."""
        ties = asks.Ties(run, agent, label, group, narrow, expires_in)
        ask = asks.opening(token, policy, ties, allow_run_caps_only=allow_run_caps_only)
        return AsyncRun(self, *await ask.later(self.engine))

    def run(self, token: str | Key | None = None, **options: Any) -> Opening:
        """As `open`, for an `async with` block: makes the run current inside it, and closes it."""
        return Opening(self, token, options)

    async def check(
        self,
        token: str | Key,
        endpoint: str,
        fields: Mapping[str, Any] | None = None,
        *,
        vendor: str = "stripe",
    ) -> Check:
        """As `Keybrake.check`."""
        return await asks.check(token, endpoint, fields, vendor).later(self.engine)

    async def usage(self, key_id: str) -> tuple[Budget, ...]:
        """As `Keybrake.usage`."""
        return await asks.usage(key_id).later(self.engine)

    async def audit(
        self,
        *,
        run: str | None = None,
        call_id: str | None = None,
        key_id: str | None = None,
        agent: str | None = None,
        denied: bool | None = None,
        since: datetime | timedelta | None = None,
        limit: int = 1000,
    ) -> list[AuditRow]:
        """As `Keybrake.audit`."""
        matching = {"run": run, "call_id": call_id, "key_id": key_id, "agent": agent, "denied": denied}
        return await asks.audit(since, limit, matching).later(self.engine)

    async def holds(self, *, run: str | None = None, state: State | None = None) -> list[Hold]:
        """As `Keybrake.holds`."""
        return await asks.holds(run, state).later(self.engine)

    async def stop(
        self,
        *,
        run: str | None = None,
        agent: str | None = None,
        label: str | None = None,
        group: str | None = None,
        vendor: str | None = None,
        key: str | None = None,
        all: bool = False,  # noqa: A002 - the command line's word
        reason: str = "",
        hard: bool = False,
    ) -> StopResult:
        """As `Keybrake.stop`."""
        scope = asks.Scope(run, agent, label, group, vendor, key, all)
        return await asks.stop(scope, reason, hard).later(self.engine)

    async def resume(
        self,
        *,
        run: str | None = None,
        agent: str | None = None,
        label: str | None = None,
        group: str | None = None,
        vendor: str | None = None,
        key: str | None = None,
        all: bool = False,  # noqa: A002 - the command line's word
        reason: str = "",
    ) -> bool:
        """As `Keybrake.resume`."""
        scope = asks.Scope(run, agent, label, group, vendor, key, all)
        return await asks.resume(scope, reason).later(self.engine)

    async def stops(self) -> list[StopInfo]:
        """As `Keybrake.stops`."""
        return await asks.stops().later(self.engine)

    async def revoke(self, key_id: str, *, reason: str = "") -> bool:
        """As `Keybrake.revoke`."""
        return await asks.revoke(key_id, reason).later(self.engine)

    async def flush(self) -> None:
        """As `Keybrake.flush`."""
        await asks.flush().later(self.engine)

    async def close(self) -> None:
        """Flushes and ends the engine. Calls afterwards fail. Safe to repeat."""
        if not self.engine.closed:
            await self.flush()
            self.engine.close()

    async def __aenter__(self) -> AsyncKeybrake:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Opening:
    """A run about to be opened by `async with`."""

    def __init__(self, keybrake: AsyncKeybrake, token: str | Key | None, options: dict[str, Any]) -> None:
        self._keybrake = keybrake
        self._token = token
        self._options = options
        self._run: AsyncRun | None = None

    async def __aenter__(self) -> AsyncRun:
        self._run = await self._keybrake.open(self._token, **self._options)
        return await self._run.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is not None:
            await self._run.__aexit__(kind, error, trace)


class AsyncAgent:
    """As `Agent`, in asyncio."""

    def __init__(self, keybrake: AsyncKeybrake) -> None:
        self._keybrake = keybrake

    async def open(self, token: str | Key | None = None) -> AsyncRun:
        """As `Agent.open`."""
        return await self._keybrake.open(token)

    def run(self, token: str | Key | None = None) -> Opening:
        """As `Agent.run`, for an `async with` block."""
        return self._keybrake.run(token)

    def stripe(self, token: str | Key, *, wait_ms: int = 0, **options: Any) -> stripe.StripeClient:
        """As `AsyncKeybrake.stripe`."""
        return self._keybrake.stripe(token, wait_ms=wait_ms, **options)

    def on(self, event: HookName, hook: Hook) -> Callable[[], None]:
        """As `Keybrake.on`."""
        return self._keybrake.on(event, hook)

    async def close(self) -> None:
        """As `AsyncKeybrake.close`."""
        await self._keybrake.close()

    async def __aenter__(self) -> AsyncAgent:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncBudgetDesk:
    """As `BudgetDesk`, in asyncio."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def set(self, scope: str, budgets: Sequence[BudgetEntry], *, reason: str = "") -> None:
        """Creates a scope's budgets or changes their caps."""
        await asks.set_budgets(scope, budgets, reason).later(self._engine)

    async def get(self, scope: str) -> tuple[Budget, ...]:
        """A scope's budgets as they stand."""
        return await asks.budgets(scope).later(self._engine)

    async def list(self) -> tuple[Budget, ...]:
        """All budgets as they stand."""
        return await asks.budgets(None).later(self._engine)
