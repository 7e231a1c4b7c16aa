"""The bodies: one frozen type per message kind, each the exact content of its bytes (no interpretation, nothing lost).

`codec` gives them their meaning for the program (RAS, tool names, statuses).
"""

from __future__ import annotations

from drivers.openigtlink.contents.arrays import ColorTableContent, NdarrayContent, SensorContent
from drivers.openigtlink.contents.base import SCALAR_TYPES, Content, bad, scalar_number
from drivers.openigtlink.contents.bind import BindChild, BindContent, GetBindContent, StartBindContent
from drivers.openigtlink.contents.images import (
    IMAGE_HEADER_SIZE,
    ImageContent,
    ImageMeta,
    ImageMetaContent,
    LabelMeta,
    LabelMetaContent,
)
from drivers.openigtlink.contents.polydata import (
    CELL_KINDS,
    PolyAttribute,
    PolyDataContent,
    cell_array,
    split_cells,
)
from drivers.openigtlink.contents.poses import (
    POSE_TYPES,
    TRACKING_TYPES,
    PositionContent,
    QuaternionTool,
    QuaternionTrackingContent,
    TrackedTool,
    TrackingContent,
    TransformContent,
)
from drivers.openigtlink.contents.queries import (
    DATA_TYPES,
    EmptyContent,
    Query,
    QueryContent,
    ReplyContent,
    StartTrackingContent,
    query_of,
    query_type,
)
from drivers.openigtlink.contents.shapes import Point, PointContent, Trajectory, TrajectoryContent
from drivers.openigtlink.contents.texts import (
    CapabilityContent,
    ClientInfoContent,
    CommandContent,
    CommandReplyContent,
    StatusContent,
    StringContent,
)
from drivers.openigtlink.contents.video import StartVideoContent, VideoContent, VideoMeta, VideoMetaContent
from drivers.openigtlink.errors import ContentError
from drivers.openigtlink.wire import HEADER_SIZE, WireMessage

__all__ = [
    "CELL_KINDS",
    "DATA_TYPES",
    "IMAGE_HEADER_SIZE",
    "POSE_TYPES",
    "SCALAR_TYPES",
    "TRACKING_TYPES",
    "BindChild",
    "BindContent",
    "CapabilityContent",
    "ClientInfoContent",
    "ColorTableContent",
    "CommandContent",
    "CommandReplyContent",
    "Content",
    "EmptyContent",
    "GetBindContent",
    "ImageContent",
    "ImageMeta",
    "ImageMetaContent",
    "LabelMeta",
    "LabelMetaContent",
    "NdarrayContent",
    "Point",
    "PointContent",
    "PolyAttribute",
    "PolyDataContent",
    "PositionContent",
    "QuaternionTool",
    "QuaternionTrackingContent",
    "Query",
    "QueryContent",
    "ReplyContent",
    "SensorContent",
    "StartBindContent",
    "StartTrackingContent",
    "StartVideoContent",
    "StatusContent",
    "StringContent",
    "TrackedTool",
    "TrackingContent",
    "Trajectory",
    "TrajectoryContent",
    "TransformContent",
    "VideoContent",
    "VideoMeta",
    "VideoMetaContent",
    "cell_array",
    "content_class",
    "query_of",
    "query_type",
    "scalar_number",
    "split_cells",
    "unpack_content",
    "unpack_message",
]

#: Types with a content of their own.
_CLASSES: dict[str, type[Content]] = {
    "TRANSFORM": TransformContent,
    "POSITION": PositionContent,
    "QTRANS": PositionContent,
    "TDATA": TrackingContent,
    "QTDATA": QuaternionTrackingContent,
    "IMAGE": ImageContent,
    "IMGMETA": ImageMetaContent,
    "LBMETA": LabelMetaContent,
    "VIDEO": VideoContent,
    "VIDEOMETA": VideoMetaContent,
    "STATUS": StatusContent,
    "STRING": StringContent,
    "POINT": PointContent,
    "TRAJ": TrajectoryContent,
    "SENSOR": SensorContent,
    "NDARRAY": NdarrayContent,
    "COLORT": ColorTableContent,
    "COLORTABLE": ColorTableContent,
    "POLYDATA": PolyDataContent,
    "BIND": BindContent,
    "CAPABILITY": CapabilityContent,
    "COMMAND": CommandContent,
    "CLIENTINFO": ClientInfoContent,
    "RTS_COMMAND": CommandReplyContent,
    "GET_BIND": GetBindContent,
    "STT_BIND": StartBindContent,
    "STT_TDATA": StartTrackingContent,
    "STT_QTDATA": StartTrackingContent,
    "STT_VIDEO": StartVideoContent,
}
_OF_PREFIX: dict[str, type[Content]] = {
    "GET": QueryContent,
    "STP": QueryContent,
    "STT": QueryContent,
    "RTS": ReplyContent,
}
#: Of these, an empty body is an empty list of their own.
_LISTS = frozenset({"TDATA", "QTDATA", "IMGMETA", "LBMETA", "VIDEOMETA", "POINT", "TRAJ", "CAPABILITY"})
_MAY_BE_EMPTY = frozenset(DATA_TYPES) - _LISTS


def content_class(type_name: str) -> type[Content] | None:
    """The type of a message's content; None for a message type that is not covered."""
    found = _CLASSES.get(type_name)
    if found is not None:
        return found
    query = query_of(type_name)
    return None if query is None else _OF_PREFIX[query.prefix]


def unpack_content(type_name: str, raw: bytes | memoryview) -> Content | None:
    """The content of a type that is covered; None for any other type.

    A type that cannot be empty, sent with an empty body, gives `EmptyContent`: what was asked for is not there.

    Raises
    ------
    ContentError
        When the bytes are not what the type's table says. Its offset is that within a version 1 message.
    """
    found = _CLASSES.get(type_name)
    if found is not None:
        return EmptyContent() if len(raw) == 0 and type_name in _MAY_BE_EMPTY else found.unpack(raw)
    query = query_of(type_name)
    if query is None:
        return None
    content = _OF_PREFIX[query.prefix].unpack(raw)
    if len(raw) and query.prefix in ("GET", "STP"):
        raise bad(f"{type_name} content", 0, f"{len(raw)} bytes", "0 bytes")
    return content


def unpack_message(message: WireMessage) -> Content | None:
    """`unpack_content` for a whole message, with the offset of an error within that message.

    Raises
    ------
    ContentError
    """
    try:
        return unpack_content(message.type_name, message.content)
    except ContentError as error:
        raise error.moved(message.content_offset - HEADER_SIZE) from None
