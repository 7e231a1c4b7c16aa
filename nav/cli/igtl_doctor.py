"""``ablation-nav igtl doctor``: what is wrong with a server, what to do, and its entry for the room's configuration."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from drivers.openigtlink.contents import POSE_TYPES
from drivers.openigtlink.image_checks import Finding
from drivers.openigtlink.inspection import StreamRow, StreamTable
from drivers.openigtlink.room_entry import SourceEntry, source_entry
from nav.cli.doctor import FAIL, OK, WARN, Check, print_check, print_counts, worst
from nav.cli.endpoints import until_interrupted
from nav.cli.errors import CommandError, ExitCode
from nav.cli.igtl_source import Listener, prepare, print_json, source_config
from nav.cli.igtl_view import together, where
from nav.cli.progress import Steps
from nav.config.room import SourceConfig
from nav.geometry.frames import FrameNameError, TransformName
from nav.runtime.messages import LinkState

__all__ = ["examine"]

#: How long a server may take to accept.
_CONNECT_S = 3.0
#: How long one that has sent data may take to notice the end of the last connection, and to send on the next.
_PATIENCE_S = 12.0
_IMAGES = frozenset({"IMAGE", "VIDEO"})
#: Numbers or pictures are wrong with these, whatever else is right.
_SERIOUS = frozenset(
    {"framing", "pose_metres", "pose_invalid", "content_refused", "image_mirrored", "image_spacing", "image_byte_order"}
)
#: What the checks of their own say better.
_SAID_ELSEWHERE = frozenset({"status_missing_v1", "clock_ahead", "clock_behind", "framing", "stamp_missing"})
_NO_STATUS = "(none stated)"
_AGAIN = "as any client, once more"


@dataclass(frozen=True, slots=True)
class _Phase:
    """One connection: what was asked, and what came."""

    name: str
    config: SourceConfig
    table: StreamTable
    findings: tuple[Finding, ...]
    report: dict[str, Any]

    @property
    def rows(self) -> list[StreamRow]:
        return self.table.rows()

    @property
    def data(self) -> list[StreamRow]:
        """Streams of poses and images."""
        return [row for row in self.rows if row.type_name in POSE_TYPES | _IMAGES]

    @property
    def states(self) -> bool:
        """Whether any pose came with a status."""
        return any(set(row.statuses) - {_NO_STATUS} for row in self.rows if row.type_name in POSE_TYPES)


def examine(host: str, port: int, *, name: str, seconds: float, once: bool, ask: Sequence[str], as_json: bool) -> int:
    """Ask a server in every way that it may want to be asked, and say what was found.

    Parameters
    ----------
    name : str
        Of the source in the configuration.
    seconds : float
        To listen in each way.
    once : bool
        Connect once only, in version 1 (for servers that ask a person at every connection).
    ask : sequence of str
        Names to ask a PLUS server for.

    Returns
    -------
    int
        `ExitCode.ENVIRONMENT` when something is seriously wrong, `ExitCode.CONNECTION` when it never connected.
    """
    steps = Steps()
    prepare(steps)
    with until_interrupted() as stop:
        phases = list(_phases(host, port, seconds=seconds, once=once, ask=ask, stop=stop, steps=steps))
    first = phases[0]
    if not first.table.connections:
        last = first.table.last_link
        raise CommandError(
            f"{host}:{port}: never connected ({last[1] if last else 'not tried'}); start the server, or correct host "
            "and port",
            ExitCode.CONNECTION,
        )
    best = _best(phases)
    checks = list(_checks(phases, best))
    entry = source_entry(
        name,
        host,
        port,
        best.rows,
        header_version=best.config.header_version if best.states else 1,
        subscribe=next(iter(best.config.subscribe), None),
    )
    status = worst(checks)
    if as_json:
        print_json(
            {
                "address": f"{host}:{port}",
                "status": status,
                "checks": [asdict(check) for check in checks],
                "source_toml": entry.text,
                "open_questions": list(entry.open_questions),
                "phases": [{"name": phase.name, **phase.report} for phase in phases],
            }
        )
    else:
        _print(checks, entry, best)
    return ExitCode.ENVIRONMENT if status == FAIL else ExitCode.OK


def _print(checks: list[Check], entry: SourceEntry, best: _Phase) -> None:
    for check in checks:
        print_check(check)
    print_counts(checks)
    if not best.data:
        return
    print("\nFor the room's configuration (docs/configuration.md):\n")
    print(entry.text)
    for question in entry.open_questions:
        print(f"To be decided: {question}")


def _phases(
    host: str, port: int, *, seconds: float, once: bool, ask: Sequence[str], stop: threading.Event, steps: Steps
) -> Iterator[_Phase]:
    def listen(name: str, *, patience_s: float = 0.0, **options: Any) -> _Phase:
        with steps.step(f"Listening: {name}"):
            return _listen(name, source_config(host, port, name="doctor", **options), seconds, patience_s, stop)

    plain = listen("as any client, version 1")
    yield plain
    if once or stop.is_set() or not plain.table.connections:
        return
    asked = plain
    for kind in ("tdata", "qtdata"):
        if not any(row.type_name in POSE_TYPES for row in asked.rows) and not stop.is_set():
            asked = listen(f"asked for tracking data (STT_{kind.upper()})", subscribe=kind)
            yield asked
    subscribe = asked.config.subscribe[0].kind if asked.data and asked.config.subscribe else ""
    second = plain
    if not stop.is_set():
        patience_s = _PATIENCE_S if asked.data else 0.0
        second = listen("spoken to in version 2", v2=True, subscribe=subscribe, patience_s=patience_s)
        yield second
        if asked.data and not second.data and not stop.is_set():
            yield listen(_AGAIN, subscribe=subscribe, patience_s=patience_s)
    names = list(ask) or _to_ask(second)
    if names and not stop.is_set():
        yield listen(f"asked for {', '.join(names)} alone (CLIENTINFO)", ask=names)


def _to_ask(second: _Phase) -> list[str]:
    """One of several transforms, when the server answers in version 2: what PLUS would send alone."""
    if not any(2 in row.versions for row in second.data) or len(second.data) < 2:
        return []
    for row in second.data:
        try:
            return [TransformName.parse(row.device).wire] if row.type_name == "TRANSFORM" else []
        except FrameNameError:
            continue
    return []


def _listen(name: str, config: SourceConfig, seconds: float, patience_s: float, stop: threading.Event) -> _Phase:
    with Listener(config) as listener:
        if listener.wait_connected(_CONNECT_S):
            if patience_s:
                listener.wait_received(patience_s)
            stop.wait(seconds)
        statistics = listener.source.statistics()
        report = listener.report()
        table, lock = listener.look()
        with lock:
            findings = table.findings(statistics.dropped, statistics.skipped)
    return _Phase(name, config, table, findings, report)


def _best(phases: Sequence[_Phase]) -> _Phase:
    """The way of asking that gets most: data with status, else data, else anything; the simplest of those."""

    def worth(phase: _Phase) -> tuple[bool, bool, bool]:
        poses = any(row.type_name in POSE_TYPES for row in phase.rows)
        return bool(phase.data), poses, phase.states

    return max((p for p in phases if not p.config.client_info), key=worth)


# ------------------------------------------------------------------------------------------------------------- checks


def _checks(phases: Sequence[_Phase], best: _Phase) -> Iterator[Check]:
    yield from _link(phases)
    if not any(phase.table.received for phase in phases):
        yield Check(
            "data",
            FAIL,
            "it accepts connections and sends nothing, asked or not",
            "start the measurement at the server; check which streams it sends, and whether it serves another client",
        )
        return
    yield from _data(best)
    yield from _version(phases, best)
    yield from _client_info(phases)
    yield from _clock(best)
    yield from _frames(best)
    yield from _findings(phases)


def _link(phases: Sequence[_Phase]) -> Iterator[Check]:
    plain = phases[0].table
    if plain.broken:
        last = next(d for s, d in _ends(phases[0]) if s is LinkState.FAILED)
        yield Check(
            "framing",
            FAIL,
            f"bytes that are no message, {plain.broken} times: {last}",
            "correct the sender: header of 58 bytes, size and CRC of the body (CRC-64, ECMA-182)",
        )
        return
    closed = sum(1 for s, _ in _ends(phases[0]) if s is LinkState.CLOSED)
    if closed:
        yield Check(
            "link",
            WARN,
            f"it closed the connection {closed} times in {phases[0].report['duration_s']:.0f} s",
            "look at the server's log; this program connects again by itself, with a gap in the data each time",
        )
    else:
        said = f"connected; {plain.received} messages, every CRC right" if plain.received else "connected"
        yield Check("link", OK, said)


def _ends(phase: _Phase) -> list[tuple[LinkState, str]]:
    """How connections ended."""
    link = phase.report["link"]
    return [
        (LinkState(after["state"]), after["detail"])
        for before, after in pairwise(link)
        if before["state"] == LinkState.CONNECTED.value
    ]


def _data(best: _Phase) -> Iterator[Check]:
    poses = [row for row in best.rows if row.type_name in POSE_TYPES]
    images = [row for row in best.rows if row.type_name in _IMAGES]
    for name, rows, todo in (
        ("poses", poses, "switch tools on and into view; if it should track, check what the server is set to send"),
        ("images", images, ""),
    ):
        if rows:
            said = ", ".join(f"{_called(row)} {_per_s(row)}" for row in rows[:8])
            yield Check(name, OK, said + (f" and {len(rows) - 8} more" if len(rows) > 8 else ""))
        else:
            yield Check(name, WARN if todo and not images else OK, "none came", todo if not images else "")
    if best.config.subscribe:
        kind = best.config.subscribe[0].kind
        yield Check(
            "subscription",
            WARN,
            f"it sends tracking data only when asked to (STT_{kind.upper()})",
            f'set subscribe = [{{ kind = "{kind}" }}] for this source, as below',
        )


def _called(row: StreamRow) -> str:
    tools = f" ({', '.join(list(row.tools)[:6])})" if row.tools else ""
    return f"{row.type_name} {row.device!r}{tools}"


def _per_s(row: StreamRow) -> str:
    return "once" if row.rate_hz is None else f"{row.rate_hz:.1f}/s"


def _version(phases: Sequence[_Phase], best: _Phase) -> Iterator[Check]:
    second = next((p for p in phases if p.config.header_version == 2 and not p.config.client_info), None)
    plain = phases[0]
    if second is None:
        return
    poses = any(row.type_name in POSE_TYPES for row in best.rows)
    again = next((p for p in phases if p.name == _AGAIN), None)
    if again is not None and not again.data:
        yield Check(
            "reconnect",
            FAIL,
            f"it does not serve a second connection within {_PATIENCE_S:.0f} s after the first has ended",
            "let the server accept again as soon as a client has gone: after any fault this program connects anew",
        )
    elif best.data and not second.data:
        ends = [detail for _, detail in _ends(second)]
        yield Check(
            "version",
            WARN,
            f"spoken to in version 2, nothing came within {_PATIENCE_S:.0f} s; in version 1 it did"
            + (f" ({ends[0]})" if ends else ""),
            "leave header_version at 1 (the 1.x C++ library loses its framing over version 2)",
        )
    elif second.states and not plain.states:
        yield Check(
            "version",
            WARN,
            "the status of tools comes only after version 2 was spoken",
            "set header_version = 2 for this source, as below",
        )
    elif poses and not second.states:
        yield Check(
            "status",
            WARN,
            "no status of tools, in version 2 neither: a lost tool is told by silence or identity only",
            "check with a hidden tool that its poses stop; let the sender state TransformStatus in version 2",
        )
    elif poses:
        yield Check("status", OK, "the status of tools is stated")


def _client_info(phases: Sequence[_Phase]) -> Iterator[Check]:
    phase = next((p for p in phases if p.config.client_info), None)
    if phase is None:
        return
    wanted = {t.device for t in phase.config.tools} | {i.device for i in phase.config.images}
    came = {row.device for row in phase.data}
    if wanted <= came and came <= wanted:
        yield Check("client_info", OK, f"it sends what CLIENTINFO asks for: {', '.join(sorted(wanted))}")
    elif missing := sorted(wanted - came):
        yield Check(
            "client_info",
            WARN,
            f"asked for with CLIENTINFO, did not come: {', '.join(missing)}",
            "check the names; only PLUS servers know CLIENTINFO",
        )
    else:
        yield Check("client_info", OK, "it takes no notice of CLIENTINFO, and sends what it is set to send")


def _clock(best: _Phase) -> Iterator[Check]:
    data = best.data
    stamped = [row for row in data if row.stamped]
    if not data:
        return
    if not stamped:
        yield Check(
            "clock",
            WARN,
            "it stamps nothing: when the data was acquired is known by its arrival only",
            'set stamps = "arrival" for this source, as below; better, let the sender stamp',
        )
        return
    offset_ms = best.table.clock_offset_ms(stamped[0].device)
    jitter_ms = max(best.table.jitter_ms(row.device) or 0.0 for row in stamped)
    what = f"its clock is {offset_ms:+.1f} ms from this one's, delays vary by {jitter_ms:.1f} ms (95 %)"
    if set(stamped) != set(data):
        names = ", ".join(row.device for row in data if not row.stamped)
        yield Check("clock", WARN, f"{what}; without stamps: {names}", "let the sender stamp everything it measures")
    elif offset_ms is not None and not -2000.0 <= offset_ms <= 50.0:
        yield Check(
            "clock", WARN, what, "synchronise both clocks (NTP); guidance takes the constant part out by itself"
        )
    else:
        yield Check("clock", OK, what)


def _frames(best: _Phase) -> Iterator[Check]:
    frames = best.table.frames
    groups, unnamed = frames.groups(), frames.without_frames()
    said = " | ".join(", ".join(group) for group in groups)
    if groups:
        missing = frames.missing()
        yield Check(
            "frames",
            WARN if missing else OK,
            said + "".join(f"; {text}" for text in missing),
            "add what is missing as a stream or as a calibration in the room" if missing else "",
        )
    if unnamed:
        yield Check(
            "names",
            WARN,
            f"names that say no frames: {', '.join(unnamed[:8])}",
            "say in the room which transform each carries, as below; or name them <From>To<To>",
        )


def _findings(phases: Sequence[_Phase]) -> Iterator[Check]:
    found: dict[tuple[str, str, str], Finding] = {}
    for phase in phases:
        for finding in phase.findings:
            found.setdefault((finding.code, finding.device, finding.text), finding)
    for finding, devices in together(list(found.values())):
        if finding.code in _SAID_ELSEWHERE:
            continue
        yield Check(
            finding.code,
            FAIL if finding.code in _SERIOUS else WARN,
            f"{where(devices)}{finding.text} ({finding.value}; usual: {finding.limit})",
            finding.what_to_do[:1].lower() + finding.what_to_do[1:],
        )
