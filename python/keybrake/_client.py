"""The front door: `Keybrake`, which waits for its answers."""

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
from keybrake._run import Key, Run
from keybrake._types import AuditRow, Budget, BudgetEntry, Check, Hold, HookName, State, StopInfo, StopResult

if TYPE_CHECKING:
    import stripe


class Keybrake(Front):
    """A ledger, the vendors' secrets, and the clients that the ledger governs.

    `ledger` is a URL such as `sqlite:spend.db`; without it, `KEYBRAKE_LEDGER` or a file in the user's data directory
    (on a workstation only). `secrets` and `base_urls` go by vendor; without them the vendors' usual environment
    variables count. Under pytest a vendor that is not on loopback is refused unless `allow_live_in_tests`.
    """

    budgets: BudgetDesk

    def _begin(self) -> None:
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
        return asks.issue(policy, asks.Ties(run, agent, label, group, narrow, expires_in)).now(self.engine)

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
        ties = asks.Ties(run, agent, label, group, narrow, expires_in)
        ask = asks.opening(token, policy, ties, allow_run_caps_only=allow_run_caps_only)
        return Run(self, *ask.now(self.engine))

    def run(self, token: str | Key | None = None, **options: Any) -> Run:
        """As `open`, for a `with` block: makes the run current inside it, and closes it."""
        return self.open(token, **options)

    def check(
        self,
        token: str | Key,
        endpoint: str,
        fields: Mapping[str, Any] | None = None,
        *,
        vendor: str = "stripe",
    ) -> Check:
        """What would happen to a call such as `"POST /v1/refunds", {"amount": 5000}`. Nothing is reserved or sent."""
        return asks.check(token, endpoint, fields, vendor).now(self.engine)

    def usage(self, key_id: str) -> tuple[Budget, ...]:
        """The budgets that a key draws on, as they stand."""
        return asks.usage(key_id).now(self.engine)

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
        matching = {"run": run, "call_id": call_id, "key_id": key_id, "agent": agent, "denied": denied}
        return asks.audit(since, limit, matching).now(self.engine)

    def holds(self, *, run: str | None = None, state: State | None = None) -> list[Hold]:
        """Reservations that still hold something, oldest first."""
        return asks.holds(run, state).now(self.engine)

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
        """Refuses everything in a scope from the next call on, also keys issued later, until `resume`.

        `hard` also aborts calls in flight, in every process: they end with a `Denied` (`stopped`), and whether they
        took effect is unknown until they are reconciled.
        """
        scope = asks.Scope(run, agent, label, group, vendor, key, all)
        return asks.stop(scope, reason, hard).now(self.engine)

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
        scope = asks.Scope(run, agent, label, group, vendor, key, all)
        return asks.resume(scope, reason).now(self.engine)

    def stops(self) -> list[StopInfo]:
        """All standing stops."""
        return asks.stops().now(self.engine)

    def revoke(self, key_id: str, *, reason: str = "") -> bool:
        """Ends a key for good, and with it its children; answers whether it was open before."""
        return asks.revoke(key_id, reason).now(self.engine)

    def flush(self) -> None:
        """Waits until the ledger has written down what is still lazy."""
        asks.flush().now(self.engine)

    def close(self) -> None:
        """Flushes and ends the engine. Calls afterwards fail. Safe to repeat."""
        self.engine.close()

    def __enter__(self) -> Keybrake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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


class BudgetDesk:
    """Budgets of groups, such as `tenant:acme`. Changing a cap works on the next call, for everyone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set(self, scope: str, budgets: Sequence[BudgetEntry], *, reason: str = "") -> None:
        """Creates a scope's budgets or changes their caps: `[{"usd": 500, "per": "month"}]`."""
        asks.set_budgets(scope, budgets, reason).now(self._engine)

    def get(self, scope: str) -> tuple[Budget, ...]:
        """A scope's budgets as they stand."""
        return asks.budgets(scope).now(self._engine)

    def list(self) -> tuple[Budget, ...]:
        """All budgets as they stand."""
        return asks.budgets(None).now(self._engine)
