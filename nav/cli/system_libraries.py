"""Check the system libraries that the Python packages load, and install the Debian packages when run as root.

Standard library only, any Python 3, no import of the rest of the program: the set-up runs this file before anything
else works, ``python3 -I nav/cli/system_libraries.py [--check]``; with ``--check`` nothing is installed. Ends with 0
when everything needed is there, otherwise prints the one line to run and ends with 1. `doctor` uses its tables.

The list was found on a minimal Debian 12 by adding packages until the program ran.
"""

import ctypes
import os
import shutil
import subprocess
import sys

#: library (as the dynamic linker knows it) → Debian package, what it is for.
ALWAYS = [
    ("libEGL.so.1", "libegl1", "Qt"),
    ("libGL.so.1", "libgl1", "Qt"),
    ("libglib-2.0.so.0", "libglib2.0-0", "Qt"),
    ("libfontconfig.so.1", "libfontconfig1", "Qt, and a font to write with"),
    ("libdbus-1.so.3", "libdbus-1-3", "Qt"),
    ("libxkbcommon.so.0", "libxkbcommon0", "Qt"),
    ("libgomp.so.1", "libgomp1", "numba threads; without it two threads abort the program"),
]
#: Needed on top for a window on an X display (Qt names the wrong one when one of them is missing).
WINDOW = [
    ("libxkbcommon-x11.so.0", "libxkbcommon-x11-0", "window"),
    ("libxcb-cursor.so.0", "libxcb-cursor0", "window"),
    ("libxcb-icccm.so.4", "libxcb-icccm4", "window"),
    ("libxcb-keysyms.so.1", "libxcb-keysyms1", "window"),
    ("libxcb-shape.so.0", "libxcb-shape0", "window"),
]


def can_load(library: str) -> bool:
    """True when the dynamic linker finds ``library`` with all that it needs itself."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def missing(window: bool) -> "list[tuple[str, str, str]]":
    """Rows of the tables above whose library cannot be loaded."""
    return [row for row in ALWAYS + (WINDOW if window else []) if not can_load(row[0])]


def install_line(packages: "list[str]") -> str:
    """The one line a person with the right to install runs."""
    return "sudo apt-get install -y --no-install-recommends " + " ".join(packages)


def apt_install(packages: "list[str]") -> bool:
    """Install Debian packages as root; the lists are fetched only where they are missing or too old."""
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    lists = "/var/lib/apt/lists"
    fetched = os.path.isdir(lists) and any(name.endswith(("_Packages", "_Packages.lz4")) for name in os.listdir(lists))
    for update in [False, True] if fetched else [True]:
        if update:
            print("  fetching the package lists (apt-get update) ...", flush=True)
            if subprocess.call(["apt-get", "update", "-qq"], env=environment, stdin=subprocess.DEVNULL) != 0:
                print("  apt-get update failed; is there a network?", flush=True)
                continue
        print("  installing " + " ".join(packages) + " ...", flush=True)
        done = subprocess.run(
            install, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode == 0:
            return True
        said = done.stdout.decode(errors="replace")
    sys.stdout.write(said[-2000:])
    return False


def main(arguments: "list[str]") -> int:
    """Check, install where possible, report."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    may_install = "--check" not in arguments and root and shutil.which("apt-get")
    window = bool(may_install or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    rows = missing(window)
    if rows and may_install:
        apt_install([row[1] for row in rows])
        rows = missing(window)
    if not rows:
        return 0
    print("Missing system libraries:", file=sys.stderr)
    for library, package, purpose in rows:
        print("  {:<24} Debian package {:<20} ({})".format(library, package, purpose), file=sys.stderr)
    if shutil.which("apt-get"):
        print("Run this line, then make again:\n  " + install_line([row[1] for row in rows]), file=sys.stderr)
    else:
        print("Install them with this system's package manager, then make again.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
