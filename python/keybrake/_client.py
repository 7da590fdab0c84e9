"""The front door: `Keybrake`, and `AsyncKeybrake` for asyncio. Both speak to the same native engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from keybrake import _requests as requests
from keybrake._context import carried, here
from keybrake._engine import Engine
from keybrake._errors import ConfigError
from keybrake._hooks import Hook, Hooks
from keybrake._requests import PolicyLike
from keybrake._run import AsyncRun, Key, P, Run, T
from keybrake._secret import Secret
from keybrake._types import AuditRow, Budget, BudgetEntry, Check, Hold, HookName, State, StopInfo, StopResult

if TYPE_CHECKING:
    import stripe


class Common:
    """What both fronts share: the engine, the hooks, and the clients of vendors."""

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

    def on(self, event: HookName, hook: Hook) -> Callable[[], None]:
        """Calls `hook` on `call`, `denied`, `replayed`, `unknown`, `budget` or `stopped`; answers how to take it off.

        It gets the `CallInfo`, the `Denied` (for `denied` and `stopped`) or the tightest `Budget` after a call. A
        failing hook never fails a call.
        """
        return self.hooks.on(event, hook)

    def carry(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, to run in a thread of your own, in the present run and step."""
        return carried(here(), function)

    def _stripe(self, token: str, wait_ms: int, options: dict[str, Any]) -> stripe.StripeClient:
        from keybrake.stripe import client  # noqa: PLC0415 - the SDK is loaded only when it is used

        return client(self, token, wait_ms=wait_ms, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' closed' if self.engine.closed else ''}>"


class Keybrake(Common):
    """A ledger, the vendors' secrets, and the clients that the ledger governs.

    `ledger` is a URL such as `sqlite:spend.db`; without it, `KEYBRAKE_LEDGER` or a file in the user's data directory
    (on a workstation only). `secrets` and `base_urls` go by vendor; without them the vendors' usual environment
    variables count. Under pytest a vendor that is not on loopback is refused unless `allow_live_in_tests`.
    """

    def __init__(
        self,
        ledger: str | None = None,
        *,
        secrets: Mapping[str, Secret | str] | None = None,
        base_urls: Mapping[str, str] | None = None,
        transport: str = "rust",
        allow_live_in_tests: bool = False,
    ) -> None:
        super().__init__(
            ledger,
            secrets=secrets,
            base_urls=base_urls,
            transport=transport,
            allow_live_in_tests=allow_live_in_tests,
        )
        self.engine.native().open()
        self.budgets = BudgetDesk(self.engine)

    @classmethod
    def agent(cls, ledger: str | None = None, **settings: Any) -> Agent:
        """For an agent's own code: the same settings, without any way to issue, stop, revoke or change budgets."""
        return Agent(cls(ledger, **settings))

    def issue(
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
        """Issues a vault key under a policy (a mapping, or the path of a file). The token is shown here only."""
        ties = requests.ties(run, agent, label, group, narrow, expires_in)
        return Key.from_answer(self.engine.ask("issue", **requests.policy_argument(policy), **ties))

    def open(
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
    ) -> Run:
        """A run that you close: of a token, or of a policy, for which a key is issued that closing revokes.

        A policy whose every budget is scoped to the run is refused, since ten runs would be ten caps;
        `allow_run_caps_only` accepts it.
        """
        ties = requests.ties(run, agent, label, group, narrow, expires_in)
        answer = self.engine.ask("open", **opening(token, policy, ties, allow_run_caps_only))
        return Run(self, answer["id"], answer["token"], answer["run"], policy is not None)

    def run(self, token: str | Key | None = None, **options: Any) -> Run:
        """As `open`, for a `with` block: makes the run current inside it, and closes it."""
        return self.open(token, **options)

    def stripe(self, token: str | Key, *, wait_ms: int = 0, **options: Any) -> stripe.StripeClient:
        """A real `stripe.StripeClient` that spends by this key. `options` are the SDK's own.

        `wait_ms` is how long a call may wait while only open holds stand in its way.
        """
        return self._stripe(token_of(token), wait_ms, options)

    def check(
        self,
        token: str | Key,
        endpoint: str,
        fields: Mapping[str, Any] | None = None,
        *,
        vendor: str = "stripe",
    ) -> Check:
        """What would happen to a call such as `"POST /v1/refunds", {"amount": 5000}`. Nothing is reserved or sent."""
        arguments = requests.checked_call(token_of(token), endpoint, fields or {}, vendor)
        return requests.check(self.engine.ask("check", **arguments))

    def usage(self, key_id: str) -> tuple[Budget, ...]:
        """The budgets that a key draws on, as they stand."""
        return requests.budgets(self.engine.ask("usage", key_id=key_id))

    def audit(
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
        """The newest rows of the audit that match, oldest first."""
        asked = {"run": run, "call_id": call_id, "key_id": key_id, "agent": agent, "denied": denied}
        rows = self.engine.ask("audit", **asked, since_ms=requests.since_ms(since), limit=limit)
        return [requests.audit_row(row) for row in rows]

    def holds(self, *, run: str | None = None, state: State | None = None) -> list[Hold]:
        """Reservations that still hold something, oldest first."""
        return [requests.hold(item) for item in self.engine.ask("holds", run=run, state=state)]

    def stop(
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
        """Refuses everything in a scope from the next call on, also keys issued later, until `resume`."""
        scopes = {"run": run, "agent": agent, "label": label, "group": group, "vendor": vendor, "key": key}
        requests.refuse_hard(hard)
        answer = self.engine.ask("stop", scope=requests.scope(scopes, all), reason=reason, by=requests.who())
        return requests.stop_result(answer)

    def resume(
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
        """Ends a stop; answers whether there was one."""
        scopes = {"run": run, "agent": agent, "label": label, "group": group, "vendor": vendor, "key": key}
        return bool(self.engine.ask("resume", scope=requests.scope(scopes, all), reason=reason, by=requests.who()))

    def stops(self) -> list[StopInfo]:
        """All standing stops."""
        return [requests.stop_info(item) for item in self.engine.ask("stops")]

    def revoke(self, key_id: str, *, reason: str = "") -> bool:
        """Ends a key for good, and with it its children; answers whether it was open before."""
        return bool(self.engine.ask("revoke", key_id=key_id, reason=reason, by=requests.who()))

    def flush(self) -> None:
        """Waits until the ledger has written down what is still lazy."""
        self.engine.ask("flush")

    def close(self) -> None:
        """Flushes and ends the engine. Calls afterwards fail. Safe to repeat."""
        self.engine.close()

    def __enter__(self) -> Keybrake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncKeybrake(Common):
    """`Keybrake` for asyncio: what touches the ledger is a coroutine; `stripe`, `on` and `carry` are plain."""

    def __init__(
        self,
        ledger: str | None = None,
        *,
        secrets: Mapping[str, Secret | str] | None = None,
        base_urls: Mapping[str, str] | None = None,
        transport: str = "rust",
        allow_live_in_tests: bool = False,
    ) -> None:
        super().__init__(
            ledger,
            secrets=secrets,
            base_urls=base_urls,
            transport=transport,
            allow_live_in_tests=allow_live_in_tests,
        )
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
        ties = requests.ties(run, agent, label, group, narrow, expires_in)
        return Key.from_answer(await self.engine.ask_async("issue", **requests.policy_argument(policy), **ties))

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
        ties = requests.ties(run, agent, label, group, narrow, expires_in)
        answer = await self.engine.ask_async("open", **opening(token, policy, ties, allow_run_caps_only))
        return AsyncRun(self, answer["id"], answer["token"], answer["run"], policy is not None)

    def run(self, token: str | Key | None = None, **options: Any) -> Opening:
        """As `open`, for an `async with` block: makes the run current inside it, and closes it."""
        return Opening(self, token, options)

    def stripe(self, token: str | Key, *, wait_ms: int = 0, **options: Any) -> stripe.StripeClient:
        """A real `stripe.StripeClient` that spends by this key; use its `*_async` methods."""
        return self._stripe(token_of(token), wait_ms, options)

    async def check(
        self,
        token: str | Key,
        endpoint: str,
        fields: Mapping[str, Any] | None = None,
        *,
        vendor: str = "stripe",
    ) -> Check:
        """As `Keybrake.check`."""
        arguments = requests.checked_call(token_of(token), endpoint, fields or {}, vendor)
        return requests.check(await self.engine.ask_async("check", **arguments))

    async def usage(self, key_id: str) -> tuple[Budget, ...]:
        """As `Keybrake.usage`."""
        return requests.budgets(await self.engine.ask_async("usage", key_id=key_id))

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
        asked = {"run": run, "call_id": call_id, "key_id": key_id, "agent": agent, "denied": denied}
        rows = await self.engine.ask_async("audit", **asked, since_ms=requests.since_ms(since), limit=limit)
        return [requests.audit_row(row) for row in rows]

    async def holds(self, *, run: str | None = None, state: State | None = None) -> list[Hold]:
        """As `Keybrake.holds`."""
        return [requests.hold(item) for item in await self.engine.ask_async("holds", run=run, state=state)]

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
        scopes = {"run": run, "agent": agent, "label": label, "group": group, "vendor": vendor, "key": key}
        scope = requests.scope(scopes, all)
        requests.refuse_hard(hard)
        return requests.stop_result(await self.engine.ask_async("stop", scope=scope, reason=reason, by=requests.who()))

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
        scopes = {"run": run, "agent": agent, "label": label, "group": group, "vendor": vendor, "key": key}
        scope = requests.scope(scopes, all)
        return bool(await self.engine.ask_async("resume", scope=scope, reason=reason, by=requests.who()))

    async def stops(self) -> list[StopInfo]:
        """As `Keybrake.stops`."""
        return [requests.stop_info(item) for item in await self.engine.ask_async("stops")]

    async def revoke(self, key_id: str, *, reason: str = "") -> bool:
        """As `Keybrake.revoke`."""
        return bool(await self.engine.ask_async("revoke", key_id=key_id, reason=reason, by=requests.who()))

    async def flush(self) -> None:
        """As `Keybrake.flush`."""
        await self.engine.ask_async("flush")

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


class Agent:
    """What an agent's own code holds: it spends by a token, and has no way to issue, stop, revoke or change budgets."""

    def __init__(self, keybrake: Keybrake) -> None:
        self._keybrake = keybrake

    def open(self, token: str | Key | None = None) -> Run:
        """A run of a token, `KEYBRAKE_TOKEN` by default. Closing it leaves the key as it is."""
        return self._keybrake.open(token)

    def run(self, token: str | Key | None = None) -> Run:
        """As `open`, for a `with` block."""
        return self._keybrake.run(token)

    def stripe(self, token: str | Key, *, wait_ms: int = 0, **options: Any) -> stripe.StripeClient:
        """As `Keybrake.stripe`."""
        return self._keybrake.stripe(token, wait_ms=wait_ms, **options)

    def on(self, event: HookName, hook: Hook) -> Callable[[], None]:
        """As `Keybrake.on`."""
        return self._keybrake.on(event, hook)

    def close(self) -> None:
        """As `Keybrake.close`."""
        self._keybrake.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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


class BudgetDesk:
    """Budgets of groups, such as `tenant:acme`. Changing a cap works on the next call, for everyone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set(self, scope: str, budgets: Sequence[BudgetEntry], *, reason: str = "") -> None:
        """Creates a scope's budgets or changes their caps: `[{"usd": 500, "per": "month"}]`."""
        entries = requests.budget_definitions(scope, budgets)
        self._engine.ask("set_budgets", scope=scope, budgets=entries, reason=reason, by=requests.who())

    def get(self, scope: str) -> tuple[Budget, ...]:
        """A scope's budgets as they stand."""
        return requests.budgets(self._engine.ask("budgets", scope=scope))

    def list(self) -> tuple[Budget, ...]:
        """All budgets as they stand."""
        return requests.budgets(self._engine.ask("budgets", scope=None))


class AsyncBudgetDesk:
    """As `BudgetDesk`, in asyncio."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def set(self, scope: str, budgets: Sequence[BudgetEntry], *, reason: str = "") -> None:
        """Creates a scope's budgets or changes their caps."""
        entries = requests.budget_definitions(scope, budgets)
        await self._engine.ask_async("set_budgets", scope=scope, budgets=entries, reason=reason, by=requests.who())

    async def get(self, scope: str) -> tuple[Budget, ...]:
        """A scope's budgets as they stand."""
        return requests.budgets(await self._engine.ask_async("budgets", scope=scope))

    async def list(self) -> tuple[Budget, ...]:
        """All budgets as they stand."""
        return requests.budgets(await self._engine.ask_async("budgets", scope=None))


def token_of(token: str | Key) -> str:
    """The token itself, from a key or a text."""
    return token.token if isinstance(token, Key) else token


def opening(
    token: str | Key | None, policy: PolicyLike | None, ties: dict[str, Any], run_caps_only: bool
) -> dict[str, Any]:
    """The arguments of opening a run: a token (`KEYBRAKE_TOKEN` by default), or a policy and what binds its key."""
    if token is None and policy is None:
        token = os.environ.get("KEYBRAKE_TOKEN") or None
    if (token is None) == (policy is None):
        raise ConfigError(
            "open a run with a token (or KEYBRAKE_TOKEN), or with policy= to have one issued; exactly one of them"
        )
    if token is not None:
        bound = [name for name in ("run", "agent", "label", "narrow", "expires_in") if ties[name] is not None]
        if bound or ties["groups"]:
            names = ", ".join([*bound, *(["group"] if ties["groups"] else [])])
            raise ConfigError(f"{names}: bound when a key is issued; a token that exists cannot be changed")
        return {"token": token_of(token)}
    assert policy is not None  # noqa: S101 - for the type checker: exactly one was given
    return {**requests.policy_argument(policy), **ties, "allow_run_caps_only": run_caps_only}
