"""The front door: issuing, runs, budgets, stops, questions, hooks; and that both worlds answer the same."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
import stripe

import keybrake
from conftest import POLICY, SECRET
from keybrake import _keybrake
from keybrake._operations import StripeOperation
from keybrake._types import Vendor
from keybrake.testing import Simulator


def test_a_key_never_shows_its_token(kb: keybrake.Keybrake) -> None:
    key = kb.issue(POLICY, run="run_42", agent="support-v2", expires_in="2h")
    assert key.token.startswith("vault_key_")
    assert key.id.startswith("vk_")
    assert key.token not in repr(key)
    left = key.expires_at - datetime.now(timezone.utc)
    assert timedelta(hours=1, minutes=59) < left <= timedelta(hours=2)


def test_a_policy_error_names_field_and_nearest_name(kb: keybrake.Keybrake) -> None:
    with pytest.raises(keybrake.PolicyError, match="daily_usd_cap"):
        kb.issue({**POLICY, "daily_usd_capp": 3})
    with pytest.raises(keybrake.PolicyError, match="not an amount"):
        kb.issue({**POLICY, "daily_usd_cap": float("nan")})


def test_caps_are_exact_decimals(kb: keybrake.Keybrake) -> None:
    for cap, shown in ((Decimal("0.10"), "0.10"), (0.1, "0.10"), ("12.345678", "12.345678"), (3, "3.00")):
        key = kb.issue({**POLICY, "daily_usd_cap": cap, "label": f"c{str(cap).replace('.', '_')}"})
        assert {format(budget.cap, "f") for budget in kb.usage(key.id)} == {shown}


def test_a_policy_may_be_a_file(kb: keybrake.Keybrake, tmp_path: Path) -> None:
    file = tmp_path / "support.toml"
    file.write_text('vendor = "stripe"\ndaily_usd_cap = 5\nallowed_endpoints = ["reads"]\n')
    assert kb.issue(file).id
    assert kb.issue(str(file)).id


def test_narrowing_lowers_and_never_widens(kb: keybrake.Keybrake, sim: Simulator) -> None:
    with kb.run(policy=POLICY, narrow={"run_usd_cap": 25}) as run:
        assert run.remaining == Decimal("25.00")
        with pytest.raises(stripe.RateLimitError):
            run.stripe().v1.refunds.create({"charge": "ch_1"})
    with pytest.raises(keybrake.PolicyError):
        kb.open(policy=POLICY, narrow={"daily_usd_cap": 500})


def test_a_run_needs_a_token_or_a_policy(kb: keybrake.Keybrake) -> None:
    with pytest.raises(keybrake.ConfigError, match="exactly one"):
        kb.open()
    key = kb.issue(POLICY)
    with pytest.raises(keybrake.ConfigError, match="run: bound when"):
        kb.open(key, run="run_42")
    with kb.open(key) as run:
        assert (run.key_id, run.id) == (key.id, None)
    assert kb.open(key).key_id == key.id, "closing a run of a token leaves the key as it is"


def test_the_token_may_come_from_the_environment(kb: keybrake.Keybrake, monkeypatch: pytest.MonkeyPatch) -> None:
    key = kb.issue(POLICY, run="run_42")
    monkeypatch.setenv("KEYBRAKE_TOKEN", key.token)
    with kb.run() as run:
        assert (run.key_id, run.id) == (key.id, "run_42")


def test_a_policy_of_run_caps_only_is_refused(kb: keybrake.Keybrake) -> None:
    policy: keybrake.Policy = {"vendor": "stripe", "run_usd_cap": 5, "allowed_endpoints": ["reads"]}
    with pytest.raises(keybrake.PolicyError, match="scoped to the run"):
        kb.open(policy=policy)
    kb.open(policy=policy, allow_run_caps_only=True).close()


def test_what_the_ledger_knows_afterwards(kb: keybrake.Keybrake, sim: Simulator) -> None:
    with kb.run(policy=POLICY, run="run_42", agent="support-v2") as run:
        with run.step("refund-17", tool_call_id="call_9"):
            run.stripe().v1.refunds.create({"charge": "ch_1"})
        with pytest.raises(stripe.PermissionError):
            run.stripe().v1.payouts.create({"amount": 100, "currency": "usd"})
    done, refused = kb.audit(run="run_42")
    assert (done.operation, done.policy_verdict, done.status_code) == ("refunds.create", "allowed", 200)
    assert (done.cost_usd_parsed, done.cost_source) == (Decimal("-50.00"), "response")
    assert (done.agent_run_id, done.vault_key_id) == ("run_42", run.key_id)
    assert done.called_at.tzinfo is not None
    assert done.metadata["context"] == {"step": "refund-17", "tool_call_id": "call_9", "lookups": 1}
    assert done.vendor_request_id
    assert refused.policy_verdict == "endpoint_not_allowed"
    assert kb.audit(run="run_42", denied=True) == [refused]
    assert kb.audit(call_id=done.call_id) == [done]
    assert kb.audit(since=timedelta(hours=1), limit=1) == [refused]
    assert kb.audit(run="other") == []
    assert kb.holds() == []


def test_stop_refuses_the_next_call_and_new_keys(kb: keybrake.Keybrake, sim: Simulator) -> None:
    with kb.run(policy=POLICY, run="run_42") as run, kb.run(policy=POLICY, run="run_43") as other:
        result = kb.stop(run="run_42", reason="refund loop")
        assert (result.stop.scope, result.stop.reason, result.keys_refused) == ("run:run_42", "refund loop", 1)
        with pytest.raises(stripe.PermissionError) as caught:
            run.stripe().v1.refunds.create({"charge": "ch_1"})
        refusal = keybrake.denied(caught.value)
        assert refusal is not None
        assert refusal.code == "stopped"
        assert refusal.stop is not None
        assert refusal.stop.reason == "refund loop"
        assert refusal.for_model().startswith("STOPPED")
        with pytest.raises(keybrake.Denied, match="no key is issued while run:run_42 is stopped") as unissued:
            kb.issue(POLICY, run="run_42")
        assert unissued.value.stop == refusal.stop
        assert unissued.value.for_model().startswith("STOPPED")
        assert other.stripe().v1.refunds.create({"charge": "ch_2"}).amount == 5000
        assert [stop.scope for stop in kb.stops()] == ["run:run_42"]
        assert kb.resume(run="run_42") is True
        assert kb.resume(run="run_42") is False
        assert run.stripe().v1.refunds.create({"charge": "ch_1"}).amount == 5000
    with pytest.raises(keybrake.ConfigError, match="exactly one"):
        kb.stop()
    with pytest.raises(keybrake.ConfigError, match="exactly one"):
        kb.stop(run="a", agent="b")


def test_revoking_holds_from_the_next_call_on(kb: keybrake.Keybrake, sim: Simulator) -> None:
    key = kb.issue(POLICY)
    client = kb.stripe(key)
    client.v1.refunds.create({"charge": "ch_1"})
    assert kb.revoke(key.id) is True
    with pytest.raises(stripe.AuthenticationError) as caught:
        client.v1.refunds.create({"charge": "ch_2"})
    refusal = keybrake.denied(caught.value)
    assert refusal is not None
    assert refusal.code == "key_revoked"
    with pytest.raises(keybrake.NotFound):
        kb.revoke("vk_none")


def test_budgets_of_a_group(kb: keybrake.Keybrake, sim: Simulator) -> None:
    with pytest.raises(keybrake.PolicyError, match="tenant:acme"):
        kb.issue(POLICY, group="tenant:acme")
    kb.budgets.set("tenant:acme", [{"usd": 60, "per": "month"}], reason="plan")
    with kb.run(policy=POLICY, group="tenant:acme") as run:
        run.stripe().v1.refunds.create({"charge": "ch_1"})
        with pytest.raises(stripe.RateLimitError):
            run.stripe().v1.refunds.create({"charge": "ch_2"})
        kb.budgets.set("tenant:acme", [{"usd": 100, "per": "month"}], reason="upgrade")
        run.stripe().v1.refunds.create({"charge": "ch_2"})
    drawn = [budget for budget in kb.budgets.get("tenant:acme") if budget.used]
    assert [(budget.cap, budget.used, budget.per) for budget in drawn] == [
        (Decimal("100.00"), Decimal("100.00"), "month")
    ]
    assert len(kb.budgets.list()) > len(drawn)
    with pytest.raises(keybrake.PolicyError, match="exactly one"):
        kb.budgets.set("tenant:acme", [{"usd": 1, "calls": 1, "per": "day"}])


def test_a_check_reserves_and_sends_nothing(kb: keybrake.Keybrake, sim: Simulator) -> None:
    intents: keybrake.Policy = {**POLICY, "allowed_endpoints": ["payment_intents.create", "refunds.create", "reads"]}
    with kb.run(policy=intents, run="run_42") as run:
        fits = run.check("POST /v1/payment_intents", {"amount": 5000, "currency": "usd", "metadata": {"a": "b"}})
        assert (fits.allowed, fits.amount_usd) == (True, Decimal("50.00"))
        too_much = run.check("POST /v1/payment_intents", {"amount": 30_000, "currency": "usd"})
        assert (too_much.allowed, too_much.code, too_much.amount_usd) == (False, "cap_exceeded", Decimal("300.00"))
        unknown = run.check("POST /v1/refunds", {"charge": "ch_1"})
        assert (unknown.allowed, unknown.needs_lookup, unknown.amount_usd) == (True, True, None)
        assert "not judged against caps" in unknown.message
        assert (fits.needs_lookup, fits.message, too_much.needs_lookup) == (False, "", False)
        elsewhere = run.check("POST /v1/payouts", {"amount": 100, "currency": "usd"})
        assert (elsewhere.allowed, elsewhere.code) == (False, "endpoint_not_allowed")
        assert run.check("GET /v1/charges", {"limit": 3}).allowed
        with pytest.raises(keybrake.ConfigError, match="no endpoint"):
            run.check("refunds.create")
        kb.stop(run="run_42", reason="enough")
        stopped = run.check("GET /v1/charges")
        assert (stopped.allowed, stopped.code) == (False, "stopped")
        assert run.remaining == Decimal("250.00")
    assert sim.requests() == []
    assert kb.audit() == []


def test_hooks_hear_everything_and_break_nothing(
    kb: keybrake.Keybrake, sim: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[str, Any]] = []
    for event in ("call", "denied", "replayed", "unknown", "budget", "stopped"):
        kb.on(event, lambda what, event=event: heard.append((event, what)))  # type: ignore[misc]

    def fails(_: Any) -> None:
        raise RuntimeError("hook")

    off = kb.on("call", fails)
    with kb.run(policy={**POLICY, "daily_usd_cap": 60}, run="run_42") as run:
        client = run.stripe()
        with caplog.at_level(logging.ERROR, "keybrake"):
            client.v1.refunds.create({"charge": "ch_1"})
        assert "the call is not affected" in caplog.text
        off()
        client.v1.refunds.create({"charge": "ch_1"})
        with pytest.raises(stripe.StripeError):
            client.v1.refunds.create({"charge": "ch_2"})
        kb.stop(run="run_42")
        with pytest.raises(stripe.StripeError):
            client.v1.refunds.create({"charge": "ch_3", "amount": 1})
    events = [event for event, _ in heard]
    assert events in (
        ["call", "budget", "call", "replayed", "call", "denied", "call", "denied", "stopped"],
        ["call", "budget", "call", "replayed", "budget", "call", "denied", "call", "denied", "stopped"],
    )
    with pytest.raises(ValueError, match="no event"):
        kb.on("nonsense", fails)  # type: ignore[arg-type]


def test_an_agent_can_spend_and_nothing_else(sim: Simulator, tmp_path: Path) -> None:
    ledger = f"sqlite:{tmp_path / 'spend.db'}"
    settings: dict[str, Any] = {"secrets": {"stripe": SECRET}, "base_urls": {"stripe": sim.url}}
    with keybrake.Keybrake(ledger) as control:
        key = control.issue(POLICY, run="run_42")
    with keybrake.Keybrake.agent(ledger, **settings) as agent, agent.run(key.token) as run:
        assert run.stripe().v1.refunds.create({"charge": "ch_1"}).amount == 5000
        for forbidden in ("issue", "stop", "resume", "revoke", "budgets"):
            assert not hasattr(agent, forbidden)

    async def waiting() -> None:
        async with keybrake.AsyncKeybrake.agent(ledger, **settings) as agent, agent.run(key.token) as run:
            assert (await run.stripe().v1.refunds.create_async({"charge": "ch_2"})).amount == 5000

    asyncio.run(waiting())
    assert sim.moved() == 10_000


def test_keys_for_callers_who_make_their_own() -> None:
    key = keybrake.step_key("run_42", "refund-17")
    assert len(key) == 48
    assert key == keybrake.step_key("run_42", "refund-17") != keybrake.step_key("run_42", "refund-18")
    with pytest.raises(keybrake.KeybrakeError, match="::"):
        keybrake.step_key("run::42", "refund-17")
    content = keybrake.content_key({"charge": "ch_1", "amount": 5000})
    assert len(content) == 32
    assert content == keybrake.content_key({"amount": 5000, "charge": "ch_1"})
    assert keybrake.item_key("run_42", 7) == "run_42-7"


def test_settings_that_cannot_be_right_are_refused() -> None:
    with pytest.raises(keybrake.ConfigError, match="rust"):
        keybrake.Keybrake("memory:", transport="httpx")
    with pytest.raises(keybrake.ConfigError, match="127"):
        keybrake.Keybrake("memory:", base_urls={"stripe": "http://example.com"})
    with pytest.raises(keybrake.ConfigError, match="stripe"):
        keybrake.install("twilio")
    assert "sk_test" not in repr(keybrake.Secret.value("sk_test_x"))
    assert repr(keybrake.Secret.file("/run/secrets/stripe")) == "Secret.file('/run/secrets/stripe')"


def test_a_secret_file_is_read_by_the_engine(sim: Simulator, tmp_path: Path) -> None:
    file = tmp_path / "stripe"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    secrets = {"stripe": keybrake.Secret.file(file)}
    with (
        keybrake.Keybrake("memory:", secrets=secrets, base_urls={"stripe": sim.url}) as kb,
        kb.run(policy=POLICY) as run,
    ):
        assert run.stripe().v1.charges.retrieve("ch_1").id == "ch_1"


def test_a_live_secret_never_goes_to_an_override(sim: Simulator) -> None:
    secrets = {"stripe": "sk_live_0123456789"}
    with keybrake.Keybrake("memory:", secrets=secrets, base_urls={"stripe": sim.url}) as kb:
        client = kb.open(policy=POLICY).stripe()
        with pytest.raises(keybrake.ConfigError, match="live"):
            client.v1.charges.retrieve("ch_1")
    assert sim.requests() == []


def test_both_worlds_have_the_same_names() -> None:
    def names(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert names(keybrake.Keybrake) == names(keybrake.AsyncKeybrake)
    assert names(keybrake.Run) == names(keybrake.AsyncRun)
    for name in ("issue", "open", "audit", "holds", "stop", "resume", "usage", "revoke", "check"):
        blocking = inspect.signature(getattr(keybrake.Keybrake, name))
        waiting = inspect.signature(getattr(keybrake.AsyncKeybrake, name))
        assert list(blocking.parameters.items()) == list(waiting.parameters.items()), name


def test_asyncio_answers_the_same(sim: Simulator) -> None:
    async def main() -> None:
        settings: dict[str, Any] = {"secrets": {"stripe": SECRET}, "base_urls": {"stripe": sim.url}}
        async with keybrake.AsyncKeybrake("memory:", **settings) as kb:
            await kb.budgets.set("tenant:acme", [{"usd": 500, "per": "month"}])
            async with kb.run(policy=POLICY, run="run_42", group="tenant:acme") as run:
                assert keybrake.current_run() is run
                with run.step("one"):
                    await run.stripe().v1.refunds.create_async({"charge": "ch_1"})
                assert (await run.check("POST /v1/refunds", {"charge": "ch_1", "amount": 1})).allowed
                assert (await run.cap(), await run.held()) == (Decimal("250.00"), Decimal("0.00"))
                await kb.stop(run="run_42", reason="enough")
                with pytest.raises(stripe.PermissionError):
                    await run.stripe().v1.refunds.create_async({"charge": "ch_2"})
                assert [stop.reason for stop in await kb.stops()] == ["enough"]
                assert await kb.resume(run="run_42")
            assert [row.policy_verdict for row in await kb.audit(run="run_42")] == ["allowed", "stopped"]
            assert len(await kb.budgets.get("tenant:acme")) >= 1
            assert await kb.holds() == []
            key = await kb.issue(POLICY)
            assert await kb.revoke(key.id)
            with pytest.raises(keybrake.PolicyError):
                await kb.issue({"vendor": "stripe"})

    asyncio.run(main())


class _Blip:
    """A `revoke` that the ledger does not take, once."""

    def __init__(self, kb: keybrake.Keybrake) -> None:
        self._revoke = kb.revoke
        self.left = 1

    def __call__(self, key_id: str, reason: str = "") -> bool:
        if self.left:
            self.left -= 1
            message = "the ledger is down"
            raise keybrake.LedgerError(message)
        return self._revoke(key_id, reason=reason)


def test_closing_tries_the_revocation_again_when_the_ledger_did_not_take_it(
    kb: keybrake.Keybrake, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kb.open(policy=POLICY)
    monkeypatch.setattr(kb, "revoke", _Blip(kb))
    with pytest.raises(keybrake.LedgerError):
        run.close()
    assert run.closed
    assert kb.check(run.token, "GET /v1/charges/ch_1").allowed
    run.close()
    run.close()
    assert kb.check(run.token, "GET /v1/charges/ch_1").code == "key_revoked"


NOT_REVOKED = "was not revoked and ends when it expires: the ledger is down"


@pytest.mark.filterwarnings("error")
def test_the_end_of_a_block_logs_that_the_revocation_failed_and_undoes_no_work(
    kb: keybrake.Keybrake, sim: Simulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kb, "revoke", _Blip(kb))
    with kb.run(policy=POLICY) as run:
        run.stripe().v1.refunds.create({"charge": "ch_1"})
    assert run.closed
    assert NOT_REVOKED in caplog.text
    assert sim.movements() == 1


@pytest.mark.filterwarnings("error")
def test_what_a_block_raised_is_raised_also_when_the_revocation_failed(
    kb: keybrake.Keybrake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kb, "revoke", _Blip(kb))
    with pytest.raises(ZeroDivisionError), kb.run(policy=POLICY):
        raise ZeroDivisionError
    assert NOT_REVOKED in caplog.text


@pytest.mark.filterwarnings("error")
def test_asyncio_closes_a_run_the_same(
    sim: Simulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        settings: dict[str, Any] = {"secrets": {"stripe": SECRET}, "base_urls": {"stripe": sim.url}}
        async with keybrake.AsyncKeybrake("memory:", **settings) as kb:
            revoke = kb.revoke
            left = [1, 1]

            async def blip(key_id: str, reason: str = "") -> bool:
                if left:
                    left.pop()
                    message = "the ledger is down"
                    raise keybrake.LedgerError(message)
                return await revoke(key_id, reason=reason)

            monkeypatch.setattr(kb, "revoke", blip)
            with pytest.raises(ZeroDivisionError):
                async with kb.run(policy=POLICY):
                    raise ZeroDivisionError
            assert NOT_REVOKED in caplog.text
            run = await kb.open(policy=POLICY)
            with pytest.raises(keybrake.LedgerError):
                await run.close()
            assert run.closed
            assert (await kb.check(run.token, "GET /v1/charges/ch_1")).allowed
            await run.close()
            assert (await kb.check(run.token, "GET /v1/charges/ch_1")).code == "key_revoked"

    asyncio.run(main())


def test_a_run_without_a_money_budget_has_no_amounts(kb: keybrake.Keybrake) -> None:
    policy: keybrake.Policy = {"vendor": "stripe", "daily_call_cap": 5, "allowed_endpoints": ["reads"]}
    with kb.run(policy=policy) as run:
        assert (run.spent, run.held, run.cap, run.remaining) == (None, None, None, None)


def test_a_base_url_of_the_environment_holds_from_the_keybrake_on(
    sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setenv("KEYBRAKE_BASE_URL_STRIPE", sim.url)
        kb = keybrake.AsyncKeybrake("memory:", secrets={"stripe": SECRET})
        monkeypatch.delenv("KEYBRAKE_BASE_URL_STRIPE")
        async with kb, kb.run(policy=POLICY) as run:
            await run.stripe().v1.refunds.create_async({"charge": "ch_1"})
        assert sim.movements() == 1

    asyncio.run(main())


def test_the_literals_are_the_engines() -> None:
    assert list(get_args(StripeOperation)) == _keybrake.operations("stripe"), "run scripts/operations"
    assert get_args(Vendor) == ("stripe",)
    with pytest.raises(keybrake.ConfigError):
        _keybrake.operations("nobody")


def test_the_command_is_installed_with_the_package(environment: dict[str, str]) -> None:
    command = str(Path(sys.executable).with_name("keybrake"))
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert keybrake.__version__ in version.stdout
    unknown = subprocess.run([command, "no-such-command"], capture_output=True, text=True, check=False, env=environment)
    assert unknown.returncode == 2
