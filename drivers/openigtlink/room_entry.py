"""A ``[[sources]]`` entry for the room's configuration, made of what a server was seen to send. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from drivers.openigtlink.contents import POSE_TYPES, TRACKING_TYPES
from drivers.openigtlink.inspection import StreamRow
from nav.config.room import TOOL_LOST_MS, TOOL_PERIODS, SubscriptionConfig
from nav.geometry.frames import FrameNameError, TransformName, check_frame_name

__all__ = ["SourceEntry", "source_entry"]

#: Where nothing is known of a rate.
_TOOL_HZ, _IMAGE_HZ = 60.0, 30.0
#: A tool slower than the default limit allows is given so many periods.
_PERIODS = 3.0
#: Rates that trackers and cameras have; a measured one within this share of one of them is taken for it.
_USUAL_HZ = (
    1.0,
    2.0,
    5.0,
    6.0,
    10.0,
    15.0,
    20.0,
    25.0,
    30.0,
    40.0,
    50.0,
    60.0,
    80.0,
    100.0,
    120.0,
    200.0,
    250.0,
    500.0,
    1000.0,
)
NEAR = 0.05


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """What goes into the room, and what a person still has to decide.

    Attributes
    ----------
    text : str
        TOML, valid as it stands.
    open_questions : tuple of str
        Values that were guessed and are marked in the text.
    """

    text: str
    open_questions: tuple[str, ...]


def source_entry(
    name: str,
    host: str,
    port: int,
    rows: list[StreamRow],
    *,
    header_version: int = 1,
    subscribe: SubscriptionConfig | None = None,
) -> SourceEntry:
    """The entry.

    Parameters
    ----------
    name : str
        Of the source.
    rows : list of StreamRow
        What came.
    header_version : 1 or 2
        What has to be spoken.
    subscribe : SubscriptionConfig or None
        What had to be asked for.
    """
    asks: list[str] = []
    lines = ["[[sources]]", f"name = {_quoted(name)}", f"host = {_quoted(host)}", f"port = {port}"]
    if header_version == 2:
        lines.append("header_version = 2              # the status of tools comes in version 2 only")
    if subscribe is not None:
        lines.append(
            f"subscribe = [{{ kind = {_quoted(subscribe.kind)}, interval_ms = {subscribe.interval_ms} }}]"
            "  # it sends tracking data only when asked to"
        )
    data = [row for row in rows if row.type_name in (POSE_TYPES | {"IMAGE", "VIDEO"})]
    if data and not any(row.stamped for row in data):
        lines.append('stamps = "arrival"              # it stamps nothing')
    tools = _tools(rows, asks)
    if tools:
        lines += ["tools = [", *tools, "]"]
    images = _images(rows, asks)
    if images:
        lines += ["images = [", *images, "]"]
    return SourceEntry("\n".join(lines) + "\n", tuple(asks))


def _tools(rows: list[StreamRow], asks: list[str]) -> list[str]:
    found: dict[str, StreamRow] = {}
    for row in rows:
        if row.type_name in TRACKING_TYPES:
            for tool in row.tools:
                found.setdefault(tool, row)
        elif row.type_name in POSE_TYPES:
            found.setdefault(row.device, row)
    lines: list[str] = []
    taken: set[str] = set()
    for device, row in found.items():
        if not device:
            continue
        transform, remark = _transform_of(device, taken)
        taken.add(transform)
        if remark:
            asks.append(f"which transform {device!r} carries (guessed: {transform})")
        hz = _nominal(row, _TOOL_HZ)
        limit = ""
        if TOOL_PERIODS * 1000.0 / hz > TOOL_LOST_MS:
            limit = f", lost_ms = {_PERIODS * 1000.0 / hz:.0f}"
            asks.append(f"whether {device!r}, {hz:g} times a second, is fast enough (lost_ms)")
        lines.append(
            f"  {{ device = {_quoted(device)}, transform = {_quoted(transform)}, nominal_hz = {hz}{limit} }},{remark}"
        )
    return lines


def _transform_of(device: str, taken: set[str]) -> tuple[str, str]:
    try:
        name = TransformName.parse(device).wire
        if name not in taken:
            return name, ""
    except FrameNameError:
        pass
    word = "".join(part[:1].upper() + part[1:] for part in re.findall(r"[A-Za-z0-9]+", device))
    word = re.sub(r"^[^A-Z]+", "", word) or "Tool"
    word = re.sub(r"To(?=[^a-z]|$)", "", word) or "Tool"
    if word == "Tracker":
        word = "Tool"
    try:
        check_frame_name(word)
    except FrameNameError:
        word = "Tool"
    base, n = word, 2
    while f"{word}ToTracker" in taken:
        word, n = f"{base}{n}", n + 1
    return f"{word}ToTracker", "  # what does it map? guessed"


def _images(rows: list[StreamRow], asks: list[str]) -> list[str]:
    lines = []
    for n, row in enumerate(r for r in rows if r.type_name in ("IMAGE", "VIDEO") and r.device):
        name = "ultrasound" if n == 0 else f"ultrasound{n + 1}"
        hz = _nominal(row, _IMAGE_HZ)
        lines.append(
            f"  {{ device = {_quoted(row.device)}, name = {_quoted(name)}, nominal_hz = {hz}, "
            'role = "ultrasound", placed_by = "calibration", frame = "Image" },  # or fluoro, placed by the header'
        )
        asks.append(f"what the image {row.device!r} is, and what places it (guessed: ultrasound, a calibration)")
    return lines


def _nominal(row: StreamRow, default: float) -> float:
    """The rate that the sender probably states: the usual one near the measured one, else whole above 10/s."""
    if row.rate_hz is None or row.rate_hz <= 0.0:
        return default
    hz = row.rate_hz if row.usual_ms is None else 1000.0 / max(row.usual_ms, 0.1)
    if not 0.5 * row.rate_hz <= hz <= 1.5 * row.rate_hz:
        hz = row.rate_hz  # it comes in bursts: the usual interval says nothing
    usual = min(_USUAL_HZ, key=lambda one: abs(one - hz))
    if abs(usual - hz) <= NEAR * usual:
        return usual
    return float(round(hz)) if hz >= 10.0 else max(round(hz, 1), 0.1)


def _quoted(text: str) -> str:
    """A basic TOML string: JSON's escapes are among TOML's, but for DEL, which TOML does not take as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
