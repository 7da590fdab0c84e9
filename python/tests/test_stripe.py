"""stripe-python 16 through Keybrake: every path of the SDK, judged by what reached the vendor."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import stripe

import keybrake
from conftest import POLICY, SECRET, TIMEZONE
from keybrake.stripe import BrakeTransport, GeneratedKey
from keybrake.testing import Simulator

WIDE: keybrake.Policy = {
    "vendor": "stripe",
    "daily_usd_cap": 10_000,
    "timezone": TIMEZONE,
    "allowed_endpoints": [
        "reads",
        "refunds.create",
        "charges.create",
        "payment_intents.create",
        "files.create",
    ],
}


@pytest.fixture
def run(kb: keybrake.Keybrake) -> Iterator[keybrake.Run]:
    with kb.run(policy=POLICY) as found:
        yield found


def test_a_refund_is_looked_up_pinned_and_counted(run: keybrake.Run, sim: Simulator) -> None:
    refund = run.stripe().v1.refunds.create({"charge": "ch_1"})
    assert (refund.object, refund.amount) == ("refund", 5000)
    assert sim.moved() == 5000
    assert (run.spent, run.cap, run.remaining) == (Decimal("50.00"), Decimal("250.00"), Decimal("200.00"))
    (call,) = run.calls
    assert (call.operation, call.verdict, call.cost, call.replayed) == (
        "refunds.create",
        "allowed",
        Decimal("50.00"),
        False,
    )


def test_the_real_secret_goes_out_and_the_token_does_not(run: keybrake.Run, sim: Simulator) -> None:
    run.stripe().v1.refunds.create({"charge": "ch_1"})
    seen = str(sim.requests())
    assert run.token not in seen
    assert SECRET not in repr(run) + repr(run.stripe())


def test_the_cap_stops_the_call_before_it_leaves(run: keybrake.Run, sim: Simulator) -> None:
    client = run.stripe()
    for number in range(1, 6):
        client.v1.refunds.create({"charge": f"ch_{number}"})
    before = len(sim.requests(method="POST"))
    with pytest.raises(stripe.RateLimitError) as caught:
        client.v1.refunds.create({"charge": "ch_6"})
    refusal = keybrake.denied(caught.value)
    assert refusal is not None
    assert (refusal.code, refusal.used_usd, refusal.cap_usd) == ("cap_exceeded", Decimal("250.00"), Decimal("250.00"))
    assert refusal.requested_usd == Decimal("50.00")
    assert refusal.resets_at is not None
    assert caught.value.http_status == 429
    assert caught.value.json_body["error"]["keybrake"]["code"] == "cap_exceeded"  # type: ignore[index]
    assert len(sim.requests(method="POST")) == before
    assert sim.moved() == 25_000


def test_a_repeat_in_a_run_is_the_first_receipt(run: keybrake.Run, sim: Simulator) -> None:
    client = run.stripe()
    first = client.v1.refunds.create({"charge": "ch_1", "amount": 1000})
    again = client.v1.refunds.create({"charge": "ch_1", "amount": 1000})
    assert again.id == first.id
    assert sim.moved() == 1000
    assert [(call.verdict, call.replayed, call.cost) for call in run.calls] == [
        ("allowed", False, Decimal("10.00")),
        ("replayed", True, Decimal("0.00")),
    ]
    assert again.last_response is not None
    assert again.last_response.headers["X-Keybrake-Replayed"] == "true"


def test_steps_tell_deliberate_repeats_apart(run: keybrake.Run, sim: Simulator) -> None:
    client = run.stripe()
    for order in ("order-1", "order-2", "order-2"):
        with run.step(order):
            client.v1.refunds.create({"charge": "ch_1", "amount": 1000})
    assert sim.moved() == 2000
    with run.step("order-1"), pytest.raises(stripe.IdempotencyError) as caught:
        client.v1.refunds.create({"charge": "ch_1", "amount": 1500})
    refusal = keybrake.denied(caught.value)
    assert refusal is not None
    assert refusal.code == "idempotency_conflict"
    assert refusal.existing is not None
    assert "amount" in refusal.existing.differing


@pytest.mark.parametrize(
    ("token", "code"),
    [("vault_key_nonsense", "key_unknown"), (SECRET, "key_unknown"), ("", "key_missing")],
)
def test_what_is_no_key_is_refused_as_authentication(
    kb: keybrake.Keybrake, sim: Simulator, token: str, code: str
) -> None:
    client = stripe.StripeClient(token or "x", http_client=BrakeTransport(kb))
    if not token:
        client = stripe.StripeClient(" ", http_client=BrakeTransport(kb))
    with pytest.raises(stripe.AuthenticationError) as caught:
        client.v1.refunds.create({"charge": "ch_1"})
    refusal = keybrake.denied(caught.value)
    assert refusal is not None
    assert refusal.code == code
    assert SECRET not in str(caught.value)
    assert sim.requests() == []


def test_an_endpoint_that_is_not_allowed_is_a_permission_error(run: keybrake.Run, sim: Simulator) -> None:
    with pytest.raises(stripe.PermissionError) as caught:
        run.stripe().v1.payouts.create({"amount": 100, "currency": "usd"})
    refusal = keybrake.denied(caught.value)
    assert refusal is not None
    assert refusal.code == "endpoint_not_allowed"
    assert sim.requests(method="POST") == []


def test_a_refusal_is_tried_once_even_with_retries(kb: keybrake.Keybrake, sim: Simulator) -> None:
    with kb.run(policy={**POLICY, "daily_usd_cap": 10}) as run:
        client = run.stripe(max_network_retries=3)
        with pytest.raises(stripe.RateLimitError):
            client.v1.refunds.create({"charge": "ch_1"})
        assert len(run.calls) == 1


def test_retries_of_the_sdk_are_attempts_of_one_spend(kb: keybrake.Keybrake, sim: Simulator) -> None:
    sim.fault("drop_after_executing", path_prefix="/v1/refunds")
    with kb.run(policy=POLICY) as run:
        client = run.stripe(max_network_retries=2)
        refund = client.v1.refunds.create({"charge": "ch_1"})
        assert refund.amount == 5000
        assert sim.movements() == 1
        assert run.spent == Decimal("50.00")
        assert kb.holds() == []


def test_reads_are_never_deduplicated(run: keybrake.Run, sim: Simulator) -> None:
    client = run.stripe()
    for _ in range(2):
        assert client.v1.charges.retrieve("ch_1").id == "ch_1"
    assert len(sim.requests("/v1/charges/ch_1", "GET")) == 2
    assert run.spent == Decimal("0.00")


# Who made the idempotency key.


def keys_sent(sim: Simulator) -> list[str]:
    return [row["idempotency_key"] for row in sim.requests(method="POST") if row["idempotency_key"]]


def test_a_callers_key_is_forwarded_and_a_generated_one_replaced(run: keybrake.Run, sim: Simulator) -> None:
    client = run.stripe()
    client.v1.refunds.create({"charge": "ch_1", "amount": 100}, {"idempotency_key": "order-17"})
    client.v1.refunds.create({"charge": "ch_2", "amount": 100})
    mine, derived = keys_sent(sim)
    assert mine == "order-17"
    assert derived != "order-17"
    assert derived.count("-") != 4, "the SDK's random key was sent"


def test_generated_keys_are_marked_on_every_path() -> None:
    from stripe import _api_requestor

    key = _api_requestor._generate_idempotency_key()
    assert isinstance(key, GeneratedKey)
    assert isinstance(key, str)


@pytest.mark.parametrize("name", ["idempotency-key", "IDEMPOTENCY-KEY"])
def test_a_second_idempotency_header_is_refused(run: keybrake.Run, sim: Simulator, name: str) -> None:
    with pytest.raises(stripe.PermissionError) as caught:
        run.stripe().v1.refunds.create({"charge": "ch_1"}, {"headers": {name: "mine"}})
    refusal = keybrake.denied(caught.value)
    assert refusal is not None
    assert refusal.code == "request_malformed"
    assert sim.requests(method="POST") == []


def test_without_the_sdks_function_nobody_knows_whose_key_it_is(
    run: keybrake.Run, monkeypatch: pytest.MonkeyPatch, sim: Simulator
) -> None:
    import keybrake.stripe as ours

    monkeypatch.setattr(ours, "_keys_are_marked", False)
    with pytest.raises(stripe.StripeError) as caught:
        run.stripe().v1.refunds.create({"charge": "ch_1"}, {"idempotency_key": "order-17"})
    refusal = keybrake.denied(caught.value)
    assert refusal is not None
    assert "caller_keys" in refusal.message
    assert sim.requests(method="POST") == []


# The other paths of the SDK.


def test_raw_requests_files_v2_and_streams(kb: keybrake.Keybrake, sim: Simulator) -> None:
    with kb.run(policy=WIDE) as run:
        client = run.stripe()
        raw = client.raw_request("get", "/v1/charges/ch_1")
        assert client.deserialize(raw, api_mode="V1").id == "ch_1"  # type: ignore[attr-defined]
        made = client.v1.files.create({"file": io.BytesIO(b"%PDF-1.4 evidence"), "purpose": "dispute_evidence"})
        assert made.object == "file"
        stream = client.v1.quotes.pdf("qt_1")
        assert stream.io.read().startswith(b"%PDF")
        events = client.v2.core.events.list()
        assert events.data is not None


def test_objects_keep_the_governed_client(kb: keybrake.Keybrake, sim: Simulator) -> None:
    with kb.run(policy=WIDE) as run:
        charge = run.stripe().v1.charges.retrieve("ch_1")
        charge.refresh()
        assert len(sim.requests("/v1/charges/ch_1", "GET")) == 2
        assert [call.operation for call in run.calls] == ["charges.retrieve"] * 2


def test_errors_of_stripe_pass_through(kb: keybrake.Keybrake, sim: Simulator) -> None:
    with kb.run(policy=WIDE) as run:
        client = run.stripe()
        with pytest.raises(stripe.CardError) as caught:
            client.v1.payment_intents.create(
                {
                    "amount": 1000,
                    "currency": "usd",
                    "payment_method": "pm_card_chargeDeclined",
                    "confirm": True,
                    "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
                }
            )
        assert keybrake.denied(caught.value) is None
        assert caught.value.request_id is not None
        declined: Any = caught.value.error
        assert declined.payment_intent.id.startswith("pi_")
        assert declined.payment_intent.client_secret is None, "its hold is freed: nobody may confirm it uncounted"
        assert "_secret_" not in str(caught.value.http_body)
        with pytest.raises(stripe.InvalidRequestError):
            client.v1.charges.retrieve("ch_none")


def test_a_stripe_rate_limit_is_told_from_a_cap(run: keybrake.Run, sim: Simulator) -> None:
    sim.fault("rate_limit", path_prefix="/v1/refunds")
    with pytest.raises(stripe.RateLimitError) as caught:
        run.stripe().v1.refunds.create({"charge": "ch_1", "amount": 100})
    assert keybrake.denied(caught.value) is None
    assert run.spent == Decimal("0.00")
    run.stripe().v1.refunds.create({"charge": "ch_1", "amount": 100})
    assert sim.moved() == 100


def test_asyncio(sim: Simulator) -> None:
    async def main() -> None:
        settings: dict[str, Any] = {"secrets": {"stripe": SECRET}, "base_urls": {"stripe": sim.url}}
        async with keybrake.AsyncKeybrake("memory:", **settings) as kb, kb.run(policy=POLICY) as run:
            client = run.stripe()
            refunds = await asyncio.gather(
                *(client.v1.refunds.create_async({"charge": f"ch_{n}"}) for n in range(1, 6))
            )
            assert [refund.amount for refund in refunds] == [5000] * 5
            with pytest.raises(stripe.RateLimitError) as caught:
                await client.v1.refunds.create_async({"charge": "ch_6"})
            refusal = keybrake.denied(caught.value)
            assert refusal is not None
            assert refusal.code == "cap_exceeded"
            assert (await run.spent(), await run.remaining()) == (Decimal("250.00"), Decimal("0.00"))
            stream = await client.v1.quotes.pdf_async("qt_1")
            parts = [part async for part in stream.stream()]
            assert b"".join(parts).startswith(b"%PDF")

    asyncio.run(main())


@pytest.fixture
def module_level(kb: keybrake.Keybrake) -> Iterator[None]:
    before = (stripe.default_http_client, stripe.api_key)
    from stripe import _stripe_client

    private: Any = _stripe_client
    made_by = private.new_default_http_client
    keybrake.install("stripe", keybrake=kb)
    yield
    stripe.default_http_client, stripe.api_key = before
    private.new_default_http_client = made_by


@pytest.mark.usefixtures("module_level")
def test_install_governs_an_existing_codebase(kb: keybrake.Keybrake, sim: Simulator) -> None:
    with kb.run(policy=POLICY) as run:
        stripe.api_key = run.token
        assert stripe.Refund.create(charge="ch_1").amount == 5000
        assert [call.operation for call in run.calls] == ["refunds.create"]
        plain = stripe.StripeClient(run.token)
        assert plain.v1.refunds.create({"charge": "ch_2"}).amount == 5000
        assert run.spent == Decimal("100.00")
        stripe.api_key = SECRET
        with pytest.raises(stripe.AuthenticationError):
            stripe.Refund.create(charge="ch_3")
    assert sim.moved() == 10_000


@pytest.mark.usefixtures("module_level")
def test_a_call_belongs_to_the_run_whose_token_it_carries(kb: keybrake.Keybrake, sim: Simulator) -> None:
    key = kb.issue(POLICY, run="run_other")
    with kb.run(policy=POLICY) as run:
        stripe.api_key = key.token
        stripe.Refund.create(charge="ch_1", amount=100)
        assert run.calls == ()
    (row,) = kb.audit(run="run_other")
    assert row.operation == "refunds.create"


def test_install_does_not_replace_a_client_of_yours(kb: keybrake.Keybrake, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(stripe.HTTPClient):
        name = "mine"

    monkeypatch.setattr(stripe, "default_http_client", Mine())
    with pytest.raises(keybrake.ConfigError, match="Mine"):
        keybrake.install("stripe", keybrake=kb)


def test_transport_options_of_the_sdk_are_refused(run: keybrake.Run) -> None:
    with pytest.raises(keybrake.ConfigError, match="proxy"):
        run.stripe(proxy="http://127.0.0.1:1")


def test_after_close_calls_get_key_expired(kb: keybrake.Keybrake, sim: Simulator) -> None:
    run = kb.open(policy=POLICY)
    client, token = run.stripe(), run.token
    run.close()
    run.close()
    with pytest.raises(stripe.AuthenticationError) as caught:
        client.v1.refunds.create({"charge": "ch_1"})
    refusal = keybrake.denied(caught.value)
    assert refusal is not None
    assert refusal.code == "key_expired"
    with pytest.raises(stripe.AuthenticationError):
        kb.stripe(token).v1.refunds.create({"charge": "ch_1"})
    assert sim.requests(method="POST") == []


def test_a_test_never_reaches_stripe_by_accident() -> None:
    with keybrake.Keybrake("memory:", secrets={"stripe": SECRET}) as kb, kb.run(policy=POLICY) as run:
        with pytest.raises(keybrake.ConfigError, match="keybrake simulate"):
            run.stripe().v1.refunds.create({"charge": "ch_1"})
        assert kb.audit() == []


def test_a_mistaken_attribute_is_explained() -> None:
    import keybrake.stripe as ours

    with pytest.raises(AttributeError, match="did you mean `import stripe`"):
        ours.Refund  # noqa: B018
    with pytest.raises(AttributeError, match="has no 'nonsense'"):
        ours.nonsense  # noqa: B018


def test_a_wait_for_open_holds_is_waited(kb: keybrake.Keybrake, sim: Simulator) -> None:
    key = kb.issue({**POLICY, "daily_usd_cap": 60})
    sim.fault("hold_until_released", path_prefix="/v1/refunds")
    with keybrake.Executor(2) as pool:
        first = pool.submit(kb.stripe(key).v1.refunds.create, {"charge": "ch_1"})
        sim.wait_held()
        with pytest.raises(stripe.RateLimitError) as caught:
            kb.stripe(key).v1.refunds.create({"charge": "ch_2", "amount": 2000})
        refusal = keybrake.denied(caught.value)
        assert refusal is not None
        assert (refusal.code, refusal.retryable) == ("cap_held", True)
        assert refusal.held_usd == Decimal("50.00")
        waiting = pool.submit(kb.stripe(key, wait_ms=30_000).v1.refunds.create, {"charge": "ch_2", "amount": 1000})
        sim.release()
        assert (first.result().amount, waiting.result().amount) == (5000, 1000)
    assert sim.moved() == 6000
