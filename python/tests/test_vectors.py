"""The vectors under `tests/vectors`, which Rust and Node run too: words, policies, and how requests are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import keybrake
from keybrake import Denied

FOLDER = Path(__file__).parents[2] / "tests" / "vectors"
Case = dict[str, Any]

ACCOUNT = "AC0123456789abcdef0123456789abcdef"
SECRETS = {"stripe": "sk_test_x", "twilio": f"test:{ACCOUNT}:x", "resend": "re_test_x"}
FORM = "application/x-www-form-urlencoded"
TYPES = {"stripe": FORM, "twilio": FORM, "resend": "application/json"}
JUDGED = ("endpoint_not_allowed", "param_not_allowed")
"""Codes that the policy alone decides on."""


def files(kind: str) -> list[Path]:
    found = sorted((FOLDER / kind).glob("*.json"))
    assert found
    return found


def cases(file: Path) -> list[Case]:
    found: list[Case] = json.loads(file.read_text())["cases"]
    assert found
    return found


def keybrake_of_its_own() -> keybrake.Keybrake:
    """Nothing of these tests is ever sent: port 9 discards."""
    nowhere = dict.fromkeys(SECRETS, "http://127.0.0.1:9")
    return keybrake.Keybrake("memory:", secrets=SECRETS, base_urls=nowhere, allow_live_in_tests=True)


@pytest.fixture
def kb() -> Iterator[keybrake.Keybrake]:
    with keybrake_of_its_own() as found:
        yield found


def test_words_for_the_model() -> None:
    for case in cases(FOLDER / "words" / "for_model.json"):
        assert Denied(case["denial"], 403).for_model() == case["text"], case["denial"]


@pytest.mark.parametrize("file", files("policy"), ids=lambda file: file.stem)
def test_policies(file: Path, tmp_path: Path) -> None:
    for case in cases(file):
        narrow = case.get("narrow", [None])
        if len(narrow) > 1:  # a key is narrowed once
            continue
        policy, binding = policy_of(case, tmp_path), binding_of(case)
        with keybrake_of_its_own() as kb:
            if "error" in case:
                with pytest.raises(keybrake.PolicyError) as caught:
                    kb.issue(policy, narrow=narrow[0], **binding)
                place = f"{policy}: " if isinstance(policy, Path) else ""  # a mistake in a file is told with its name
                assert unquoted(str(caught.value)) == unquoted(place + case["error"]), case["name"]
                continue
            key = kb.issue(policy, narrow=narrow[0], **binding)
            for call in case.get("calls", []):
                asked(kb, key, call, case["name"])
            if "budgets" in case:
                assert caps(kb.usage(key.id)) == [caps_of(budget) for budget in case["budgets"]], case["name"]


def unquoted(message: str) -> str:
    """A fraction crosses as text and a large number in full, so that no digit is lost."""
    number = r'"?\b(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\b"?'
    return re.sub(number, lambda found: f"{Decimal(found[1]):f}", message)


def policy_of(case: Case, folder: Path) -> Any:
    for form in ("json", "yaml", "toml"):
        if form in case:
            place = folder / f"policy.{form}"
            place.write_text(case[form])
            return place
    return case["document"]


def binding_of(case: Case) -> Case:
    """A key is issued for a run where the policy caps each."""
    each_run = any("run:*" in budget["id"] for budget in case.get("budgets", []))
    return {**({"run": "any"} if each_run else {}), **case.get("binding", {})}


def caps(usage: Any) -> list[tuple[str, str, int]]:
    shown = [budget for budget in usage if budget.livemode is False]
    return [(one.name, one.per, int(one.cap * 1_000_000) if one.unit == "usd" else int(one.cap)) for one in shown]


def caps_of(budget: Case) -> tuple[str, str, int]:
    """A vector's budget, its id as people read it, with its window in full."""
    vendor, *scope, _ = budget["id"].split("|")
    name = " ".join(["all" if vendor == "*" else vendor, *scope]).replace("run:*", "run:any")
    return f"{name} per {budget['per']}", budget["per"], budget["cap"]


def asked(kb: keybrake.Keybrake, key: keybrake.Key, call: Case, name: str) -> None:
    """What the request itself decides can be asked; customers, accounts and a refund's amount are found out later."""
    if call.keys() & {"vendor", "customer", "account", "currency", "pins"}:
        return
    fields = call.get("fields", {})
    if call["path"] == "/v1/refunds" and "charge" in fields and "amount" not in fields:
        return
    check = kb.check(key, f"{call['method']} {call['path']}", fields)
    if check.code == "request_malformed":  # not a whole request by itself
        return
    expected = call.get("code")
    if check.code in JUDGED or expected in JUDGED:
        assert check.code == expected, (name, call, check.message)
        if "message" in call:
            assert check.message == call["message"], name


@pytest.mark.parametrize(
    ("vendor", "file"),
    [(vendor, file) for vendor in TYPES for file in files(vendor)],
    ids=lambda value: value if isinstance(value, str) else value.stem,
)
def test_requests_cross_as_they_are_and_are_read_as_everywhere(vendor: str, file: Path, kb: keybrake.Keybrake) -> None:
    # Opens nothing that exists, so that what is recognised is refused right after, and what is refused before says why.
    nothing: Any = {"allowed_endpoints": ["GET /v9/nothing"], "operation_costs": {"GET /v9/nothing": 1}}
    key = kb.issue({"vendor": vendor, "daily_usd_cap": Decimal(1), **nothing})
    for case in cases(file):
        denial = refusal(kb, vendor, key.token, case["request"])
        if "refused" in case:
            assert denial["code"] == case["refused"], case["name"]
            assert case.get("says", "") in denial["message"], case["name"]
        else:
            found = (denial["code"], denial["operation"])
            assert found == ("endpoint_not_allowed", named(case)), case["name"]
    assert kb.holds() == []


def refusal(kb: keybrake.Keybrake, vendor: str, token: str, request: Case) -> Case:
    """The request through the native engine, as the adapters send it."""
    method, body = request["method"], request.get("body", "")
    own: dict[str, str | None] = {"Authorization": f"Bearer {token}"}
    if body or (vendor == "stripe" and method == "POST"):
        own["Content-Type"] = TYPES[vendor]
    given = {**own, **request.get("headers", {})}
    headers = [(name, value) for name, value in given.items() if value is not None]
    context = json.dumps({"run": None, "step": None, "item": None, "key_origin": "caller", "context": {}})
    answer = kb.engine.native().send(method, request["url"], headers, body.encode(), context, 0)
    assert answer.kind == "denied", request
    denial: Case = json.loads(answer.denial or "")
    return denial


def named(case: Case) -> str:
    """What is in no table is named by its path, and so is the old path of a refund."""
    path = urlsplit(case["request"]["url"]).path
    old = path.startswith("/v1/charges/") and path.endswith("/refund")
    operation: str = case["operation"]
    return f"{case['request']['method']} {path}" if operation == "unknown" or old else operation
