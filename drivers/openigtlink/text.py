"""Text on the wire: character sets, fields of fixed size, and text that must go out again byte for byte.

Text is numbered by character set (IANA MIBenum) or stands in a field of fixed size, padded with NUL. Most of it is
plainly a `str`. Where packing that `str` would not give the bytes that were read (junk behind the NUL, bytes that are
no UTF-8, a character set that is not known here), it is a `WireText`, which remembers them.
Source of the numbers: https://www.iana.org/assignments/character-sets.
"""

from __future__ import annotations

import codecs
import functools

from drivers.openigtlink.errors import EncodeError

__all__ = ["ASCII", "UTF8", "WireText", "decode_text", "encode_text", "field_text", "fixed_text"]

#: The two that are in use everywhere.
ASCII, UTF8 = 3, 106

_CODECS: dict[int, str] = {
    3: "ascii", 4: "iso8859-1", 5: "iso8859-2", 6: "iso8859-3", 7: "iso8859-4", 8: "iso8859-5", 9: "iso8859-6",
    10: "iso8859-7", 11: "iso8859-8", 12: "iso8859-9", 13: "iso8859-10", 17: "shift_jis", 18: "euc_jp", 38: "euc_kr",
    39: "iso2022_jp", 106: "utf-8", 109: "iso8859-13", 110: "iso8859-14", 111: "iso8859-15", 112: "iso8859-16",
    113: "gbk", 114: "gb18030", 1013: "utf-16-be", 1014: "utf-16-le", 1018: "utf-32-be", 1019: "utf-32-le",
    2025: "gb2312", 2026: "big5", 2084: "koi8-r", 2088: "koi8-u", 2250: "cp1250", 2251: "cp1251", 2252: "cp1252",
    2253: "cp1253", 2254: "cp1254", 2255: "cp1255", 2256: "cp1256", 2257: "cp1257", 2258: "cp1258",
}  # fmt: skip


_UNICODE_OR_ASCII = (ASCII, UTF8)


class WireText(str):
    """Text with the bytes it was read from, where packing the text alone would give others.

    It compares and hashes as the text.

    Attributes
    ----------
    raw : bytes
        The field as it was read.
    """

    __slots__ = ("raw",)
    raw: bytes

    def __new__(cls, text: str, raw: bytes) -> WireText:
        """Text and the whole field it was read from."""
        made = super().__new__(cls, text)
        made.raw = raw
        return made

    def __reduce__(self) -> tuple[type[WireText], tuple[str, bytes]]:
        """Survives pickling and copying with its bytes."""
        return WireText, (str(self), self.raw)


@functools.lru_cache(maxsize=1024)
def field_text(raw: bytes) -> str:
    """Text of a field of fixed size: cut at the first NUL, anything that is not UTF-8 replaced by U+FFFD."""
    head, _, rest = raw.partition(b"\0")
    text = head.decode("utf-8", "replace")
    return text if not rest.strip(b"\0") and text.encode("utf-8") == head else WireText(text, raw)


def fixed_text(text: str, size: int, what: str) -> bytes:
    """The bytes of ``text`` for a field of ``size``, without the padding.

    Raises
    ------
    EncodeError
        When they are more than ``size`` bytes of UTF-8, or hold a NUL.
    """
    if isinstance(text, WireText) and len(text.raw) == size:
        return text.raw
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:
        raise EncodeError(f"{what} {text!r}: holds a lone surrogate, which is no character") from None
    if len(raw) > size or b"\0" in raw:
        raise EncodeError(
            f"{what} {text!r}: {len(raw)} bytes" + (" with a NUL" if b"\0" in raw else "") + f", limit {size} bytes "
            "without NUL; choose a shorter name (nothing is cut silently)"
        )
    return raw


def decode_text(raw: bytes, encoding: int) -> str:
    """Text in the character set ``encoding``; one that is not known, or that does not fit, is read as UTF-8.

    Many senders write UTF-8 under the number of ASCII; bytes that are no character become U+FFFD.
    """
    name = _CODECS.get(encoding, "utf-8")
    try:
        text = raw.decode(name)
        if text.encode(name) == raw and (encoding in _CODECS):
            return text
    except UnicodeError:
        text = raw.decode("utf-8", "replace")
    return WireText(text, raw)


def encode_text(text: str, encoding: int = 0, what: str = "text") -> tuple[int, bytes]:
    """Number of the character set and bytes of ``text``.

    Parameters
    ----------
    encoding : int
        IANA MIBenum; 0 takes ASCII (3) where it suffices, else UTF-8 (106).

    Raises
    ------
    EncodeError
        When the character set is not known here, or has no such character.
    """
    if isinstance(text, WireText):
        return encoding, text.raw
    if encoding == 0:
        encoding = ASCII if text.isascii() else UTF8
    if encoding in _UNICODE_OR_ASCII and text.isascii():
        return encoding, text.encode()
    name = _CODECS.get(encoding)
    if name is None:
        raise EncodeError(f"{what}: character set {encoding} (IANA MIBenum) is not known; use 106 (UTF-8)")
    try:
        return encoding, codecs.encode(text, name)
    except UnicodeError as error:
        raise EncodeError(f"{what} {text[:40]!r}: {error}; use 106 (UTF-8)") from None
