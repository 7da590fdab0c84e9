"""Where a vendor's real secret comes from. Prefer a file: then it never becomes a Python object."""

from __future__ import annotations

import os
from typing import Literal


class Secret:
    """A reference to a vendor's secret; `repr` never shows a value."""

    __slots__ = ("_kind", "_text")

    def __init__(self, kind: Literal["env", "file", "value"], text: str) -> None:
        self._kind = kind
        self._text = text

    @classmethod
    def env(cls, name: str) -> Secret:
        """From an environment variable, read when the ledger is opened."""
        return cls("env", name)

    @classmethod
    def file(cls, path: str | os.PathLike[str]) -> Secret:
        """From a file that only its owner may read; read by the native module, so Python never sees it."""
        return cls("file", os.fspath(path))

    @classmethod
    def value(cls, secret: str) -> Secret:
        """Given here. It is then a Python string, which nothing can wipe."""
        return cls("value", secret)

    def setting(self) -> dict[str, str]:
        """For the native module."""
        return {self._kind: self._text}

    def __repr__(self) -> str:
        return "Secret.value(...)" if self._kind == "value" else f"Secret.{self._kind}({self._text!r})"
