"""Text: STATUS, STRING, CAPABILITY, COMMAND and its answer, and CLIENTINFO of PLUS."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from drivers.openigtlink.contents.base import Content, bad, need_multiple, need_size, pack_numbers
from drivers.openigtlink.errors import EncodeError
from drivers.openigtlink.text import WireText, decode_text, encode_text, field_text, fixed_text
from drivers.openigtlink.wire import TYPE_NAME_BYTES

__all__ = [
    "CapabilityContent",
    "ClientInfoContent",
    "CommandContent",
    "CommandReplyContent",
    "StatusContent",
    "StringContent",
]

COMMAND_NAME_BYTES = 128
_STATUS = struct.Struct(">Hq20s")
_STRING = struct.Struct(">HH")
_COMMAND = struct.Struct(">I128sHI")


@dataclass(frozen=True, slots=True)
class StatusContent(Content):
    """STATUS: code (1 is OK), subcode, short error name, text."""

    type_name: ClassVar[str] = "STATUS"
    code: int = 1
    subcode: int = 0
    error_name: str = ""
    text: str = ""

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 30 bytes and the text up to the first NUL; `ContentError` when shorter."""
        need_size("STATUS", raw, _STATUS.size, exactly=False)
        code, subcode, name = _STATUS.unpack_from(raw)
        tail = bytes(raw[_STATUS.size :])
        text = decode_text(tail.split(b"\0", 1)[0], 106)
        if text.encode("utf-8") + b"\0" != tail:
            text = WireText(text, tail)
        return cls(code, subcode, field_text(name), text)

    def pack(self) -> bytes:
        """30 bytes and the NUL-terminated text."""
        if isinstance(self.text, WireText):
            tail = self.text.raw
        else:
            tail = encode_text(self.text, 106, "STATUS text")[1]
            if b"\0" in tail or len(tail) > 0xFFFF:
                raise EncodeError(f"STATUS text: {len(tail)} bytes; allowed: 65535 bytes without NUL")
            tail += b"\0"
        name = fixed_text(self.error_name, 20, "STATUS error name")
        what = f"STATUS code {self.code}, subcode {self.subcode}: must fit u16 and i64"
        return pack_numbers(_STATUS, what, self.code, self.subcode, name) + tail


@dataclass(frozen=True, slots=True)
class _EncodedText(Content):
    """Character set, length, text. ``encoding``: IANA MIBenum; 3 ASCII, 106 UTF-8; 0 lets `pack` choose."""

    text: str
    encoding: int = 0

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read character set, length and text; `ContentError` when the length is not that of the bytes.

        Bytes that are no character of the character set are replaced by U+FFFD.
        """
        need_size(cls.type_name, raw, _STRING.size, exactly=False)
        encoding, length = _STRING.unpack_from(raw)
        if length != len(raw) - _STRING.size:
            raise bad(f"{cls.type_name} length", 2, length, f"{len(raw) - _STRING.size}, the bytes that follow")
        return cls(decode_text(bytes(raw[_STRING.size :]), encoding), encoding)

    def pack(self) -> bytes:
        """Character set, length, text."""
        what = self.type_name
        encoding, text = encode_text(self.text, self.encoding, what)
        if len(text) > 0xFFFF:
            raise EncodeError(f"{what}: {len(text)} bytes, limit 65535")
        return pack_numbers(_STRING, f"{what} character set", encoding, len(text)) + text


@dataclass(frozen=True, slots=True)
class StringContent(_EncodedText):
    """STRING."""

    type_name: ClassVar[str] = "STRING"


@dataclass(frozen=True, slots=True)
class ClientInfoContent(_EncodedText):
    """CLIENTINFO of PLUS: XML that says what a client wants to be sent, packed as STRING is."""

    type_name: ClassVar[str] = "CLIENTINFO"


@dataclass(frozen=True, slots=True)
class CapabilityContent(Content):
    """CAPABILITY: names of the message types that the sender understands."""

    type_name: ClassVar[str] = "CAPABILITY"
    types: tuple[str, ...]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read n x 12 bytes; `ContentError` for any other size."""
        need_multiple("CAPABILITY", raw, TYPE_NAME_BYTES)
        names = bytes(raw)
        return cls(tuple(field_text(names[at : at + TYPE_NAME_BYTES]) for at in range(0, len(names), TYPE_NAME_BYTES)))

    def pack(self) -> bytes:
        """n x 12 bytes."""
        return b"".join(
            fixed_text(name, TYPE_NAME_BYTES, "CAPABILITY type").ljust(TYPE_NAME_BYTES, b"\0") for name in self.types
        )


@dataclass(frozen=True, slots=True)
class _Command(Content):
    """Number, name, character set (as in STRING), text."""

    command_id: int
    name: str
    text: str = ""
    encoding: int = 0

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 138 bytes and the text; `ContentError` when its length is not that of the bytes."""
        need_size(cls.type_name, raw, _COMMAND.size, exactly=False)
        number, name, encoding, length = _COMMAND.unpack_from(raw)
        if length != len(raw) - _COMMAND.size:
            raise bad(f"{cls.type_name} length", 134, length, f"{len(raw) - _COMMAND.size}, the bytes that follow")
        return cls(number, field_text(name), decode_text(bytes(raw[_COMMAND.size :]), encoding), encoding)

    def pack(self) -> bytes:
        """138 bytes and the text."""
        what = self.type_name
        name = fixed_text(self.name, COMMAND_NAME_BYTES, f"{what} name")
        encoding, text = encode_text(self.text, self.encoding, f"{what} text")
        return pack_numbers(_COMMAND, what, self.command_id, name, encoding, len(text)) + text


@dataclass(frozen=True, slots=True)
class CommandContent(_Command):
    """COMMAND: its number comes back in the answer; the text is XML by custom."""

    type_name: ClassVar[str] = "COMMAND"


@dataclass(frozen=True, slots=True)
class CommandReplyContent(_Command):
    """RTS_COMMAND: number of the command answered; ``name`` is the command's name or, by some, the error."""

    type_name: ClassVar[str] = "RTS_COMMAND"
