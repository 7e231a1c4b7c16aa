"""What a person sees of a server's streams: a table, the frames, what looks wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from drivers.openigtlink.image_checks import Finding
from drivers.openigtlink.inspection import StreamRow, StreamTable
from nav.runtime.messages import LinkState

__all__ = ["WIDTH", "line", "together", "view", "where"]

#: Columns where the output is no terminal.
WIDTH = 200
#: Findings, streams, and devices of one finding shown at most; the JSON report has all.
FINDINGS, ROWS, NAMES = 12, 40, 6
#: Older than so many periods (and this): the age is marked.
LATE_PERIODS, LATE_MS = 3.0, 250.0
#: Columns that the newest value has at least.
NEWEST = 24

_TITLES = (
    "type", "device", "v", "count", "rate/s", "age ms", "gaps", "longest ms", "data/s", "clock ms", "jitter ms",
)  # fmt: skip


def line(table: StreamTable, now_ns: int, since_ns: int) -> str:
    """One plain line for logs."""
    rows = table.rows()
    said = [f"{(now_ns - since_ns) * 1e-9:7.1f} s", state_of(table), f"{table.received} messages"]
    said += [f"{row.type_name} {row.device} {_number(row.rate_hz, 1)}/s" for row in rows[:8]]
    if len(rows) > 8:
        said.append(f"{len(rows) - 8} more streams")
    return "  ".join(said)


def state_of(table: StreamTable) -> str:
    """The state of the link in a word or sentence."""
    last = table.last_link
    if last is None:
        return "connecting"
    state, detail = last
    return state.value if state is LinkState.CONNECTED else detail


def view(
    table: StreamTable,
    now_ns: int,
    since_ns: int,
    address: str,
    *,
    dropped: Mapping[tuple[str, str], int] | None = None,
    skipped: Mapping[str, int] | None = None,
    width: int = WIDTH,
) -> RenderableType:
    """Everything at a glance, in lines of ``width`` columns."""
    parts: list[RenderableType] = [_head(table, now_ns, since_ns, address), _streams(table, now_ns, width)]
    parts += [Text(text, style="dim") for text in _frames(table)]
    findings = together(table.findings(dropped, skipped))
    parts += [finding_text(finding, devices) for finding, devices in findings[:FINDINGS]]
    if len(findings) > FINDINGS:
        parts.append(Text(f"{len(findings) - FINDINGS} more findings: --json shows all", style="dim"))
    return Group(*parts)


def _head(table: StreamTable, now_ns: int, since_ns: int, address: str) -> Text:
    text = Text()
    text.append(f"{address}  ", style="bold")
    text.append(state_of(table), style="green" if table.connected else "bold red")
    times = "" if table.connections == 1 else f", {table.connections} connections"
    text.append(f"  {(now_ns - since_ns) * 1e-9:.0f} s{times}, {table.received} messages, {_bytes(table.size)}")
    return text


def _streams(table: StreamTable, now_ns: int, width: int) -> RenderableType:
    rows = table.rows()
    if not rows:
        return Text("nothing received yet" if table.connected else "")
    cells = [_cells(table, row, now_ns) for row in rows[:ROWS]]
    widths = [max(len(title), *(cell_len(cell[n].plain) for cell in cells)) for n, title in enumerate(_TITLES)]
    grid = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for n, title in enumerate(_TITLES):
        grid.add_column(title, justify="left" if n < 2 else "right", no_wrap=True, min_width=widths[n])
    # What is left of the line is for the newest value: it gives way, not the numbers.
    room = max(width - sum(widths) - 2 * len(widths) - 1, NEWEST)
    grid.add_column("newest", no_wrap=True)
    for row, cell in zip(rows, cells, strict=False):
        value = Text(row.value)
        value.truncate(room, overflow="ellipsis")
        grid.add_row(*cell, value)
    if len(rows) > ROWS:
        grid.add_row("", Text(f"{len(rows) - ROWS} more streams"))
    return grid


def _cells(table: StreamTable, row: StreamRow, now_ns: int) -> list[Text]:
    age_ms = row.age_ms(now_ns)
    late = row.rate_hz is not None and age_ms > max(LATE_MS, LATE_PERIODS * 1000.0 / row.rate_hz)
    return [
        Text(row.type_name),
        Text(row.device),
        Text("/".join(map(str, sorted(row.versions)))),
        Text(str(row.count)),
        Text(_number(row.rate_hz, 1)),
        Text(f"{age_ms:.0f}", style="bold red" if late else ""),
        Text(str(row.gaps), style="yellow" if row.gaps else ""),
        Text(f"{row.longest_ns * 1e-6:.0f}" if row.intervals else ""),
        Text("" if row.bytes_per_s is None else _bytes(row.bytes_per_s)),
        Text(_number(table.clock_offset_ms(row.device), 1, sign=True) if row.stamped else "no stamp"),
        Text(_number(table.jitter_ms(row.device), 1) if row.stamped else ""),
    ]


def _frames(table: StreamTable) -> list[str]:
    frames = table.frames
    groups = frames.groups()
    if not groups and not frames.without_frames():
        return []
    lines = [f"frames: {' | '.join(', '.join(group) for group in groups) or 'none'}"]
    if names := frames.without_frames():
        lines.append(f"  names without frames, to be given a transform in the room: {', '.join(names[:8])}")
    lines += [f"  {text}" for text in frames.missing()]
    return lines


def together(findings: Sequence[Finding]) -> list[tuple[Finding, list[str]]]:
    """Findings that say the same of several devices as one (with the value of the first), and those devices."""
    out: dict[tuple[str, str, str], tuple[Finding, list[str]]] = {}
    for finding in findings:
        out.setdefault((finding.code, finding.text, finding.limit), (finding, []))[1].append(finding.device)
    return list(out.values())


def finding_text(finding: Finding, devices: Sequence[str]) -> Text:
    """A finding in two lines: what was seen, and what to do."""
    warning = finding.severity == "warning"
    text = Text("looks wrong  " if warning else "note         ", style="bold red" if warning else "yellow")
    text.append(f"{where(devices)}{finding.text} ({finding.value}; usual: {finding.limit})", style="not bold default")
    text.append(f"\n             -> {finding.what_to_do}", style="not bold default")
    return text


def where(devices: Sequence[str]) -> str:
    """``Needle, Probe: `` before a finding; empty for one of the whole sender."""
    names = [device for device in devices if device]
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return f"{', '.join(names[:NAMES])}{more}: " if names else ""


def _number(value: float | None, digits: int, *, sign: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
