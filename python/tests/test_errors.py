"""Refusals as exceptions: found wherever an SDK or a tool puts them, and whole after a trip to another process."""

from __future__ import annotations

import pickle
from datetime import timezone
from decimal import Decimal
from typing import Any, get_args

import pytest
import stripe

import keybrake
from keybrake import Denied, denied
from keybrake._types import Code
from keybrake.stripe import _BY_STATUS, _refused

CAP: dict[str, Any] = {
    "code": "cap_exceeded",
    "message": "the cap of $250.00 per day is reached",
    "call_id": "0199f3",
    "vendor": "stripe",
    "operation": "refunds.create",
    "requested_micros": 50_000_000,
    "budget": {
        "name": "stripe lineage:default usd per day",
        "unit": "usd",
        "per": "day",
        "cap": 250_000_000,
        "used": 245_000_000,
        "held": 0,
        "resets_at_ms": 1_795_392_000_000,
    },
    "retryable": False,
    "full_detail": True,
}


def test_a_refusal_says_what_is_left() -> None:
    found = Denied(CAP, 429)
    assert (found.code, found.call_id, found.retryable, found.status) == ("cap_exceeded", "0199f3", False, 429)
    assert (found.cap_usd, found.used_usd, found.held_usd) == (Decimal("250.00"), Decimal("245.00"), Decimal("0.00"))
    assert (found.requested_usd, found.remaining_usd) == (Decimal("50.00"), Decimal("5.00"))
    assert found.resets_at is not None
    assert found.resets_at.tzinfo is timezone.utc
    assert str(found) == "cap_exceeded: the cap of $250.00 per day is reached"


def test_words_for_the_model_come_from_the_engine() -> None:
    words = Denied(CAP, 429).for_model()
    assert words.startswith("NOT DONE.")
    assert "$250.00 per day" in words
    assert "do not retry" in words


@pytest.mark.parametrize(
    ("status", "family"),
    [
        (401, stripe.AuthenticationError),
        (403, stripe.PermissionError),
        (429, stripe.RateLimitError),
        (400, stripe.IdempotencyError),
        (503, stripe.APIConnectionError),
    ],
)
def test_a_refusal_is_also_stripes_own_error(status: int, family: type[stripe.StripeError]) -> None:
    error: Any = _refused(CAP, status, {"x-keybrake-cap-hit": "true"}, b"")
    assert denied(error) is error
    for kind in (Denied, keybrake.KeybrakeError, stripe.StripeError, family):
        assert isinstance(error, kind)
    assert error.code == "cap_exceeded"
    assert error.http_status == status
    assert error.headers == {"x-keybrake-cap-hit": "true"}
    if family is stripe.APIConnectionError:
        assert vars(error).get("should_retry", type(error).should_retry) is False


@pytest.mark.parametrize("status", sorted(_BY_STATUS))
def test_a_refusal_survives_pickling(status: int) -> None:
    error = _refused(CAP, status, {}, b"")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.to_dict() == error.to_dict()
    assert again.status == status


def test_denied_looks_behind_wrappers() -> None:
    refusal = Denied(CAP, 429)
    wrapped = RuntimeError("tool failed")
    wrapped.__cause__ = ValueError("in between")
    wrapped.__cause__.__context__ = refusal
    assert denied(wrapped) is refusal
    group_like = RuntimeError("several")
    group_like.exceptions = (ValueError("other"), refusal)  # type: ignore[attr-defined]
    assert denied(group_like) is refusal


def test_denied_reads_the_body_that_an_sdk_kept() -> None:
    body = {"error": {"type": "keybrake_denied", "message": "no", "keybrake": CAP}}
    foreign = stripe.RateLimitError("no", None, 429, body, {})
    found = denied(foreign)
    assert found is not None
    assert (found.code, found.status) == ("cap_exceeded", 429)
    assert denied(body) is not None
    assert denied({"error": {"keybrake": "nothing"}}) is None


def test_what_is_no_refusal_is_none() -> None:
    looped = RuntimeError("a")
    looped.__cause__ = ValueError("b")
    looped.__cause__.__cause__ = looped
    declined: Any = stripe.CardError
    things: list[object] = [None, 3, "text", {}, looped, declined("declined", None, "card_declined")]
    for thing in things:
        assert denied(thing) is None


def test_the_codes_are_the_engines() -> None:
    # The engine refuses to read a refusal with a code that it does not know.
    for code in get_args(Code):
        assert Denied({**CAP, "code": code}).for_model()
    with pytest.raises(keybrake.KeybrakeError):
        Denied({**CAP, "code": "no_such_code"}).for_model()


def test_errors_have_one_family() -> None:
    for kind in (
        keybrake.ConfigError,
        keybrake.Denied,
        keybrake.LedgerError,
        keybrake.NoRun,
        keybrake.NotFound,
        keybrake.PolicyError,
        keybrake.VendorError,
    ):
        assert issubclass(kind, keybrake.KeybrakeError)


def test_a_panic_is_an_exception(capfd: pytest.CaptureFixture[str]) -> None:
    from keybrake import _keybrake

    with pytest.raises(keybrake.KeybrakeError, match="defect inside Keybrake"):
        _keybrake.panic()
    assert "asked to panic" in capfd.readouterr().err
