"""What `Keybrake` and `AsyncKeybrake` ask of the engine, said once: the word, its arguments, how the answer reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar

from keybrake import _requests as requests
from keybrake._engine import Engine
from keybrake._errors import ConfigError
from keybrake._requests import PolicyLike
from keybrake._run import Key
from keybrake._types import AuditRow, Budget, BudgetEntry, Check, Hold, State, StopInfo, StopResult

T = TypeVar("T")


@dataclass(frozen=True)
class Ask(Generic[T]):
    """One question or order."""

    what: str
    arguments: Mapping[str, Any]
    read: Callable[[Any], T]

    def now(self, engine: Engine) -> T:
        """Asks and waits."""
        return self.read(engine.ask(self.what, **self.arguments))

    async def later(self, engine: Engine) -> T:
        """Asks from asyncio."""
        return self.read(await engine.ask_async(self.what, **self.arguments))


@dataclass(frozen=True)
class Ties:
    """What binds a key besides its policy, as the user gives it."""

    run: str | None = None
    agent: str | None = None
    label: str | None = None
    group: str | Sequence[str] | None = None
    narrow: Mapping[str, Any] | None = None
    expires_in: str | timedelta | None = None

    def arguments(self) -> dict[str, Any]:
        """The same for the engine."""
        return requests.ties(self.run, self.agent, self.label, self.group, self.narrow, self.expires_in)


@dataclass(frozen=True)
class Scope:
    """What a stop covers: exactly one of these."""

    run: str | None
    agent: str | None
    label: str | None
    group: str | None
    vendor: str | None
    key: str | None
    all: bool

    def argument(self) -> dict[str, Any]:
        """The same for the engine."""
        named = {kind: name for kind, name in vars(self).items() if kind != "all"}
        return requests.scope(named, self.all)


class Opened(NamedTuple):
    """A run that was opened."""

    key_id: str
    token: str
    run: str | None
    owned: bool
    """Whether its key was issued for it, so that closing the run revokes it."""


def issue(policy: PolicyLike, ties: Ties) -> Ask[Key]:
    """Issues a key."""
    return Ask("issue", {**requests.policy_argument(policy), **ties.arguments()}, Key.from_answer)


def opening(
    token: str | Key | None, policy: PolicyLike | None, ties: Ties, *, allow_run_caps_only: bool
) -> Ask[Opened]:
    """Opens a run: of a token (`KEYBRAKE_TOKEN` by default), or of a policy and what binds its key."""
    arguments = _opening(token, policy, ties, allow_run_caps_only)
    return Ask("open", arguments, lambda got: Opened(got["id"], got["token"], got["run"], policy is not None))


def _opening(
    token: str | Key | None, policy: PolicyLike | None, ties: Ties, allow_run_caps_only: bool
) -> dict[str, Any]:
    if token is None and policy is None:
        token = os.environ.get("KEYBRAKE_TOKEN") or None
    if policy is not None and token is None:
        arguments = {**requests.policy_argument(policy), **ties.arguments()}
        return {**arguments, "allow_run_caps_only": allow_run_caps_only}
    if token is None or policy is not None:
        raise ConfigError(
            "open a run with a token (or KEYBRAKE_TOKEN), or with policy= to have one issued; exactly one of them"
        )
    bound = [name for name, value in vars(ties).items() if value is not None and (name != "group" or value)]
    if bound:
        raise ConfigError(f"{', '.join(bound)}: bound when a key is issued; a token that exists cannot be changed")
    return {"token": token_of(token)}


def check(token: str | Key, endpoint: str, fields: Mapping[str, Any] | None, vendor: str) -> Ask[Check]:
    """Judges a call without consequences."""
    return Ask("check", requests.checked_call(token_of(token), endpoint, fields or {}, vendor), requests.check)


def usage(key_id: str) -> Ask[tuple[Budget, ...]]:
    """A key's budgets."""
    return Ask("usage", {"key_id": key_id}, requests.budgets)


def audit(since: datetime | timedelta | None, limit: int, matching: Mapping[str, Any]) -> Ask[list[AuditRow]]:
    """Rows of the audit."""
    arguments = {**matching, "since_ms": requests.since_ms(since), "limit": limit}
    return Ask("audit", arguments, lambda rows: [requests.audit_row(row) for row in rows])


def holds(run: str | None, state: State | None) -> Ask[list[Hold]]:
    """Open holds."""
    return Ask("holds", {"run": run, "state": state}, lambda items: [requests.hold(item) for item in items])


def stop(scope: Scope, reason: str, hard: bool) -> Ask[StopResult]:
    """A standing refusal."""
    arguments = {"scope": scope.argument(), "reason": reason, "by": requests.who(), "hard": hard}
    return Ask("stop", arguments, requests.stop_result)


def resume(scope: Scope, reason: str) -> Ask[bool]:
    """The end of a stop."""
    return Ask("resume", {"scope": scope.argument(), "reason": reason, "by": requests.who()}, bool)


def stops() -> Ask[list[StopInfo]]:
    """All standing stops."""
    return Ask("stops", {}, lambda items: [requests.stop_info(item) for item in items])


def revoke(key_id: str, reason: str) -> Ask[bool]:
    """The end of a key."""
    return Ask("revoke", {"key_id": key_id, "reason": reason, "by": requests.who()}, bool)


def flush() -> Ask[None]:
    """Writes down what is still lazy."""
    return Ask("flush", {}, _nothing)


def set_budgets(scope: str, budgets: Sequence[BudgetEntry], reason: str) -> Ask[None]:
    """Creates a scope's budgets or changes their caps."""
    entries = requests.budget_definitions(scope, budgets)
    arguments = {"scope": scope, "budgets": entries, "reason": reason, "by": requests.who()}
    return Ask("set_budgets", arguments, _nothing)


def budgets(scope: str | None) -> Ask[tuple[Budget, ...]]:
    """Budgets as they stand: a scope's, or all."""
    return Ask("budgets", {"scope": scope}, requests.budgets)


def token_of(token: str | Key) -> str:
    """The token itself, from a key or a text."""
    return token.token if isinstance(token, Key) else token


def _nothing(_answer: Any) -> None:
    return None
