"""pyigtl beside it: programs that use pyigtl exchange every OpenIGTLink message, with the contents of this package.

``pip install pyigtl`` gives TRANSFORM, IMAGE, STRING and POINT; its POSITION has another layout than the protocol, and
everything else is skipped without a word. After `register`, all other types arrive as `ContentMessage` and can be sent
as such; pyigtl's own four classes stay (see ``replace``). Its transport is pyigtl's: no CRC is checked on receipt, and
only the newest message of a device is kept. `drivers.openigtlink.source` and `sink` have neither limit.

    from drivers.openigtlink import pyigtl_messages
    from drivers.openigtlink.contents import StatusContent

    pyigtl_messages.register()
    client.send_message(pyigtl_messages.ContentMessage(StatusContent(13), device_name="Scanner"))
    message = client.wait_for_message("Tracker")     # message.content is a TrackingContent
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyigtl import messages

from drivers.openigtlink.codec import encode_content
from drivers.openigtlink.contents import DATA_TYPES, Content, content_class, query_type, unpack_content

__all__ = ["ContentMessage", "message_types", "register"]

#: What pyigtl reads and packs as the protocol has it.
PYIGTL_OWN = ("TRANSFORM", "IMAGE", "STRING", "POINT")
_OTHERS = ("CLIENTINFO", "RTS_COMMAND")
_PREFIXES = ("GET", "STT", "STP", "RTS")


class ContentMessage(messages.MessageBase):  # type: ignore[misc]
    """A pyigtl message around a content of `drivers.openigtlink.contents`.

    Parameters
    ----------
    content : Content or None
        None only for pyigtl, which fills it when it receives.
    device_name : str
        At most 20 bytes of UTF-8.
    timestamp : float or None
        Seconds UTC since 1970, as everywhere in pyigtl; None: now.
    message_type : str
        Where the content has more than one: queries and their answers, QTRANS, COLORTABLE, STT_QTDATA.
    header_version, metadata, message_id
        Metadata needs version 2.

    Raises
    ------
    EncodeError
        When it cannot be sent as it is: at once, not later in pyigtl's thread.
    """

    def __init__(
        self,
        content: Content | None = None,
        device_name: str = "",
        timestamp: float | None = None,
        message_type: str = "",
        *,
        header_version: int = 1,
        metadata: dict[str, str] | None = None,
        message_id: int = 0,
    ) -> None:
        super().__init__(timestamp=timestamp, device_name=device_name)
        self.content = content
        self.header_version = header_version
        self.metadata = dict(metadata or {})
        self.message_id = message_id
        self._message_type = message_type or (content.type_name if content is not None else "")
        if content is not None:
            self.pack()
            self._valid_message = True

    def pack(self) -> bytes:
        """The whole message as the protocol has it: names that are never cut, UTF-8 where needed."""
        if self.content is None:
            raise ValueError(f"{self._message_type or 'message'} {self.device_name!r}: there is no content to pack")
        return encode_content(
            self.device_name,
            self.content,
            type_name=self._message_type,
            sender_ns=round(self.timestamp * 1e9) or None,
            version=self.header_version,
            metadata=self.metadata if self.header_version == 2 else None,
            message_id=self.message_id if self.header_version == 2 else 0,
        )

    def _unpack_content(self, content: bytes) -> None:
        """Called by pyigtl with the bytes behind the extended header; a `ContentError` ends its connection."""
        self.content = unpack_content(self._message_type, content)
        self._valid_message = True

    def content_asstring(self) -> str:
        """For ``print``."""
        return repr(self.content)


def message_types() -> tuple[str, ...]:
    """Every message type that is covered, queries and answers included."""
    queries = (query_type(prefix, name) for prefix in _PREFIXES for name in DATA_TYPES)
    full = (f"{prefix}_{name}"[:12] for prefix in _PREFIXES for name in DATA_TYPES)  # GET_TRANSFOR beside GET_TRANS
    every = dict.fromkeys((*DATA_TYPES, *_OTHERS, *queries, *full))
    return tuple(name for name in every if content_class(name) is not None)


def register(replace: Iterable[str] = ()) -> None:
    """Let pyigtl read every message type. May be called again.

    Parameters
    ----------
    replace : iterable of str
        Of TRANSFORM, IMAGE, STRING and POINT, those that shall arrive as `ContentMessage` too: an IMAGE that is a part
        of a larger one, or text beyond ASCII, ends the connection in pyigtl's own classes.
    """
    constructors: dict[str, Any] = messages.message_type_to_class_constructor
    kept = set(PYIGTL_OWN) - set(replace)
    for name in message_types():
        if name not in kept:
            constructors[name] = ContentMessage
