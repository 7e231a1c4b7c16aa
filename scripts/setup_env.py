#!/usr/bin/env python3
"""Create ``.venv`` with the pinned dependencies and this program in it; do nothing when that has been done.

Standard library only; called by the Makefile with any ``python3``. What was installed is remembered in
``.venv/ready.json``: as long as the pins, the project file, the Python version and the place are the same, a second
call ends at once. An interrupted installation is continued.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

SUPPORTED = ((3, 11), (3, 12), (3, 13))
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "ready.json")
LOG = os.path.join(VENV, "pip.log")
LOCK = os.path.join(ROOT, "requirements.lock")


def fail(message):
    """End with a message."""
    sys.stderr.write("setup: " + message + "\n")
    sys.exit(1)


def check_this_python():
    """This interpreter must be new enough and able to make environments."""
    version = sys.version_info[:2]
    if version not in SUPPORTED:
        fail(
            "{} is Python {}.{}; this program needs 3.11, 3.12 or 3.13.\n"
            "  Name another one: make PYTHON=/path/to/python3.11 ...".format(sys.executable, *version)
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        fail(
            "{} cannot make virtual environments ({}).\n  On Debian run this line, then make again:\n"
            "  sudo apt-get install -y --no-install-recommends python3-venv".format(sys.executable, error)
        )


def wanted_state(python_version):
    """What a finished installation looks like."""
    digest = hashlib.sha256()
    for name in ("requirements.lock", "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return {"inputs": digest.hexdigest(), "python": python_version, "place": ROOT}


def venv_version():
    """Version of the interpreter in ``.venv``, None when there is none that runs."""
    if not os.path.exists(VENV_PYTHON):
        return None
    done = subprocess.run(
        [VENV_PYTHON, "-c", "import platform; print(platform.python_version())"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return done.stdout.decode().strip() if done.returncode == 0 else None


def read_stamp():
    """The remembered state, None when there is none."""
    try:
        with open(STAMP, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def run_pip(title, arguments, expected=0):
    """Run pip, show its progress on one line, keep its words in the log, and end with them when it fails."""
    terminal = sys.stdout.isatty()
    seen, started, shown = 0, time.monotonic(), float("-inf")
    print("setup: " + title + " ...", flush=True)
    command = [VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", *arguments]
    with open(LOG, "a", encoding="utf-8") as log:
        log.write("\n$ " + " ".join(command) + "\n")
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                log.write(line + "\n")
                now = time.monotonic()
                found = re.match(r"(Collecting|Requirement already satisfied:) ([A-Za-z0-9_.-]+)", line)
                text = ""
                if found:
                    seen += 1
                    text = "fetching {}/{} {}".format(min(seen, expected), expected, found.group(2))
                elif line.startswith("Installing collected packages"):
                    text = "unpacking {} packages, this takes up to a minute".format(line.count(",") + 1)
                if not text or not expected:
                    continue
                if terminal:
                    print("\r  {:<68} {:4.0f} s".format(text, now - started), end="", flush=True)
                elif now - shown > 5.0 or text.startswith("unpacking"):
                    print("  {} ({:.0f} s)".format(text, now - started), flush=True)
                    shown = now
        code = process.returncode
    if terminal and expected:
        print()
    if code != 0:
        with open(LOG, encoding="utf-8") as log:
            sys.stderr.write("".join(log.readlines()[-25:]))
        fail(
            "pip failed while {}. The whole log is {}.\n"
            "  No network, or a proxy or certificate that pip does not know, is the usual cause; then make again "
            "continues here.".format(title, os.path.relpath(LOG))
        )
    print("  done in {:.0f} s".format(time.monotonic() - started), flush=True)


def pins():
    """Requirement lines of the lock file."""
    with open(LOCK, encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip() and not line.startswith("#")]


def prepare():
    """Create or reuse ``.venv`` and fill it."""
    version = venv_version()
    stamp = read_stamp()
    chosen = os.environ.get("SETUP_PYTHON_CHOSEN") == "1"
    if version is not None and not (chosen and version != ".".join(map(str, sys.version_info[:3]))):
        if stamp == wanted_state(version):
            return
        if tuple(map(int, version.split(".")[:2])) not in SUPPORTED:
            version = None
    else:
        version = None
    if stamp is not None and stamp.get("place") != ROOT:
        version = None  # the scripts inside name the old place
    if version is None:
        check_this_python()
        if os.path.isdir(VENV):
            print("setup: .venv belongs to another Python or place; making it anew ...", flush=True)
            shutil.rmtree(VENV)
        print("setup: creating .venv with Python {}.{}.{} ...".format(*sys.version_info[:3]), flush=True)
        done = subprocess.run([sys.executable, "-m", "venv", VENV], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            shutil.rmtree(VENV, ignore_errors=True)
            fail("python -m venv failed:\n" + done.stdout.decode(errors="replace"))
        version = venv_version()
    if os.path.exists(STAMP):
        os.remove(STAMP)
    locked = pins()
    # The build backend comes first and from the lock, so that nothing unpinned is fetched to build with.
    run_pip("installing the build tools", [pin for pin in locked if pin.startswith("setuptools==")])
    run_pip(
        "installing {} pinned packages (about 350 MB to fetch the first time)".format(len(locked)),
        ["--no-deps", "--no-build-isolation", "--use-pep517", "-r", LOCK],
        expected=len(locked),
    )
    run_pip("installing ablation-nav itself", ["--no-deps", "--no-build-isolation", "-e", ROOT])
    with open(STAMP, "w", encoding="utf-8") as file:
        json.dump(wanted_state(version), file, indent=1)
    print("setup: ready", flush=True)


def main():
    """One set-up at a time, also under ``make -j``."""
    os.chdir(ROOT)
    try:
        import fcntl
    except ImportError:
        fail("this set-up runs on Linux and macOS only")
    with open(os.path.join(ROOT, ".setup.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare()
    libraries = os.path.join(ROOT, "nav", "cli", "system_libraries.py")
    return subprocess.call([sys.executable, "-I", libraries])


if __name__ == "__main__":
    sys.exit(main())
