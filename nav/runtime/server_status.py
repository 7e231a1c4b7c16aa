"""What a STATUS message of a server means for its streams. Codes: OpenIGTLink, ``Documents/Protocol/status.md``."""

from __future__ import annotations

from dataclasses import dataclass

from nav.guidance.health import StreamFinding

__all__ = ["STATUS_WORDS", "ServerStatus"]

STATUS_WORDS = {
    0: "invalid status",
    1: "OK",
    2: "unknown error",
    3: "panic mode (emergency)",
    4: "not found",
    5: "access denied",
    6: "busy",
    7: "timed out or connection lost",
    8: "overflow",
    9: "checksum error",
    10: "configuration error",
    11: "not enough resources",
    12: "illegal or unknown instruction",
    13: "device not ready",
    14: "manual mode",
    15: "device disabled",
    16: "device not present",
    17: "device version unknown",
    18: "hardware failure",
    19: "shutting down",
}
_OK = 1
#: A complaint that nothing follows is told for so long (most servers never say OK again).
NOTICE_NS = 10_000_000_000
#: The device itself is in doubt: nothing it sends is used until it says OK or the connection is new.
_FAILED = frozenset({3, 18})
#: There is no data to be had: what is there is taken away at once; data that comes afterwards counts again.
_NO_DATA = frozenset({7, 13, 15, 16, 19})


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The newest STATUS that concerns a stream, local arrival in ns."""

    code: int
    subcode: int
    error_name: str
    text: str
    arrival_ns: int

    @property
    def is_ok(self) -> bool:
        """Nothing wrong."""
        return self.code == _OK

    @property
    def failed(self) -> bool:
        """Blanks until OK or a new connection."""
        return self.code in _FAILED

    @property
    def without_data(self) -> bool:
        """Blanks until newer data comes."""
        return self.code in _NO_DATA

    def stands(self, now_ns: int) -> bool:
        """Is it still to be told? A failure until OK or a new connection, anything else for `NOTICE_NS`."""
        return self.failed or now_ns - self.arrival_ns <= NOTICE_NS

    def describe(self) -> str:
        """``server says "device not ready" (code 13, error name, text)``."""
        word = STATUS_WORDS.get(self.code, "unknown code")
        more = [f"code {self.code}" + (f", subcode {self.subcode}" if self.subcode else "")]
        more += [part for part in (self.error_name.strip(), self.text.strip()) if part]
        return f'server says "{word}" ({", ".join(more)})'

    def finding(self) -> StreamFinding:
        """``server_status``."""
        return StreamFinding("server_status", self.describe(), f"code {self.code}", "1 (OK)", "Check the server")
