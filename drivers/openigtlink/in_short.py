"""One line of text for the newest message of a stream. Pure; names no patient."""

from __future__ import annotations

import numpy as np

from drivers.openigtlink.contents import (
    SCALAR_TYPES,
    BindContent,
    CapabilityContent,
    ClientInfoContent,
    ColorTableContent,
    CommandContent,
    CommandReplyContent,
    Content,
    ImageContent,
    ImageMetaContent,
    LabelMetaContent,
    NdarrayContent,
    PointContent,
    PolyDataContent,
    ReplyContent,
    SensorContent,
    StartTrackingContent,
    TrajectoryContent,
    VideoContent,
    VideoMetaContent,
)
from nav.geometry.poses import PoseStatus
from nav.runtime.messages import Message, PoseMessage, StatusMessage, TextMessage, ToolReport, UnusedMessage
from nav.runtime.server_status import STATUS_WORDS

__all__ = ["LONGEST", "in_short"]

#: Longer lines are ended with an ellipsis.
LONGEST = 160
#: Tools, names and numbers listed before "and so on".
LISTED = 4

_FLAGS = {1: "RAS", 2: "LPS"}


def in_short(message: Message, content: Content | None) -> str:
    """What the message holds.

    Parameters
    ----------
    message : Message
        As decoded.
    content : Content or None
        The same message's content; None where the type is not known or the content cannot be read.

    Returns
    -------
    str
        At most `LONGEST` characters without control characters.
    """
    if isinstance(message, UnusedMessage) and message.problem:
        text = f"refused: {message.problem}"
    elif isinstance(message, PoseMessage):
        text = _poses(message.tools)
    elif isinstance(message, StatusMessage):
        text = _status(message)
    elif isinstance(message, TextMessage):
        text = f'"{message.text}"'
    else:
        text = _content(content)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _poses(tools: tuple[ToolReport, ...]) -> str:
    if len(tools) == 1 and tools[0].matrix is not None:
        return _pose(tools[0])
    said = [f"{t.name}: {_pose(t)}" for t in tools[:LISTED]]
    more = len(tools) - LISTED
    return "no tool seen" if not tools else "; ".join(said) + (f"; {more} more" if more > 0 else "")


def _pose(tool: ToolReport) -> str:
    if tool.matrix is None:
        return tool.status.value + (f", {tool.problem}" if tool.problem else "")
    x, y, z = tool.matrix[:3, 3].tolist()
    cosine = (float(np.trace(tool.matrix[:3, :3])) - 1.0) / 2.0
    turn = float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
    status = "" if tool.status is PoseStatus.OK and not tool.status_stated else f", {tool.status.value}"
    return f"{x:.1f} {y:.1f} {z:.1f} mm, turned {turn:.0f}°{status}"


def _status(status: StatusMessage) -> str:
    word = STATUS_WORDS.get(status.code, "unknown code")
    parts = [f"{word} (code {status.code}" + (f", subcode {status.subcode})" if status.subcode else ")")]
    parts += [part for part in (status.error_name.strip(), status.text.strip()) if part]
    return ", ".join(parts)


def _content(content: Content | None) -> str:
    match content:
        case None:
            return ""
        case ImageContent():
            kind = str(np.dtype(SCALAR_TYPES[content.scalar]))
            return ", ".join([_grid(content), kind + _times(content.components), *_place(content)])
        case VideoContent():
            return ", ".join([_grid(content), content.codec, *_place(content)])
        case PointContent(points=points):
            return _named("point", [p.name for p in points])
        case TrajectoryContent(trajectories=lines):
            return _named("trajectory", [line.name for line in lines], "trajectories")
        case PolyDataContent():
            return f"{len(content.points)} points, {len(content.attributes)} attributes"
        case SensorContent(values=values):
            numbers = " ".join(f"{v:.4g}" for v in values[:LISTED].tolist())
            return f"{len(values)} values: {numbers}" + (" …" if len(values) > LISTED else "")
        case NdarrayContent(array=array):
            return f"{'×'.join(map(str, array.shape))} {array.dtype}"
        case ColorTableContent(table=table):
            return f"{len(table)} entries, {table.dtype}"
        case CapabilityContent(types=types):
            return f"{len(types)} types: {', '.join(types)}"
        case ImageMetaContent(images=images):
            return _named("image", [i.device for i in images])
        case LabelMetaContent(labels=labels):
            return _named("label", [label.device for label in labels])
        case VideoMetaContent(videos=videos):
            return _named("video", [v.device for v in videos])
        case BindContent(children=children):
            return _named("child", [f"{c.type_name} {c.name}" for c in children], "children")
        case CommandContent() | CommandReplyContent():
            return f'{content.name} #{content.command_id}: "{content.text}"'
        case StartTrackingContent():
            return f"every {content.interval_ms} ms, coordinates {content.coordinates!r}"
        case ReplyContent(status=status):
            return {0: "done", None: "answered"}.get(status, f"refused ({status})")
        case ClientInfoContent(text=text):
            return text
        case _:
            return ""


def _grid(content: ImageContent | VideoContent) -> str:
    whole = "×".join(map(str, content.size if content.size[2] > 1 else content.size[:2]))
    part = "" if content.part == content.size else f" (part {'×'.join(map(str, content.part))})"
    return whole + part


def _times(components: int) -> str:
    return "" if components == 1 else f" × {components}"


def _place(content: ImageContent | VideoContent) -> list[str]:
    spacing = np.sqrt((content.axes * content.axes).sum(axis=0))
    shown = spacing[: 3 if content.size[2] > 1 else 2]
    x, y, z = content.position.tolist()
    flag = _FLAGS.get(content.coordinate, f"axes flag {content.coordinate}")
    return [f"{'×'.join(f'{s:.3g}' for s in shown)} mm", f"centre {x:.1f} {y:.1f} {z:.1f} {flag}"]


def _named(what: str, names: list[str], several: str = "") -> str:
    count = f"{len(names)} {what if len(names) == 1 else several or what + 's'}"
    listed = ", ".join(name for name in names[:LISTED] if name)
    return count + (f": {listed}" if listed else "") + (" …" if len(names) > LISTED else "")
