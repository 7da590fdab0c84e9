"""Stripe through Keybrake: real `stripe` clients whose every call is governed by the vault key they hold.

The token stands where the secret key stood. `stripe` here is Stripe's own package; this module only adds the transport.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from io import BufferedReader, BytesIO, RawIOBase
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import stripe as _stripe

from keybrake._context import Here, here
from keybrake._engine import Answer, Stream, close_async, read_async
from keybrake._errors import ConfigError, Denied
from keybrake._money import usd_from_micros
from keybrake._types import Budget, CallInfo, Verdict

if TYPE_CHECKING:
    from keybrake._async_client import AsyncKeybrake
    from keybrake._client import Keybrake
    from keybrake._front import Front
    from keybrake._run import AsyncRun, Run

__all__ = ["BrakeTransport", "client", "install"]

_STANDARD_CLIENTS = (
    "RequestsClient",
    "HTTPXClient",
    "AIOHTTPClient",
    "UrllibClient",
    "PycurlClient",
    "UrlFetchClient",
)
_CAP_WARNING = Decimal("0.8")
"""The `budget` hook fires from this share of the tightest cap on."""


class GeneratedKey(str):
    """An idempotency key that the SDK made up: it tells transport attempts apart, not spends."""

    __slots__ = ()


def _mark_generated_keys() -> bool:
    """Lets the SDK's own keys be told from the caller's; False when this version of the SDK has no such function."""
    from stripe import _api_requestor  # noqa: PLC0415 - private; may be gone in another version

    original = getattr(_api_requestor, "_generate_idempotency_key", None)
    if original is None:
        return False
    if not getattr(original, "keybrake", False):

        def marked() -> str:
            return GeneratedKey(original())

        marked.keybrake = True  # type: ignore[attr-defined]
        _api_requestor._generate_idempotency_key = marked
    return True


_keys_are_marked = _mark_generated_keys()


def _key_origin(headers: Mapping[str, str]) -> str:
    """Who made the idempotency key on a call: `generated`, `caller` or `unknown`."""
    keys = [value for name, value in headers.items() if name.lower() == "idempotency-key"]
    if all(isinstance(key, GeneratedKey) for key in keys):
        return "generated"
    return "caller" if _keys_are_marked else "unknown"


class _Headers(dict[str, str]):
    """A reply's headers: lower-case names, found in any case, as the SDK expects."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class BrakeTransport(_stripe.HTTPClient):
    """Stripe's HTTP client, with the judging, the sending and the settling done by the native module."""

    name = "keybrake"

    def __init__(
        self,
        keybrake: Keybrake | AsyncKeybrake | Front,
        *,
        run: Run | AsyncRun | None = None,
        wait_ms: int = 0,
    ) -> None:
        super().__init__()
        self._keybrake = keybrake
        self._run = run
        self._wait_ms = wait_ms

    # What the SDK calls, once for each attempt.

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        """One governed attempt."""
        call = self._call(method, url, headers, post_data)
        return cast("tuple[str, int, Mapping[str, str]]", call.finish(self._keybrake.engine.native().send(*call.send)))

    def request_stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[Any, int, Mapping[str, str]]:
        """One governed attempt. A document is handed on as it arrives, and settled by its end.

        Anything else, an error too, is there whole, and settled before.
        """
        call = self._call(method, url, headers, post_data)
        answer = self._keybrake.engine.native().open_stream(*call.send)
        stream = answer.take_stream()
        if stream is not None:
            return BufferedReader(_Document(call, answer, stream)), answer.status, _Headers(answer.headers)
        body, status, reply_headers = call.finish(answer)
        return BytesIO(body), status, reply_headers

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """One governed attempt from asyncio. Cancelling it leaves its hold unknown, never released."""
        call = self._call(method, url, headers, post_data)
        return call.finish(await self._keybrake.engine.send_async(*call.send))

    async def request_stream_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[Any, int, Mapping[str, str]]:
        """As `request_stream`. Cancelling it, or leaving the loop early, leaves the call unknown."""
        call = self._call(method, url, headers, post_data)
        answer = await self._keybrake.engine.open_stream_async(*call.send)
        stream = answer.take_stream()
        if stream is not None:
            return _pieces(call, answer, stream), answer.status, _Headers(answer.headers)
        body, status, reply_headers = call.finish(answer)
        return _once(body), status, reply_headers

    async def sleep_async(self, secs: float) -> None:
        """Between the SDK's attempts."""
        await asyncio.sleep(secs)

    def close(self) -> None:
        """The connections belong to the Keybrake; closing that closes them."""

    async def close_async(self) -> None:
        """As `close`."""

    def _call(self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any) -> _Call:
        _guard_tests(self._keybrake, url)
        run = self._run
        if run is not None and run.closed:
            raise _refused({"code": "key_expired", "message": f"the run {run.id} is closed"}, 401, {}, b"")
        return _Call(self._keybrake, run, self._wait_ms, method, url, headers or {}, post_data)


class _Call:
    """One attempt: what is handed to the engine, and what its answer means to the SDK."""

    def __init__(
        self,
        keybrake: Front,
        run: Run | AsyncRun | None,
        wait_ms: int,
        method: str,
        url: str,
        headers: Mapping[str, str],
        post_data: Any,
    ) -> None:
        around = here()
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        self._keybrake = keybrake
        self._run = run or (around.run if around.run is not None and around.run.token == token else None)
        body = post_data if isinstance(post_data, bytes) else (post_data or "").encode()
        context = json.dumps(_context(around, self._run, _key_origin(headers)))
        pairs = [(name, str(value)) for name, value in headers.items()]
        self.send = (method, url, pairs, body, context, wait_ms)

    def finish(self, answer: Answer) -> tuple[bytes, int, Mapping[str, str]]:
        """The reply as the SDK wants it, or the exception it should see."""
        record = json.loads(answer.record)
        denial = None if answer.denial is None else json.loads(answer.denial)
        info = _info(record, answer, denial)
        if self._run is not None:
            self._run.record(info)
        hooks = self._keybrake.hooks
        hooks.fire("call", info)
        if answer.kind == "denied":
            error = _refused(denial, answer.status, answer.headers, answer.body)
            self._denied(error, info)
            raise error
        if answer.kind == "lost":
            if not answer.never_sent:
                hooks.fire("unknown", info)
            raise _lost(answer, info)
        self._settled(record, info)
        return answer.body, answer.status, _Headers(answer.headers)

    def read(self, answer: Answer, stream: Stream) -> None:
        """Accounts for a document whose body is over, and raises if it broke off."""
        record = json.loads(stream.record)
        denial = None if stream.denial is None else json.loads(stream.denial)
        info = _info(record, answer, denial)
        if self._run is not None:
            self._run.record(info)
        self._keybrake.hooks.fire("call", info)
        if denial is not None:
            error = _refused(denial, 403, {}, b"")
            self._denied(error, info)
            raise error
        if info.verdict == "unknown":
            self._keybrake.hooks.fire("unknown", info)
        else:
            self._settled(record, info)
        if stream.reason is not None:
            text = f"Stripe's reply broke off ({stream.reason}); ask for it again (call {info.call_id})"
            raise _stripe.APIConnectionError(text, should_retry=True)  # type: ignore[no-untyped-call]

    def _denied(self, error: Denied, info: CallInfo) -> None:
        hooks = self._keybrake.hooks
        hooks.fire("denied", error)
        if error.aborted:
            hooks.fire("unknown", info)
        if error.code == "stopped":
            hooks.fire("stopped", error)

    def _settled(self, record: Mapping[str, Any], info: CallInfo) -> None:
        hooks = self._keybrake.hooks
        if info.replayed:
            hooks.fire("replayed", info)
        if record["tightest"] and hooks.heard("budget"):
            budget = Budget.from_view(record["tightest"])
            if budget.used + budget.held >= budget.cap * _CAP_WARNING:
                hooks.fire("budget", budget)


class _Document(RawIOBase):
    """The body of a document as the SDK's `io`: each read waits for what has arrived, no longer.

    Read to its end or close it (`with`): a document that is given up is recorded then, as `unknown`.
    """

    def __init__(self, call: _Call, answer: Answer, stream: Stream) -> None:
        super().__init__()
        self._call = call
        self._answer = answer
        self._stream = stream
        self._piece = memoryview(b"")
        self._over = False

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        if not self._piece and not self._over:
            piece = self._stream.read()
            if piece is None:
                self._over = True
                self._call.read(self._answer, self._stream)
                return 0
            self._piece = memoryview(piece)
        taken = min(len(into), len(self._piece))
        into[:taken] = self._piece[:taken]
        self._piece = self._piece[taken:]
        return taken

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if not self._over:
            self._over = True
            self._stream.close()
            self._call.read(self._answer, self._stream)


async def _pieces(call: _Call, answer: Answer, stream: Stream) -> AsyncIterator[bytes]:
    """The body of a document as it arrives."""
    try:
        while (piece := await read_async(stream)) is not None:
            yield piece
    finally:
        await close_async(stream)
        call.read(answer, stream)


def client(
    keybrake: Keybrake | AsyncKeybrake | Front,
    token: str,
    *,
    run: Run | AsyncRun | None = None,
    wait_ms: int = 0,
    **options: Any,
) -> _stripe.StripeClient:
    """A real `stripe.StripeClient` whose API key is the vault key. `options` are the SDK's own."""
    for taken in ("http_client", "proxy", "verify_ssl_certs"):
        if taken in options:
            raise ConfigError(f"{taken} belongs to the SDK's own transport; calls go through Keybrake's here")
    return _stripe.StripeClient(token, http_client=BrakeTransport(keybrake, run=run, wait_ms=wait_ms), **options)


def install(keybrake: Keybrake | Front) -> None:
    """Governs the module-level API (`stripe.Refund.create`) and every `StripeClient` made from now on.

    Then set `stripe.api_key` to a vault key. An HTTP client of your own is not replaced: that is an error.
    """
    present = _stripe.default_http_client
    if present is not None and not isinstance(present, BrakeTransport):
        kind = type(present)
        if kind.__module__ != "stripe._http_client" or kind.__name__ not in _STANDARD_CLIENTS:
            raise ConfigError(f"stripe.default_http_client is {kind.__name__}, which install would replace; unset it")
    transport = BrakeTransport(keybrake)
    _stripe.default_http_client = transport

    from stripe import _stripe_client  # noqa: PLC0415 - private; may be gone in another version

    if hasattr(_stripe_client, "new_default_http_client"):
        _stripe_client.new_default_http_client = lambda *_args, **_options: transport


def _context(around: Here, run: Run | AsyncRun | None, key_origin: str) -> dict[str, Any]:
    """Attribution of a call. A step belongs to the run it was named in, and counts for no other."""
    mine = around if around.run is run else Here()
    return {
        "run": None if run is None else run.id,
        "step": mine.step,
        "item": mine.item,
        "key_origin": key_origin,
        "context": dict(mine.context),
    }


def _info(record: Mapping[str, Any], answer: Answer, denial: Mapping[str, Any] | None) -> CallInfo:
    unknown = answer.kind == "lost" and not answer.never_sent
    verdict: Verdict = "allowed"
    if denial is not None:
        verdict = "unknown" if denial.get("aborted") else "denied"
    elif record["replayed"]:
        verdict = "replayed"
    elif unknown or record["state"] == "unknown":
        verdict = "unknown"
    return CallInfo(
        call_id=record["call_id"],
        operation=record["operation"],
        verdict=verdict,
        cost=None if verdict == "unknown" else usd_from_micros(record["cost_micros"]),
        replayed=record["replayed"],
        status=answer.status or None,
        code=None if denial is None else denial["code"],
    )


def _lost(answer: Answer, info: CallInfo) -> _stripe.APIConnectionError:
    """No reply. The SDK may try again: the attempt joins the same spend."""
    if answer.never_sent:
        text = f"the call to Stripe was not sent ({answer.reason}); no money moved"
    else:
        text = (
            f"no reply from Stripe ({answer.reason}); the call may have taken effect, so its amount stays held "
            f"until that is known (call {info.call_id})"
        )
    return _stripe.APIConnectionError(text, should_retry=True)  # type: ignore[no-untyped-call]


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _guard_tests(keybrake: Front, url: str) -> None:
    """Under pytest, no call leaves the machine by accident."""
    if keybrake.allow_live_in_tests or "PYTEST_CURRENT_TEST" not in os.environ:
        return
    if urlsplit(url).hostname in ("127.0.0.1", "::1") or "stripe" in keybrake.engine.loopback_vendors:
        return
    raise ConfigError(
        "this test would call Stripe itself: set base_urls={'stripe': 'http://127.0.0.1:PORT'} (keybrake simulate), "
        "or allow_live_in_tests=True"
    )


# Refusals that are also Stripe's own errors.


class _StripeDenied(Denied):
    """Fills both halves of a mixed class: the refusal, and what Stripe's errors carry."""

    def __init__(
        self,
        denial: Mapping[str, Any],
        status: int = 403,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        error = {
            "type": "keybrake_denied",
            "message": denial["message"],
            "code": denial["code"],
            "keybrake": dict(denial),
        }
        text = body.decode() or json.dumps({"error": error})
        self._denial = dict(denial)
        _stripe.StripeError.__init__(
            cast(_stripe.StripeError, self),
            denial["message"],
            text,
            status,
            json.loads(text),
            dict(headers or {}),
            denial["code"],
        )
        self._fill(status)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class DeniedAuthentication(_StripeDenied, _stripe.AuthenticationError):  # type: ignore[misc] # a narrower `code`
    """`key_missing`, `key_unknown`, `key_revoked`, `key_expired`."""


class DeniedPermission(_StripeDenied, _stripe.PermissionError):  # type: ignore[misc] # a narrower `code`
    """Refused by the policy, or stopped."""


class DeniedRateLimit(_StripeDenied, _stripe.RateLimitError):  # type: ignore[misc] # a narrower `code`
    """`cap_exceeded`, `cap_held`."""


class DeniedIdempotency(_StripeDenied, _stripe.IdempotencyError):  # type: ignore[misc] # a narrower `code`
    """`idempotency_conflict`."""


class DeniedConnection(_StripeDenied, _stripe.APIConnectionError):  # type: ignore[misc] # a narrower `code`
    """`ledger_unavailable`, `ledger_recovering`: nothing was sent, and the SDK does not try again."""

    should_retry = False


_BY_STATUS: dict[int, type[_StripeDenied]] = {
    400: DeniedIdempotency,
    401: DeniedAuthentication,
    403: DeniedPermission,
    429: DeniedRateLimit,
    503: DeniedConnection,
}


def _refused(denial: Any, status: int, headers: Mapping[str, str], body: bytes) -> _StripeDenied:
    return _BY_STATUS.get(status, DeniedPermission)(denial, status, headers, body)


def __getattr__(name: str) -> Any:
    hint = "; did you mean `import stripe`?" if hasattr(_stripe, name) else ""
    raise AttributeError(f"keybrake.stripe has no {name!r}{hint}")
