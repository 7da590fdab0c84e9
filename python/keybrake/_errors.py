"""What can go wrong, and the refusal: an ordinary answer that Python code meets as an exception."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from keybrake import _keybrake
from keybrake._money import usd_from_micros
from keybrake._types import Budget, ExistingCall, StopInfo

if TYPE_CHECKING:
    from keybrake._types import Code


class KeybrakeError(Exception):
    """Everything that Keybrake itself raises. The message says what was wrong, where, and what to do."""


class PolicyError(KeybrakeError, ValueError):
    """A policy or a budget is wrong; the message names the field, the place and the nearest valid name."""


class ConfigError(KeybrakeError):
    """A setting is missing or wrong: ledger URL, secret, base URL, file permissions."""


class LedgerError(KeybrakeError):
    """The ledger cannot be reached or read. Nothing was sent."""


class NoRun(KeybrakeError):  # noqa: N818 - the name is part of the API
    """Something needs a run, and no run is open here."""


class NotFound(KeybrakeError, LookupError):  # noqa: N818 - reads better than NotFoundError next to Denied
    """No such key, run, call or budget."""


class VendorError(KeybrakeError):
    """The vendor could not be reached, or its answer could not be read."""


class Denied(KeybrakeError):  # noqa: N818 - the name is part of the API
    """A refused call: what was refused, why, and what is left.

    A client built on a vendor's SDK raises a class that is this one and the SDK's own error, so both
    `except keybrake.Denied` and `except stripe.StripeError` catch it. `keybrake.denied(error)` finds it in any error.
    """

    code: Code
    """Why, such as `cap_exceeded`."""
    message: str
    """One sentence for a person. Holds no secret."""
    call_id: str
    """The call, as in the audit."""
    vendor: str | None
    operation: str | None
    requested_usd: Decimal | None
    """What the call asked for."""
    budget: Budget | None
    """The budget that is full, for `cap_exceeded` and `cap_held`."""
    stop: StopInfo | None
    """The standing stop, for `stopped`."""
    existing: ExistingCall | None
    """The earlier call, for `outcome_unknown`, `already_done` and `idempotency_conflict`."""
    retryable: bool
    """Whether waiting may help (`cap_held` only)."""
    aborted: bool
    """Whether the call was in flight already when a hard stop aborted it (`stopped` only): it may have taken effect."""
    status: int
    """The HTTP status that the SDK is shown."""

    def __init__(self, denial: Mapping[str, Any], status: int = 403) -> None:
        self._denial = dict(denial)
        self._fill(status)
        super().__init__(self.message)

    def _fill(self, status: int) -> None:
        """Sets the attributes from the engine's denial; apart from `__init__` so that mixed classes can call it."""
        denial = self._denial
        requested = denial.get("requested_micros")
        budget, stop, existing = denial.get("budget"), denial.get("stop"), denial.get("existing")
        self.code = denial["code"]
        self.message = denial["message"]
        self.call_id = denial.get("call_id", "")
        self.vendor = denial.get("vendor")
        self.operation = denial.get("operation")
        self.requested_usd = None if requested is None else usd_from_micros(requested)
        self.budget = None if budget is None else Budget.from_view(budget)
        self.stop = None if stop is None else StopInfo.from_view(stop)
        self.existing = None if existing is None else ExistingCall.from_view(existing)
        self.retryable = bool(denial.get("retryable", False))
        self.aborted = bool(denial.get("aborted", False))
        self.status = status

    @property
    def cap_usd(self) -> Decimal | None:
        """The cap of the full budget; None when no money budget is."""
        return self.budget.cap_usd if self.budget else None

    @property
    def used_usd(self) -> Decimal | None:
        """What is settled in the full budget."""
        return self.budget.used_usd if self.budget else None

    @property
    def held_usd(self) -> Decimal | None:
        """What is reserved and not yet proven in the full budget."""
        return self.budget.held_usd if self.budget else None

    @property
    def remaining_usd(self) -> Decimal | None:
        """What is left of the full budget."""
        return self.budget.remaining_usd if self.budget else None

    @property
    def resets_at(self) -> datetime | None:
        """When the full budget's window ends, with its time zone (UTC); None when it has none."""
        return self.budget.resets_at if self.budget else None

    def for_model(self) -> str:
        """The refusal in words for a language model: what was not done, that it is final, and what to do instead."""
        return _keybrake.for_model(json.dumps(self._denial))

    def to_dict(self) -> dict[str, Any]:
        """The refusal as plain data: amounts in micro-USD, times in Unix milliseconds."""
        return dict(self._denial)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(code={self.code!r}, call_id={self.call_id!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self).__module__, type(self).__name__, self._denial, self.status))


def _rebuild(module: str, name: str, denial: dict[str, Any], status: int) -> Denied:
    """A pickled refusal again, as the same class where that class can be imported, else as a plain `Denied`."""
    from importlib import import_module  # noqa: PLC0415 - only when a refusal crossed a process border

    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        kind = Denied
    error: Denied = kind(denial, status)
    return error


def denied(thing: object) -> Denied | None:
    """The refusal in an error or a result, or None.

    Looks at the error itself, at what caused it, into exception groups, and into the vendor-shaped body that an SDK
    made of a refusal (also one that came through the proxy, or from another process).
    """
    seen: set[int] = set()
    queue = [thing]
    while queue:
        item = queue.pop(0)
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Denied):
            return item
        if found := _in_body(item):
            return found
        if isinstance(item, BaseException):
            queue += [item.__cause__, item.__context__, *getattr(item, "exceptions", ())]
    return None


def _in_body(item: object) -> Denied | None:
    """A refusal that an SDK carries as data: Stripe inside `error`, Twilio inside `details`, others at the top."""
    body = item if isinstance(item, Mapping) else getattr(item, "json_body", None) or getattr(item, "details", None)
    if not isinstance(body, Mapping):
        return None
    for place in (body, body.get("error"), body.get("details")):
        found = place.get("keybrake") if isinstance(place, Mapping) else None
        if isinstance(found, Mapping) and "code" in found and "message" in found:
            return Denied(found, getattr(item, "http_status", None) or 403)
    return None


_KINDS: dict[str, type[KeybrakeError]] = {
    "config": ConfigError,
    "policy": PolicyError,
    "ledger_unavailable": LedgerError,
    "ledger_recovering": LedgerError,
    "ledger_corrupt": LedgerError,
    "not_found": NotFound,
    "vendor": VendorError,
}


def error_of_kind(kind: str, message: str) -> KeybrakeError:
    """The exception for a failure of the native module; called by it. A refusal comes as its denial's JSON."""
    if kind == "denied":
        return Denied(json.loads(message))
    return _KINDS.get(kind, KeybrakeError)(message)


__all__ = [
    "ConfigError",
    "Denied",
    "KeybrakeError",
    "LedgerError",
    "NoRun",
    "NotFound",
    "PolicyError",
    "VendorError",
    "denied",
]
