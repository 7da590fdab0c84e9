"""The nouns: policies as typed dictionaries, and what the ledger answers as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias, TypedDict

from keybrake._money import Money, moment, usd_from_micros
from keybrake._operations import StripeOperation

Code: TypeAlias = Literal[
    "key_missing",
    "key_unknown",
    "stopped",
    "key_revoked",
    "key_expired",
    "request_malformed",
    "vendor_not_allowed",
    "endpoint_not_allowed",
    "account_not_allowed",
    "customer_not_allowed",
    "destination_not_allowed",
    "param_not_allowed",
    "outcome_unknown",
    "already_done",
    "idempotency_conflict",
    "attempts_exhausted",
    "cost_unknown",
    "currency_not_allowed",
    "amount_over_limit",
    "needs_approval",
    "cap_exceeded",
    "cap_held",
    "ledger_unavailable",
    "ledger_recovering",
]
"""Why a call was refused, in the order of the checks."""

Vendor: TypeAlias = Literal["stripe"]
Endpoint: TypeAlias = "StripeOperation | Literal['reads'] | str"
"""An operation by name, `reads`, or a method and a path such as `POST /v1/refunds`."""
Per: TypeAlias = Literal["hour", "day", "rolling_24h", "month", "run", "lifetime"]
Unit: TypeAlias = Literal["usd", "calls", "writes", "sends"]
State: TypeAlias = Literal["held", "unknown", "pending", "provisional", "settled", "voided"]
Verdict: TypeAlias = Literal["allowed", "denied", "replayed", "unknown"]
HookName: TypeAlias = Literal["call", "denied", "replayed", "unknown", "budget", "stopped"]


class BudgetEntry(TypedDict, total=False):
    """One entry of a policy's `budgets`: exactly one of the units, a window, and perhaps a scope and a vendor."""

    usd: Money
    calls: int
    writes: int
    sends: int
    per: Per
    scope: str
    vendor: Vendor
    timezone: str


class Policy(TypedDict, total=False):
    """What a key may do. Unknown fields are refused with the nearest valid name. The guide explains each."""

    vendor: Vendor
    vendors: Sequence[Vendor]
    secret: str
    budgets: Sequence[BudgetEntry]
    daily_usd_cap: Money
    daily_usd_cap_total: Money
    per_vendor_daily_caps: Mapping[str, Money]
    hourly_usd_cap: Money
    monthly_usd_cap: Money
    run_usd_cap: Money
    per_customer_daily_usd_cap: Money
    daily_send_cap: int
    hourly_call_cap: int
    daily_call_cap: int
    max_write_operations_per_run: int
    window: Literal["calendar_day", "rolling_24h"]
    timezone: str
    max_amount_per_call_usd: Money
    allowed_endpoints: Sequence[Endpoint] | Mapping[str, Sequence[Endpoint]]
    denied_endpoints: Sequence[Endpoint] | Mapping[str, Sequence[Endpoint]]
    allowed_customers: Sequence[str]
    allowed_accounts: Sequence[str]
    params: Mapping[str, Any]
    idempotency: Literal["auto", "require", "off"]
    on_repeat: Literal["replay", "refuse", "execute"]
    operation_costs: Mapping[str, Any]
    unknown_cost: Literal["lookup", "deny"]
    count_intents: Literal["at_creation", "at_confirm"]
    caller_keys: Literal["trust", "replace"]
    currency_rates: Mapping[str, Any]
    expires_in: str
    expires_at: str
    cap_status: Literal[429, 403]
    model_detail: Literal["full", "reason"]
    mode: Literal["enforce", "observe"]
    label: str
    agent_id: str
    agent_run_id: str
    metadata: Mapping[str, Any]
    parent: str
    groups: Sequence[str]


@dataclass(frozen=True)
class Budget:
    """One budget as it stood at one moment. Amounts are dollars for `usd` budgets, counts for the others."""

    name: str
    unit: Unit
    per: Per
    cap: Decimal
    used: Decimal
    held: Decimal
    resets_at: datetime | None = None
    """When its window ends; None for run and lifetime budgets."""
    hold_ids: tuple[str, ...] = ()
    """Calls that hold part of it, at most ten (in a `cap_held` refusal)."""
    livemode: bool | None = None

    @property
    def remaining(self) -> Decimal:
        """What is left: cap - used - held, never below zero."""
        return max(self.cap - self.used - self.held, Decimal(0))

    @property
    def cap_usd(self) -> Decimal | None:
        """The cap in dollars; None when the budget counts something else."""
        return self.cap if self.unit == "usd" else None

    @property
    def used_usd(self) -> Decimal | None:
        """What is settled, in dollars."""
        return self.used if self.unit == "usd" else None

    @property
    def held_usd(self) -> Decimal | None:
        """What is reserved and not yet proven, in dollars."""
        return self.held if self.unit == "usd" else None

    @property
    def remaining_usd(self) -> Decimal | None:
        """What is left, in dollars."""
        return self.remaining if self.unit == "usd" else None

    @classmethod
    def from_view(cls, view: Mapping[str, Any], livemode: bool | None = None) -> Budget:
        """From the engine's form: micro-USD and Unix milliseconds."""
        number = usd_from_micros if view["unit"] == "usd" else Decimal
        resets = view.get("resets_at_ms")
        return cls(
            name=view["name"],
            unit=view["unit"],
            per=view["per"],
            cap=number(view["cap"]),
            used=number(view["used"]),
            held=number(view["held"]),
            resets_at=None if resets is None else moment(resets),
            hold_ids=tuple(view.get("hold_ids", ())),
            livemode=livemode,
        )


@dataclass(frozen=True)
class StopInfo:
    """A standing stop."""

    scope: str
    """What it covers, such as `run:run_42`, `label:billing`, `all`."""
    reason: str
    since: datetime
    by: str

    @classmethod
    def from_view(cls, view: Mapping[str, Any]) -> StopInfo:
        """From the engine's form."""
        return cls(view["scope"], view["reason"], moment(view["since_ms"]), view["by"])


@dataclass(frozen=True)
class ExistingCall:
    """An earlier call that stands in the way of a repeat."""

    call_id: str
    object: str | None
    """The vendor's object, if known, such as `re_...`."""
    amount_usd: Decimal
    at: datetime
    differing: tuple[str, ...] = ()
    """The identity fields that differ, for `idempotency_conflict`."""

    @classmethod
    def from_view(cls, view: Mapping[str, Any]) -> ExistingCall:
        """From the engine's form."""
        return cls(
            call_id=view["call_id"],
            object=view.get("object"),
            amount_usd=usd_from_micros(view["amount_micros"]),
            at=moment(view["at_ms"]),
            differing=tuple(view.get("differing", ())),
        )


@dataclass(frozen=True)
class CallInfo:
    """What became of one governed call, as seen by the caller."""

    call_id: str
    operation: str
    verdict: Verdict
    cost: Decimal | None
    """Dollars that this call moved; zero for a replay, None when nothing is known."""
    replayed: bool
    """Whether this is the receipt of an earlier call: no money moved now."""
    status: int | None = None
    code: Code | None = None
    """Why it was refused."""


@dataclass(frozen=True)
class Hold:
    """A reservation that still holds something."""

    call_id: str
    state: State
    operation: str
    run: str | None
    held_usd: Decimal
    reserved_at: datetime
    not_after: datetime
    """When it counts as unknown."""
    reason: str | None
    """Why nothing is known of it."""


@dataclass(frozen=True)
class StopResult:
    """What a stop met when it was set."""

    stop: StopInfo
    keys_refused: int
    """Open keys that it refuses from the next call on."""
    in_flight: tuple[Hold, ...]
    """Calls on their way that may still complete."""
    other_runs: int
    """Open runs that it does not touch."""
    processes_told: int | None = None
    """With `hard=True`: how many processes were told at once. None when they look by themselves, within seconds."""


@dataclass(frozen=True)
class AuditRow:
    """One call in the audit: the sixteen columns and what else was known."""

    call_id: str
    called_at: datetime
    vault_key_id: str | None
    agent_run_id: str | None
    agent_label: str | None
    vendor: str | None
    operation: str
    customer_scope_id: str | None
    policy_verdict: str
    status_code: int | None
    cost_usd_parsed: Decimal | None
    """Signed: negative when money went out."""
    cost_source: str
    cap_usage_after_usd: Decimal | None
    vendor_request_id: str | None
    idempotency_key: str | None
    latency_ms: int | None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """What would happen to a call. Nothing was reserved or sent."""

    allowed: bool
    code: Code | None = None
    message: str = ""
    amount_usd: Decimal | None = None
    needs_lookup: bool = False
    """What it moves is known only by asking the vendor, as for a refund: it was not judged against caps."""
