"""The native module. Private: use the functions and classes of `keybrake`."""

from collections.abc import Callable
from typing import Final, final

__all__ = [
    "Answer",
    "Engine",
    "Simulator",
    "Stream",
    "Task",
    "__version__",
    "after_fork",
    "before_fork",
    "cli",
    "content_key",
    "for_model",
    "item_key",
    "operations",
    "panic",
    "step_key",
]

__version__: Final[str]

@final
class Answer:
    """How a governed call ended."""

    @property
    def kind(self) -> str:
        """`reply`, `denied`, `lost`, or `stream`: a reply whose body is still to be read."""
    @property
    def status(self) -> int:
        """HTTP status; 0 when there is no reply."""
    @property
    def headers(self) -> dict[str, str]:
        """Headers with lower-case names."""
    @property
    def body(self) -> bytes:
        """The whole body."""
    @property
    def record(self) -> str:
        """The call as the audit has it, as JSON."""
    @property
    def denial(self) -> str | None:
        """The refusal as JSON, when it was refused."""
    @property
    def reason(self) -> str | None:
        """Why there is no reply, in a word."""
    @property
    def never_sent(self) -> bool:
        """Whether it is certain that nothing left."""
    def take_stream(self) -> Stream | None:
        """The body of a `stream`, once."""

@final
class Task:
    """Work under way on the engine's runtime."""

    def cancel(self) -> None:
        """Aborts it. A request that may have left stays held as unknown."""

@final
class Engine:
    """The engine of one process: runtime, ledger and HTTP client. Opened on first use."""

    def __new__(cls, settings: str) -> Engine: ...
    def in_this_process(self) -> Engine:
        """A new engine with the same settings, for a child after a fork."""
    def open(self) -> None:
        """Opens the ledger now."""
    def send(
        self,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        body: bytes,
        context: str,
        wait_ms: int,
    ) -> Answer:
        """Makes a governed call. Signals are looked at every 50 ms; one that raises aborts the request."""
    def start_send(
        self,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        body: bytes,
        context: str,
        wait_ms: int,
        done: Callable[[Answer | None, Exception | None], None],
    ) -> Task:
        """The same without waiting; `done` is called on the engine's own thread."""
    def open_stream(
        self,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        body: bytes,
        context: str,
        wait_ms: int,
    ) -> Answer:
        """As `send`, but a document (a quote's PDF, a file's contents) is left to be read as it arrives."""
    def start_open_stream(
        self,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        body: bytes,
        context: str,
        wait_ms: int,
        done: Callable[[Answer | None, Exception | None], None],
    ) -> Task:
        """The same without waiting; `done` is called on the engine's own thread."""
    def ask(self, what: str, arguments: str) -> str:
        """One question or order to the ledger; arguments and answer are JSON."""
    def start_ask(self, what: str, arguments: str, done: Callable[[str | None, Exception | None], None]) -> Task:
        """The same without waiting; `done` is called on the engine's own thread."""
    def close(self) -> None:
        """Writes down what is still lazy and ends the runtime. Calls under way are aborted, their holds stand."""

@final
class Stream:
    """The body of a reply that is handed on as it arrives. Dropping it before its end leaves the call unknown."""

    def read(self) -> bytes | None:
        """The next piece; None at the end, by which the call is settled, and when it broke off: see `reason`."""
    def start_read(self, done: Callable[[bytes | None, Exception | None], None]) -> Task:
        """The same without waiting; `done` is called on the engine's own thread."""
    def close(self) -> None:
        """Ends it, and returns when that is recorded. Safe to repeat."""
    def start_close(self, done: Callable[[None, Exception | None], None]) -> Task:
        """The same without waiting; `done` is called on the engine's own thread."""
    @property
    def record(self) -> str:
        """The call as the audit has it, as JSON; final once the body is over."""
    @property
    def reason(self) -> str | None:
        """Why it broke off, in a word."""
    @property
    def denial(self) -> str | None:
        """The denial of a hard stop that aborted it, as JSON."""

@final
class Simulator:
    """A running simulator of a vendor on 127.0.0.1, with a thread of its own."""

    def __new__(cls, vendor: str, port: int) -> Simulator: ...
    @property
    def secret(self) -> str:
        """The secret to use with it."""
    @property
    def url(self) -> str:
        """Its base URL."""
    def stop(self) -> None:
        """Stops it. Safe to repeat."""

def for_model(denial: str) -> str:
    """A refusal (JSON) in words for a language model."""

def before_fork() -> None:
    """Waits until no step of a ledger file is in progress in this process, and lets none begin."""

def after_fork() -> None:
    """Lets steps begin again."""

def step_key(run: str, step: str) -> str:
    """SHA-256 over run and step, 48 hex digits."""

def content_key(fields: str) -> str:
    """SHA-256 over fields (a JSON object), 32 hex digits."""

def item_key(run: str, item: str) -> str:
    """`run-item`."""

def operations(vendor: str) -> list[str]:
    """Names of a vendor's operations, in order."""

def cli(arguments: list[str]) -> int:
    """Runs the command line; answers its exit code."""

def panic() -> None:
    """Panics inside the native module, to test that a panic becomes an exception."""
