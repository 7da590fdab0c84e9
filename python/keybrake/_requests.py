"""What is asked of the engine and how its answers read: shared by the blocking and the asyncio front."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias, get_args
from urllib.parse import urlencode

from keybrake._errors import ConfigError, PolicyError
from keybrake._money import duration_text, moment, plain, unix_ms, usd_from_micros
from keybrake._secret import Secret
from keybrake._types import AuditRow, Budget, BudgetEntry, Check, Hold, Policy, StopInfo, StopResult, Vendor

PolicyLike: TypeAlias = "Policy | Mapping[str, Any] | str | os.PathLike[str]"
"""A policy: a mapping, or the path of a JSON, YAML or TOML file."""


def settings(
    ledger: str | None,
    secrets: Mapping[str, Secret | str] | None,
    base_urls: Mapping[str, str] | None,
    transport: str,
) -> dict[str, Any]:
    """The settings of an engine, as JSON can carry them."""
    if transport != "rust":
        raise ConfigError(f"no transport {transport!r}; there is one: 'rust'")
    given = {
        name: (secret if isinstance(secret, Secret) else Secret.value(secret)).setting()
        for name, secret in (secrets or {}).items()
    }
    # Read once, here: what the guard of tests goes by is what the engine uses, whatever the variables say later.
    return {"ledger": ledger, "secrets": given, "base_urls": {**_base_urls_by_variable(), **(base_urls or {})}}


def _base_urls_by_variable() -> dict[str, str]:
    named = {vendor: os.environ.get(f"KEYBRAKE_BASE_URL_{vendor.upper()}", "") for vendor in get_args(Vendor)}
    return {vendor: url for vendor, url in named.items() if url}


def policy_argument(policy: PolicyLike) -> dict[str, Any]:
    """A policy as an argument: the document, or the absolute path of its file."""
    if isinstance(policy, (str, os.PathLike)):
        return {"policy_file": str(Path(policy).absolute())}
    return {"policy": document(policy, "policy")}


def document(fields: Mapping[str, Any], what: str) -> Any:
    """A document with its decimals as text."""
    try:
        return plain(dict(fields))
    except (TypeError, ValueError) as error:
        raise PolicyError(f"{what}: {error}") from error


def ties(
    run: str | None,
    agent: str | None,
    label: str | None,
    group: str | Sequence[str] | None,
    narrow: Mapping[str, Any] | None,
    expires_in: str | timedelta | None,
) -> dict[str, Any]:
    """What binds a key besides its policy."""
    return {
        "run": run,
        "agent": agent,
        "label": label,
        "groups": [group] if isinstance(group, str) else list(group or ()),
        "narrow": None if narrow is None else document(narrow, "narrow"),
        "expires_in": None if expires_in is None else duration_text(expires_in),
        "by": who(),
    }


def who() -> str:
    """Who does this, for the audit."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "python"


def scope(scopes: Mapping[str, str | None], everything: bool) -> dict[str, Any]:
    """The one scope of a stop."""
    given = [(kind, name) for kind, name in scopes.items() if name is not None]
    if everything:
        given.append(("all", ""))
    if len(given) != 1:
        names = ", ".join(scopes)
        raise ConfigError(f"say what to stop with exactly one of {names} or all=True; got {len(given)}")
    kind, name = given[0]
    return {"kind": kind} if kind == "all" else {"kind": kind, "id": name}


def since_ms(since: datetime | timedelta | None) -> int | None:
    """A moment, or so long ago, as Unix milliseconds."""
    if since is None:
        return None
    if isinstance(since, timedelta):
        since = datetime.now(tz=moment(0).tzinfo) - since
    return unix_ms(since)


def budget_definitions(scope_name: str, entries: Sequence[BudgetEntry]) -> list[Any]:
    """Budgets of a group as policy entries."""
    return [document({"scope": scope_name, **entry}, "budget") for entry in entries]


def budgets(answer: Sequence[Mapping[str, Any]]) -> tuple[Budget, ...]:
    """Budgets as they stand; those that were never drawn on in the other mode are left out by the engine."""
    return tuple(Budget.from_view(item["view"], item["livemode"]) for item in answer)


def hold(item: Mapping[str, Any]) -> Hold:
    """A reservation that still holds something."""
    facts = item["facts"]
    return Hold(
        call_id=facts["call_id"],
        state=item["state"],
        operation=facts["operation"],
        run=facts.get("run"),
        held_usd=usd_from_micros(item["held"]),
        reserved_at=moment(item["reserved_at_ms"]),
        not_after=moment(item["not_after_ms"]),
        reason=item.get("unknown_reason"),
    )


def stop_info(item: Mapping[str, Any]) -> StopInfo:
    """A standing stop."""
    kind = item["scope"]
    name = kind["kind"] if kind["kind"] == "all" else f"{kind['kind']}:{kind['id']}"
    return StopInfo(name, item["admin"]["reason"], moment(item["since_ms"]), item["admin"]["by"])


def stop_result(item: Mapping[str, Any]) -> StopResult:
    """What a stop met."""
    return StopResult(
        stop=stop_info(item["stop"]),
        keys_refused=item["keys_refused"],
        in_flight=tuple(hold(entry) for entry in item["in_flight"]),
        other_runs=item["other_runs"],
        processes_told=item["processes_told"],
    )


def audit_row(item: Mapping[str, Any]) -> AuditRow:
    """A row of the audit; money comes as decimal text."""
    return AuditRow(
        call_id=item["call_id"],
        called_at=datetime.fromisoformat(item["called_at"].replace("Z", "+00:00")),
        vault_key_id=item["vault_key_id"],
        agent_run_id=item["agent_run_id"],
        agent_label=item["agent_label"],
        vendor=item["vendor"],
        operation=item["operation"],
        customer_scope_id=item["customer_scope_id"],
        policy_verdict=item["policy_verdict"],
        status_code=item["status_code"],
        cost_usd_parsed=_money(item["cost_usd_parsed"]),
        cost_source=item["cost_source"],
        cap_usage_after_usd=_money(item["cap_usage_after_usd"]),
        vendor_request_id=item["vendor_request_id"],
        idempotency_key=item["idempotency_key"],
        latency_ms=item["latency_ms"],
        metadata=item["metadata"],
    )


def _money(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def checked_call(token: str, endpoint: str, fields: Mapping[str, Any], vendor: str) -> dict[str, str]:
    """A call such as `"POST /v1/refunds"` with its fields, encoded as the vendor's SDK would."""
    method, _, path = endpoint.partition(" ")
    if not path.startswith("/"):
        raise ConfigError(f'{endpoint!r} is no endpoint: write a method and a path, such as "POST /v1/refunds"')
    text = urlencode(list(_flat("", fields)), safe="[]")
    if method.upper() in ("GET", "DELETE"):
        path, text = (f"{path}?{text}" if text else path), ""
    return {"token": token, "vendor": vendor, "method": method, "path": path, "body": text}


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Form fields with brackets: `metadata[a]`, `items[0][price]`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}[{key}]" if name else str(key), inner)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _flat(f"{name}[{index}]", inner)
    elif value is not None:
        yield name, str(value).lower() if isinstance(value, bool) else str(value)


def check(item: Mapping[str, Any]) -> Check:
    """A verdict without consequences."""
    micros = item.get("amount_micros")
    denial = item.get("denial") or {}
    needs_lookup = not denial and micros is None
    return Check(
        allowed=not denial,
        code=denial.get("code"),
        message=denial.get("message", _NOT_JUDGED if needs_lookup else ""),
        amount_usd=None if micros is None else usd_from_micros(micros),
        needs_lookup=needs_lookup,
    )


_NOT_JUDGED = (
    "the policy allows the call; what it moves is known only by asking the vendor, so it was not judged against caps"
)
