"""Money and time at the border: exact, and refused when they could be misread."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybrake._money import duration_text, moment, plain, rfc3339, unix_ms, usd_from_micros, usd_text


@pytest.mark.parametrize(
    ("micros", "shown"),
    [(50_000_000, "50.00"), (0, "0.00"), (8_300, "0.0083"), (-1_500_000, "-1.50"), (1, "0.000001")],
)
def test_micros_show_as_dollars(micros: int, shown: str) -> None:
    assert format(usd_from_micros(micros), "f") == shown


@given(st.integers(-(2**63), 2**63 - 1))
def test_dollars_lose_nothing(micros: int) -> None:
    assert int(usd_from_micros(micros) * 1_000_000) == micros


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (250, "250"),
        ("0.59", "0.59"),
        (Decimal("1E+2"), "100"),
        (0.1, "0.1"),
        (1e-6, "0.000001"),
        (1e16, "10000000000000000"),
    ],
)
def test_amounts_become_plain_decimal_text(amount: Decimal | int | str | float, text: str) -> None:
    assert usd_text(amount) == text


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), Decimal("NaN")])
def test_what_is_no_number_is_refused(amount: Decimal | float) -> None:
    with pytest.raises(ValueError, match="not an amount"):
        usd_text(amount)


def test_a_boolean_is_no_amount() -> None:
    with pytest.raises(TypeError):
        usd_text(True)


def test_a_policy_becomes_json() -> None:
    policy = {"daily_usd_cap": Decimal("0.10"), "max_amount_per_call_usd": 0.1, "groups": ("b", "a"), "label": None}
    assert plain(policy) == {
        "daily_usd_cap": "0.10",
        "max_amount_per_call_usd": "0.1",
        "groups": ["b", "a"],
        "label": None,
    }
    with pytest.raises(TypeError, match="not object"):
        plain({"label": object()})


def test_times_are_aware_and_exact() -> None:
    when = moment(1_795_000_000_123)
    assert when.tzinfo is not None
    assert unix_ms(when) == 1_795_000_000_123
    assert rfc3339(datetime(2026, 12, 31, 23, 59, 59, tzinfo=timezone.utc)) == "2026-12-31T23:59:59Z"
    naive = when.replace(tzinfo=None)
    for refused in (unix_ms, rfc3339):
        with pytest.raises(ValueError, match="no time zone"):
            refused(naive)
    assert duration_text(timedelta(hours=2)) == "7200s"
    assert duration_text("2h") == "2h"
