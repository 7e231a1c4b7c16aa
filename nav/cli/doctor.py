"""``ablation-nav doctor``: is this computer fit to run the program, and if not, what to do."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from nav.cli import system_libraries
from nav.cli.environment import cache_dir, has_display
from nav.cli.errors import ExitCode

__all__ = ["HELP", "Check", "doctor", "run_checks"]

HELP = """Check this computer and say what is wrong and what to do.

Looks at Python, packages, packages shadowed by others, numba's threads, Qt and GL, the display, the compilation of the
kernels, every configuration file, the ports of the room, and the disk. Changes nothing. Ends with 6 when a check fails.

\b
Examples:
  ablation-nav doctor
  ablation-nav doctor --json
  ablation-nav doctor --room ROOM.toml
"""

OK, WARN, FAIL = "ok", "warn", "fail"

#: Distributions that bring the same files as one of ours, and what is wrong with them.
_CONFLICTS = {
    "opencv-python": "brings Qt plug-ins of its own and overwrites Qt's environment variables",
    "opencv-contrib-python": "brings Qt plug-ins of its own and overwrites Qt's environment variables",
}
#: Why a version is bounded, for the message.
_REASONS = {
    "pyside6-essentials": "PySide6 6.12 loses references to None and aborts Python 3.11 within seconds of painting",
    "opencv-python-headless": "OpenCV 5 has no cv2.calibrateHandEye",
}
_MIN_FREE_GB = 2.0
_QT_TIMEOUT_S = 60.0

#: Runs in a process of its own, because Qt aborts the process when it cannot start.
_QT_PROBE = """
import json, sys
from PySide6 import QtGui
from PySide6 import QtWidgets
import PySide6
app = QtWidgets.QApplication(["doctor"])
screen = app.primaryScreen()
answer = {"version": PySide6.__version__, "platform": app.platformName(), "renderer": ""}
if screen is not None:
    answer["screen"] = [screen.size().width(), screen.size().height(), screen.devicePixelRatio()]
context = QtGui.QOpenGLContext()
if app.platformName() != "offscreen" and context.create():
    surface = QtGui.QOffscreenSurface()
    surface.create()
    if context.makeCurrent(surface):
        answer["renderer"] = str(context.functions().glGetString(0x1F01))
        context.doneCurrent()
print(json.dumps(answer))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes
    ----------
    id : str
        Stable, such as ``packages`` or ``config:rooms/simulated.toml``.
    status : str
        ``ok``, ``warn`` or ``fail``.
    what : str
        What was found, with values.
    todo : str
        What to do; empty when ok.
    """

    id: str
    status: str
    what: str
    todo: str = ""


def check_python() -> Iterator[Check]:
    """Version of the interpreter, and whether it is an environment of its own."""
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield Check("python", FAIL, f"Python {version}", "use Python 3.11, 3.12 or 3.13: make PYTHON=python3.11 setup")
    elif sys.prefix == sys.base_prefix:
        yield Check(
            "python", WARN, f"Python {version} of the system", "give the program its own environment: make setup"
        )
    else:
        yield Check("python", OK, f"Python {version} in {sys.prefix}")


def check_packages() -> Iterator[Check]:
    """Installed versions against the ranges of the project, and distributions that overwrite each other."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    problems: list[str] = []
    for text in metadata.requires("ablation-nav") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing (needs {requirement.specifier})")
            continue
        found[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            reason = _REASONS.get(requirement.name.lower(), "")
            problems.append(
                f"{requirement.name} {version} is outside {requirement.specifier}" + (f": {reason}" if reason else "")
            )
    if problems:
        yield Check("packages", FAIL, "; ".join(problems), "install the pinned versions again: make setup")
    else:
        yield Check("packages", OK, f"{len(found)} packages within their ranges")
    yield from _check_pins(Path(__file__).resolve().parents[2] / "requirements.lock")
    for name, reason in _CONFLICTS.items():
        if _installed(name):
            yield Check(
                "packages:conflict",
                FAIL,
                f"{name} is installed: it {reason}",
                f"pip uninstall {name}, then pip install --force-reinstall --no-deps opencv-python-headless",
            )
    cv2 = importlib.util.find_spec("cv2")
    if cv2 is not None and cv2.origin and (Path(cv2.origin).parent / "qt").exists():
        yield Check(
            "packages:cv2-qt",
            FAIL,
            f"{Path(cv2.origin).parent / 'qt'} exists: this OpenCV brings Qt plug-ins",
            "pip uninstall opencv-python opencv-python-headless, then make setup",
        )


def _check_pins(lock: Path) -> Iterator[Check]:
    """In a source checkout: the exact versions that the tests ran with."""
    if not lock.is_file():
        return
    pins = [
        line.split("==") for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#"
    ]
    others = [
        f"{name} {metadata.version(name)} (pinned {version.strip()})"
        for name, version in pins
        if _installed(name) and metadata.version(name) != version.strip()
    ]
    if others:
        yield Check("packages:pins", WARN, "other versions than tested: " + ", ".join(others), "make setup")
    else:
        yield Check("packages:pins", OK, "all installed versions are the pinned ones")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_shadowed() -> Iterator[Check]:
    """Whether another distribution hides or overwrites one of our packages."""
    from ablation_nav import PACKAGES, find_shadows

    shadows = find_shadows()
    for shadow in shadows:
        yield Check(
            f"shadowed:{shadow.package}",
            FAIL,
            shadow.describe(),
            "give the program an environment of its own: make setup; or uninstall the other distribution",
        )
    if not shadows:
        yield Check("shadowed", OK, f"{', '.join(PACKAGES)} are ours")


def check_system_libraries() -> Iterator[Check]:
    """Shared libraries that wheels need and do not bring."""
    rows = system_libraries.missing(has_display())
    if rows:
        yield Check(
            "libraries",
            FAIL,
            "missing: " + ", ".join(f"{library} ({purpose})" for library, _, purpose in rows),
            system_libraries.install_line([package for _, package, _ in rows]),
        )
    else:
        yield Check("libraries", OK, "all system libraries load")


def check_kernels() -> Iterator[Check]:
    """Threading layer of numba, and how long compiling or loading every kernel takes."""
    from nav.runtime.clock import SystemClock
    from nav.runtime.warmup import WarmUpError, warm_up

    specs = list({id(spec): spec for module in _kernel_modules() for spec in import_module(module).KERNELS}.values())
    try:
        report = warm_up(specs, clock=SystemClock())
    except WarmUpError as error:
        yield Check("kernels", FAIL, str(error), system_libraries.install_line(["libgomp1"]))
        return
    if report.threading_layer:
        yield Check("threads", OK, f"numba threading layer {report.threading_layer}")
    for warning in report.warnings:
        yield Check("threads:setting", WARN, warning, "start the program by its command, and unset NUMBA_ variables")
    total = sum(report.seconds.values())
    slowest = max(report.seconds, key=lambda name: report.seconds[name], default="none")
    yield Check(
        "kernels",
        OK,
        f"{len(specs)} kernels ready in {total:.1f} s ({report.compiled} compiled now, the rest from the cache); "
        f"slowest {slowest} {report.seconds.get(slowest, 0.0):.1f} s",
    )


def _kernel_modules() -> list[str]:
    """Modules of ours that declare ``KERNELS`` of their own, found without importing the others."""
    root = Path(__file__).resolve().parent.parent.parent
    return sorted(
        ".".join(file.relative_to(root).with_suffix("").parts)
        for package in ("nav", "drivers", "calib")
        for file in (root / package).rglob("*.py")
        if "\nKERNELS" in file.read_text(encoding="utf-8") and "hud" not in file.parts
    )


def check_qt() -> Iterator[Check]:
    """Whether Qt starts on this display (or without one), the screen, and who draws OpenGL."""
    environment = dict(os.environ)
    if not has_display():
        environment.setdefault("QT_QPA_PLATFORM", "offscreen")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _QT_PROBE],
            capture_output=True,
            text=True,
            timeout=_QT_TIMEOUT_S,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Check("qt", FAIL, f"Qt did not start within {_QT_TIMEOUT_S:.0f} s", "look at the display server")
        return
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        packages = [package for library, package, _ in _all_libraries() if library in done.stderr]
        window = [package for _, package, _ in system_libraries.missing(window=True)]
        advice = system_libraries.install_line(packages or window) if packages or window else "make setup"
        yield Check("qt", FAIL, f"Qt does not start: {said}", advice)
        return
    answer: dict[str, Any] = json.loads(lines[-1])
    yield Check("qt", OK, f"Qt {answer['version']} starts on platform {answer['platform']}")
    if answer["platform"] == "offscreen":
        yield Check(
            "display",
            WARN,
            "no display: the program runs headless",
            "set DISPLAY, or log in to a desktop, for a window",
        )
    elif "screen" in answer:
        width, height, ratio = answer["screen"]
        large = width * ratio >= 1366 and height * ratio >= 768
        yield Check(
            "display",
            OK if large else WARN,
            f"screen {width}x{height}, scale {ratio:g}",
            "" if large else "use a screen of at least 1366x820 pixels",
        )
    renderer = str(answer["renderer"])
    software = not renderer or any(word in renderer.lower() for word in ("llvmpipe", "softpipe", "swrast"))
    yield Check("gl", OK, f"OpenGL: {renderer or 'none'}" + ("; the software 3-D view is used" if software else ""))


def _all_libraries() -> list[tuple[str, str, str]]:
    return [*system_libraries.ALWAYS, *system_libraries.WINDOW]


def check_drivers() -> Iterator[Check]:
    """Whether the sources that rooms name can be found."""
    from nav.runtime.plugins import source_drivers

    found = source_drivers()
    if "openigtlink" in found:
        yield Check("drivers", OK, f"sources: {', '.join(found)}")
    else:
        yield Check(
            "drivers", FAIL, f"sources found: {', '.join(found) or 'none'}", "install the program again: make setup"
        )


def check_configurations(room: Path | None) -> Iterator[Check]:
    """Every configuration that ships, and the one that was given."""
    from nav.ablation.applicators import Applicator
    from nav.config.load import ConfigError, load_toml, shipped_config
    from nav.config.room import RoomConfig

    models: dict[str, Any] = {"rooms": RoomConfig, "applicators": Applicator}
    files = [(folder, file) for folder in models for file in sorted(shipped_config(folder).glob("*.toml"))]
    for folder, file in files + ([("rooms", room)] if room is not None else []):
        name = str(file) if file == room else f"{folder}/{file.name}"
        try:
            load_toml(file, models[folder])
        except ConfigError as error:
            yield Check(
                f"config:{name}", FAIL, str(error), "correct the lines named; docs/configuration.md lists all keys"
            )
        else:
            yield Check(f"config:{name}", OK, "valid")
    if not files:
        yield Check("config", FAIL, "no configuration ships with this installation", "install the program again")


def check_ports(room: Path | None) -> Iterator[Check]:
    """Whether the ports of the room are free (for the simulated room) or answered (for a given one)."""
    from nav.config.load import ConfigError, load_toml, shipped_config
    from nav.config.room import RoomConfig

    try:
        config = load_toml(room or shipped_config("rooms", "simulated.toml"), RoomConfig)
    except ConfigError:
        return  # reported with the configurations
    for source in config.sources:
        if source.driver != "openigtlink":
            continue
        place = f"{source.host}:{source.port}"
        answered = _answers(source.host, source.port)
        if room is None:
            yield Check(
                f"port:{source.name}",
                WARN if answered else OK,
                f"{place} is " + ("taken: a program listens there already" if answered else "free for the demo"),
                "end the other program (a room that was left running?) before the demo" if answered else "",
            )
        else:
            yield Check(
                f"port:{source.name}",
                OK if answered else WARN,
                f"{place} " + ("answers" if answered else "does not answer"),
                "" if answered else f"start the device or server of source {source.name!r}, or correct host and port",
            )


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def check_machine() -> Iterator[Check]:
    """Processor cores, free disk, and a cache that can be written."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check(
        "cpu",
        OK if cores >= 2 else WARN,
        f"{cores} processor cores",
        "" if cores >= 2 else "use at least 2 cores: one computes and draws, one shows",
    )
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Check(
        "disk",
        OK if free_gb >= _MIN_FREE_GB else WARN,
        f"{free_gb:.1f} GB free in {Path.cwd()}",
        "" if free_gb >= _MIN_FREE_GB else "make room: a recording with ultrasound takes about 30 GB in an hour",
    )
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or cache_dir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield Check(
            "cache",
            WARN,
            f"{folder} cannot be written: {error.strerror}",
            "set XDG_CACHE_HOME to a folder that can be written, or every start compiles all kernels again",
        )
    else:
        yield Check("cache", OK, f"{folder} can be written")


def run_checks(room: Path | None = None, report: Callable[[Check], None] | None = None) -> list[Check]:
    """Run every check.

    Parameters
    ----------
    room : Path or None
        A room configuration to look at besides those that ship; its ports are looked at instead of the demo's.
    report : callable or None
        Called with each finding as soon as it stands.

    Returns
    -------
    list of Check
        A check that itself breaks is a failed finding, never an end of the others.
    """
    steps: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", check_python),
        ("packages", check_packages),
        ("shadowed", check_shadowed),
        ("libraries", check_system_libraries),
        ("machine", check_machine),
        ("drivers", check_drivers),
        ("config", lambda: check_configurations(room)),
        ("ports", lambda: check_ports(room)),
        ("qt", check_qt),
        ("kernels", check_kernels),
    ]
    found: list[Check] = []
    for name, step in steps:
        try:
            for check in step():
                found.append(check)
                if report is not None:
                    report(check)
        except Exception as error:
            # Whatever a broken installation throws, the other checks still tell the person what to do.
            broken = Check(name, FAIL, f"this check failed: {type(error).__name__}: {error}", "make setup")
            found.append(broken)
            if report is not None:
                report(broken)
    return found


def worst(checks: list[Check]) -> str:
    """The worst status of all."""
    return max((check.status for check in checks), key=(OK, WARN, FAIL).index, default=OK)


def print_check(check: Check) -> None:
    """One finding for a person."""
    mark = {OK: "ok  ", WARN: "warn", FAIL: "FAIL"}[check.status]
    print(f"{mark}  {check.id:<24} {check.what}", flush=True)
    if check.todo:
        print(f"{'':30} -> {check.todo}", flush=True)


def print_counts(checks: list[Check]) -> None:
    """The line at the end."""
    counts = {s: sum(check.status == s for check in checks) for s in (OK, WARN, FAIL)}
    print(f"{counts[OK]} ok, {counts[WARN]} to look at, {counts[FAIL]} failed")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (docs/doctor-json.md).")] = False,
    room: Annotated[Path | None, typer.Option(help="A room configuration to check too.")] = None,
) -> int:
    """Run the checks and print them; see ``HELP``."""
    checks = run_checks(room, None if as_json else print_check)
    status = worst(checks)
    if as_json:
        document = {
            "version": metadata.version("ablation-nav"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "status": status,
            "checks": [asdict(check) for check in checks],
        }
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        print_counts(checks)
    return ExitCode.ENVIRONMENT if status == FAIL else ExitCode.OK
