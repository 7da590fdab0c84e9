"""Money and time as Python has them: `Decimal` dollars and aware `datetime`s. No float touches an amount."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, TypeAlias

Money: TypeAlias = "Decimal | int | str | float"
"""What is accepted as dollars. A float stands for its shortest decimal form, so 0.1 is ten cents."""

_MICRO = Decimal("0.000001")
_CENT = Decimal("0.01")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def usd_from_micros(micros: int) -> Decimal:
    """Micro-USD as dollars with two decimals, or as many as the amount needs."""
    amount = Decimal(micros).scaleb(-6)
    cents = amount.quantize(_CENT)
    return cents if cents == amount else amount.normalize()


def usd_text(amount: Money) -> str:
    """Dollars as the decimal text that the engine reads; it refuses more than six decimals."""
    if isinstance(amount, bool) or not isinstance(amount, (Decimal, int, str, float)):
        raise TypeError(f"an amount in US dollars is a Decimal, int, str or float, not {type(amount).__name__}")
    if isinstance(amount, str):
        return amount
    decimal = Decimal(repr(amount)) if isinstance(amount, float) else Decimal(amount)
    if not decimal.is_finite():
        raise ValueError(f"{amount} is not an amount in US dollars")
    return format(decimal, "f")


def plain(value: Any) -> Any:
    """A policy as JSON can carry it: decimals and floats as text, times as RFC 3339, tuples and sets as lists."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, (str, int, type(None))):
        return value
    if isinstance(value, (Decimal, float)):
        return usd_text(value)
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, timedelta):
        return duration_text(value)
    raise TypeError(f"a policy holds text, numbers, lists and mappings, not {type(value).__name__}")


def moment(unix_ms: int) -> datetime:
    """Unix milliseconds as a datetime in UTC."""
    return _EPOCH + timedelta(milliseconds=unix_ms)


def rfc3339(when: datetime) -> str:
    """A datetime as text; one without a time zone is refused, since nobody could say when it is."""
    if when.tzinfo is None:
        raise ValueError(f"{when!r} has no time zone: write datetime(..., tzinfo=timezone.utc)")
    return when.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def unix_ms(when: datetime) -> int:
    """A datetime as Unix milliseconds; one without a time zone is refused."""
    if when.tzinfo is None:
        raise ValueError(f"{when!r} has no time zone: write datetime(..., tzinfo=timezone.utc)")
    return (when - _EPOCH) // timedelta(milliseconds=1)


def duration_text(span: timedelta | str) -> str:
    """A lifetime as the engine reads it, such as `90s`; text passes through (`2h`)."""
    return span if isinstance(span, str) else f"{span // timedelta(seconds=1)}s"
