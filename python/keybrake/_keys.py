"""Idempotency keys for callers who make their own. The same in every language."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from keybrake import _keybrake


def step_key(run: str, step: str) -> str:
    """A key for a named step of a run: SHA-256 over both, 48 hex digits. A run id may not contain `::`."""
    return _keybrake.step_key(run, step)


def content_key(fields: Mapping[str, Any]) -> str:
    """A key for what is done: SHA-256 over the chosen fields by name, 32 hex digits. The order does not matter."""
    return _keybrake.content_key(json.dumps(fields, sort_keys=True, allow_nan=False))


def item_key(run: str, item: str | int) -> str:
    """A key for an item of a run, readable: `run-item`."""
    return _keybrake.item_key(run, str(item))
