"""Functions that users attach to what happens. A failing hook never fails a call: it is logged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, get_args

from keybrake._types import HookName

Hook = Callable[[Any], None]
log = logging.getLogger("keybrake")


class Hooks:
    """The hooks of one Keybrake, by event."""

    def __init__(self) -> None:
        self._hooks: dict[str, list[Hook]] = {}

    def on(self, event: HookName, hook: Hook) -> Callable[[], None]:
        """Attaches a hook; answers a function that takes it off again."""
        if event not in get_args(HookName):
            raise ValueError(f"no event {event!r}: one of {', '.join(get_args(HookName))}")
        self._hooks.setdefault(event, []).append(hook)

        def off() -> None:
            if hook in self._hooks.get(event, []):
                self._hooks[event].remove(hook)

        return off

    def heard(self, event: HookName) -> bool:
        """Whether anybody listens to an event."""
        return bool(self._hooks.get(event))

    def fire(self, event: HookName, what: Any) -> None:
        """Calls every hook of an event, in the order of attachment."""
        for hook in tuple(self._hooks.get(event, ())):
            try:
                hook(what)
            except Exception:
                log.exception("keybrake: the %s hook %r failed; the call is not affected", event, hook)
