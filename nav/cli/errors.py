"""Exit codes, and how an error becomes one: a plain message for the person, a number for the script."""

from __future__ import annotations

import errno
import socket
import sys
from enum import IntEnum

__all__ = ["CommandError", "ExitCode", "exit_code_of", "message_of"]


class ExitCode(IntEnum):
    """What the process ends with; documented in ``docs/commands.md``."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIGURATION = 3
    INPUT = 4
    CONNECTION = 5
    ENVIRONMENT = 6
    INTERNAL = 70
    INTERRUPTED = 130


class CommandError(Exception):
    """An error that a command reports to the person: what, which value, what to do; and the exit code."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


#: Error types of the layers below by module. A module that was never imported cannot have raised, so nothing is
#: imported to find out.
_KNOWN: tuple[tuple[str, str, ExitCode], ...] = (
    ("nav.config.load", "ConfigError", ExitCode.CONFIGURATION),
    ("nav.runtime.plugins", "DriverNotFoundError", ExitCode.CONFIGURATION),
    ("nav.ablation.applicators", "ChartRangeError", ExitCode.CONFIGURATION),
    ("nav.ablation.prediction", "NoHeatModelError", ExitCode.CONFIGURATION),
    ("nav.io.errors", "InputFileError", ExitCode.INPUT),
    ("nav.geometry.frames", "FrameNameError", ExitCode.INPUT),
    ("nav.geometry.rigid", "NotRigidError", ExitCode.INPUT),
    ("nav.geometry.volume", "VolumeError", ExitCode.INPUT),
    ("nav.registration.landmarks", "RegistrationError", ExitCode.INPUT),
    ("nav.registration.verdict", "ImageRegistrationError", ExitCode.INPUT),
    ("nav.registration.deformable_device", "DeviceError", ExitCode.ENVIRONMENT),
    ("nav.ablation.tumour", "TumourError", ExitCode.INPUT),
    ("nav.ablation.mask_surface", "MaskSurfaceError", ExitCode.INPUT),
    ("nav.guidance.compute", "PlanError", ExitCode.INPUT),
    ("nav.planning.grid", "PlanningError", ExitCode.INPUT),
    ("nav.runtime.recording", "RecordingError", ExitCode.INPUT),
    ("nav.runtime.recorder", "RecorderError", ExitCode.FAILED),
    ("nav.runtime.warmup", "WarmUpError", ExitCode.ENVIRONMENT),
    ("drivers.openigtlink.wire", "WireError", ExitCode.CONNECTION),
    ("drivers.openigtlink.wire", "EncodeError", ExitCode.INPUT),
    ("drivers.openigtlink.forwarding", "RenameError", ExitCode.USAGE),
    ("drivers.openigtlink.listening", "AllowListError", ExitCode.CONFIGURATION),
    ("drivers.room.geometry", "RoomError", ExitCode.INPUT),
)

_CONNECTION_ERRNOS = {
    errno.EADDRINUSE,
    errno.EADDRNOTAVAIL,
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code for an error that reached the command line."""
    if isinstance(error, CommandError):
        return error.code
    for module_name, class_name, code in _KNOWN:
        module = sys.modules.get(module_name)
        if module is not None and isinstance(error, getattr(module, class_name)):
            return code
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)):
        return ExitCode.CONNECTION
    if isinstance(error, OSError):
        return ExitCode.CONNECTION if error.errno in _CONNECTION_ERRNOS else ExitCode.INPUT
    if isinstance(error, ImportError):
        return ExitCode.ENVIRONMENT
    return ExitCode.INTERNAL


def message_of(error: BaseException) -> str:
    """The text for the person, without a traceback."""
    code = exit_code_of(error)
    if isinstance(error, OSError) and type(error).__module__ == "builtins" and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}"
    if code is ExitCode.ENVIRONMENT and isinstance(error, ImportError):
        return f"{error}; run `ablation-nav doctor` to see what is missing"
    if code is ExitCode.INTERNAL:
        return (
            f"internal error, {type(error).__name__}: {error}\n"
            "  This is a fault of the program. Run again with --debug to see where, and report it."
        )
    return str(error) or type(error).__name__
