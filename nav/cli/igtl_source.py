"""The connection of the ``igtl`` commands: the program's own source, and what it delivers into a table."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from drivers.openigtlink.inspection import StreamTable
from drivers.openigtlink.receiver import compile_kernels
from drivers.openigtlink.selection import Filter
from drivers.openigtlink.source import IgtlSource
from drivers.openigtlink.wire import parse_header
from nav.cli.errors import CommandError, ExitCode
from nav.cli.progress import Steps
from nav.config.room import SourceConfig
from nav.geometry.frames import FrameNameError, TransformName
from nav.runtime.clock import Clock, SystemClock
from nav.runtime.messages import LinkMessage, LinkState, Message

__all__ = ["Listener", "asked", "prepare", "print_json", "source_config"]

#: Nominal rate of what is asked for by name; only its freshness limits would follow from it, and nothing asks for them.
_ASKED_HZ = 60.0


def prepare(steps: Steps) -> None:
    """Compile (or load) what receiving and reading poses needs, visibly."""
    with steps.step("Preparing to receive"):
        compile_kernels()


def source_config(
    host: str,
    port: int,
    *,
    name: str,
    v2: bool = False,
    ask: Sequence[str] = (),
    subscribe: str = "",
    interval_ms: int = 20,
    coordinate: str = "",
    reconnect: bool = True,
) -> SourceConfig:
    """The options of a command as those of a source.

    Parameters
    ----------
    name : str
        Device name of what is sent to the server.
    v2 : bool
        Speak header version 2 from the first message on.
    ask : sequence of str
        Transforms and images to ask a PLUS server for (CLIENTINFO).
    subscribe : ``"tdata"``, ``"qtdata"`` or empty

    Raises
    ------
    CommandError
        When a value cannot be used.
    """
    transforms, images = [], []
    for wanted in ask:
        try:
            transforms.append({"device": wanted, "transform": TransformName.parse(wanted).wire})
        except FrameNameError:
            images.append({"device": wanted, "placed_by": "header"})
    try:
        return SourceConfig.model_validate(
            {
                "name": name,
                "host": host,
                "port": port,
                "header_version": 2 if v2 else 1,
                "client_info": bool(ask),
                "tools": transforms,
                "images": images,
                "subscribe": [{"kind": subscribe, "interval_ms": interval_ms, "coordinates": coordinate}]
                if subscribe
                else [],
                "reconnect": reconnect,
            }
        )
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise CommandError(said, ExitCode.USAGE) from None


class Listener:
    """Connects, and keeps a `StreamTable` of what comes. Use as a context; all calls are thread-safe.

    Parameters
    ----------
    config : SourceConfig
    wanted : Filter
    save : Path or None
        File that gets the bytes of the messages that are looked at, one after another.
    clock : Clock or None
    """

    def __init__(
        self, config: SourceConfig, wanted: Filter | None = None, save: Path | None = None, clock: Clock | None = None
    ) -> None:
        self.config = config
        self.clock: Clock = SystemClock() if clock is None else clock
        self.source = IgtlSource(config, self.clock)
        self.since_ns = self.clock.now_ns()
        self.saved = 0
        #: Set once the connection has ended for good (``reconnect = false``), or the file cannot be written.
        self.over = threading.Event()
        self.problem = ""
        self._wanted = Filter() if wanted is None else wanted
        self._save = save
        self._table = StreamTable(config)
        self._ended = False
        self._lock = threading.Lock()
        self._came = threading.Condition(self._lock)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._file = None if self._save is None else stack.enter_context(self._save.open("wb"))
            self.since_ns = self.clock.now_ns()
            stack.callback(self.source.stop)
            self.source.start(self)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def deliver(self, message: Message, raw: bytes | memoryview | None) -> None:
        """See `nav.runtime.messages.MessageSink`."""
        if raw is not None and not self._wanted.takes(parse_header(raw).type_name, message.device):
            return
        utc_minus_local_ns = self.clock.utc_ns() - self.clock.now_ns()
        with self._lock:
            if self._ended:
                return
            self._table.take(message, raw, utc_minus_local_ns=utc_minus_local_ns)
            if raw is not None and self._file is not None:
                try:
                    self._file.write(raw)
                    self.saved += 1
                except OSError as error:
                    self.problem = f"{self._save}: {error.strerror or error}: nothing more is saved"
                    self._file = None
                    self.over.set()
            self._came.notify_all()
        ended = isinstance(message, LinkMessage) and message.state in (LinkState.CLOSED, LinkState.FAILED)
        if ended and not self.config.reconnect and self.source.connections:
            self.over.set()

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the first connection; False when the time is over."""
        with self._came:
            return self._came.wait_for(lambda: self._table.connections > 0, timeout_s)

    def wait_received(self, timeout_s: float) -> bool:
        """Wait for the first message; False when the time is over."""
        with self._came:
            return self._came.wait_for(lambda: self._table.received > 0, timeout_s)

    def end(self) -> None:
        """Take and save nothing more: what is reported from now on is what the file holds."""
        with self._lock:
            self._ended = True

    def look(self) -> tuple[StreamTable, threading.Lock]:
        """The table, and the lock to hold while it is read."""
        return self._table, self._lock

    def report(self) -> dict[str, Any]:
        """What was seen so far, as JSON (``docs/igtl-json.md``)."""
        statistics = self.source.statistics()
        with self._lock:
            return {
                "address": f"{self.config.host}:{self.config.port}",
                "asked": asked(self.config),
                **self._table.report(
                    self.clock.now_ns(),
                    since_ns=self.since_ns,
                    dropped=statistics.dropped,
                    skipped=statistics.skipped,
                ),
            }


def asked(config: SourceConfig) -> dict[str, Any]:
    """What is said to the server at the beginning of a connection."""
    return {
        "header_version": 2 if config.client_info else config.header_version,
        "client_info": [t.device for t in config.tools] + [i.device for i in config.images],
        "subscribe": [s.model_dump() for s in config.subscribe],
    }


def print_json(document: dict[str, Any], *, one_line: bool = False) -> None:
    """One JSON document on standard output."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=None if one_line else 1)
    print(text, flush=True)
