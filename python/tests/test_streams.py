"""Documents (a quote's PDF, a file's contents) through stripe-python's streaming calls: handed on as they arrive."""

from __future__ import annotations

import asyncio
import gc
import io
from collections.abc import Iterator
from typing import Any

import pytest
import stripe

import keybrake
from conftest import SECRET, TIMEZONE
from keybrake.testing import Simulator

POLICY: keybrake.Policy = {
    "vendor": "stripe",
    "daily_usd_cap": 100,
    "timezone": TIMEZONE,
    "allowed_endpoints": ["reads", "files.create"],
}
FIRST = 1_000
WHOLE = 256 * 1024


@pytest.fixture
def run(kb: keybrake.Keybrake) -> Iterator[keybrake.Run]:
    with kb.run(policy=POLICY) as found:
        yield found


def hold_the_body(sim: Simulator) -> None:
    sim.fault("hold_body", "GET", "/v1/", chunk_bytes=FIRST)


def verdicts(run: keybrake.Run | keybrake.AsyncRun) -> list[str]:
    return [call.verdict for call in run.calls]


def waiting(sim: Simulator) -> int:
    count: int = sim.control("GET", "waiting")["count"]
    return count


def test_the_first_bytes_are_there_before_the_vendor_has_sent_the_last(run: keybrake.Run, sim: Simulator) -> None:
    hold_the_body(sim)
    document: Any = run.stripe().v1.quotes.pdf("qt_1").io
    first = document.read(FIRST)
    assert first.startswith(b"%PDF")
    assert len(first) == FIRST
    assert waiting(sim) == 1, "the rest is still to come"
    assert run.calls == ()
    sim.release()
    assert len(document.read()) == WHOLE - FIRST
    assert verdicts(run) == ["allowed"]
    assert document.read() == b""
    document.close()
    assert verdicts(run) == ["allowed"], "counted once"


def test_a_document_that_is_closed_early_is_unknown_and_holds_nothing(
    run: keybrake.Run, kb: keybrake.Keybrake, sim: Simulator
) -> None:
    told: list[str] = []
    kb.on("unknown", lambda call: told.append(call.operation))
    hold_the_body(sim)
    document: Any
    with run.stripe().v1.quotes.pdf("qt_1").io as document:
        assert document.read(4) == b"%PDF"
    assert verdicts(run) == ["unknown"]
    assert told == ["quotes.pdf"]
    assert run.held == 0
    with pytest.raises(ValueError, match="closed"):
        document.read()
    sim.release()
    hold_the_body(sim)
    given_up = run.stripe().v1.quotes.pdf("qt_1")
    del given_up
    gc.collect()
    assert verdicts(run) == ["unknown"] * 2


def test_a_reset_in_the_middle_is_a_connection_error(run: keybrake.Run, sim: Simulator) -> None:
    hold_the_body(sim)
    document: Any = run.stripe().v1.quotes.pdf("qt_1").io
    assert document.read(4) == b"%PDF"
    sim.release(drop=True)
    with pytest.raises(stripe.APIConnectionError, match="broke off"):
        document.read()
    assert verdicts(run) == ["unknown"]


def test_what_a_file_holds_is_streamed_and_errors_are_whole(run: keybrake.Run, sim: Simulator) -> None:
    client = run.stripe()
    content = bytes(range(256)) * 40
    made = client.v1.files.create({"file": io.BytesIO(content), "purpose": "dispute_evidence"})
    private: Any = client
    hold_the_body(sim)
    reply = private._requestor.request_stream("get", f"/v1/files/{made.id}/contents", base_address="files")
    assert reply.io.read(FIRST) == content[:FIRST]
    assert waiting(sim) == 1
    sim.release()
    assert reply.io.read() == content[FIRST:]
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.quotes.pdf("ch_1")
    assert [call.operation for call in run.calls] == ["files.create", "files.contents", "quotes.pdf"]


def test_asyncio_streams_too(sim: Simulator) -> None:
    async def main() -> None:
        settings: dict[str, Any] = {"secrets": {"stripe": SECRET}, "base_urls": {"stripe": sim.url}}
        async with keybrake.AsyncKeybrake("memory:", **settings) as kb, kb.run(policy=POLICY) as run:
            quotes = run.stripe().v1.quotes
            hold_the_body(sim)
            pieces: Any = (await quotes.pdf_async("qt_1")).stream()
            body = await anext(pieces)
            assert body.startswith(b"%PDF")
            assert len(body) <= FIRST
            assert waiting(sim) == 1, "the rest is still to come"
            sim.release()
            async for piece in pieces:
                body += piece
            assert len(body) == WHOLE
            assert verdicts(run) == ["allowed"]

            hold_the_body(sim)
            pieces = (await quotes.pdf_async("qt_1")).stream()
            await anext(pieces)
            await pieces.aclose()
            assert verdicts(run)[1:] == ["unknown"]
            sim.release()

            hold_the_body(sim)
            pieces = (await quotes.pdf_async("qt_1")).stream()
            await anext(pieces)
            sim.release(drop=True)
            with pytest.raises(stripe.APIConnectionError, match="broke off"):
                async for _ in pieces:
                    pass
            assert verdicts(run)[2:] == ["unknown"]

            hold_the_body(sim)
            pieces = (await quotes.pdf_async("qt_1")).stream()
            rest = asyncio.ensure_future(collect(pieces))
            await asyncio.to_thread(sim.wait_held)
            rest.cancel()
            with pytest.raises(asyncio.CancelledError):
                await rest
            assert verdicts(run)[3:] == ["unknown"]

    asyncio.run(main())


async def collect(pieces: Any) -> bytes:
    return b"".join([piece async for piece in pieces])
