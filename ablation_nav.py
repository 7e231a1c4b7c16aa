"""Start of the program: makes sure that its packages are its own, then hands over to `nav.cli.main`.

The import names ``nav``, ``drivers``, ``calib`` and ``configs`` are common words. Another distribution that installs
one of them hides or overwrites ours without a word from pip. This module has a name of its own and needs nothing but
the standard library, so that it still runs, and can say so, when that has happened.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

__all__ = ["DISTRIBUTION", "PACKAGES", "Shadow", "find_shadows", "main"]

DISTRIBUTION = "ablation-nav"
PACKAGES = ("nav", "drivers", "calib", "configs")

#: Exit code "environment" (`nav.cli.errors.ExitCode` may be out of reach here).
_EXIT_ENVIRONMENT = 6


@dataclass(frozen=True, slots=True)
class Shadow:
    """A package of ours that Python would take from elsewhere, or that was overwritten in place.

    Attributes
    ----------
    package : str
        Import name.
    expected : Path
        Where ours stands.
    found : Path or None
        What Python would import instead; None when it finds nothing.
    owners : tuple of str
        Other installed distributions that bring a package of this name.
    overwritten : bool
        The file stands in the right place with the wrong content.
    """

    package: str
    expected: Path
    found: Path | None
    owners: tuple[str, ...]
    overwritten: bool = False

    def describe(self) -> str:
        """One sentence: what is wrong and whose package it is."""
        owner = " and ".join(self.owners) if self.owners else "no installed distribution (a folder on the search path)"
        if self.overwritten:
            return f"package {self.package!r} was overwritten: {self.expected} is not ours any more; owner: {owner}"
        if self.found is None:
            return f"package {self.package!r} is missing: expected {self.expected}; install {DISTRIBUTION} again"
        return f"package {self.package!r} comes from {self.found} instead of {self.expected}; owner: {owner}"


def find_shadows(search_path: list[str] | None = None, root: Path | None = None) -> list[Shadow]:
    """Compare where Python would find each of our packages with where it belongs.

    Parameters
    ----------
    search_path : list of str, optional
        Searched instead of ``sys.path`` and the import hooks.
    root : Path, optional
        Folder that holds our packages; the folder of this file unless given.

    Returns
    -------
    list of Shadow
        Empty when all is well.
    """
    home = (root or Path(__file__).parent).resolve()
    hashes = _recorded_hashes(home)
    shadows: list[Shadow] = []
    for package in PACKAGES:
        expected = home / package / "__init__.py"
        found = _origin(package, search_path)
        if found is None or found != expected:
            shadows.append(Shadow(package, expected, found, _owners(package, search_path)))
        elif f"{package}/__init__.py" in hashes and _sha256(expected) != hashes[f"{package}/__init__.py"]:
            shadows.append(Shadow(package, expected, found, _owners(package, search_path), overwritten=True))
    return shadows


def _origin(package: str, search_path: list[str] | None) -> Path | None:
    """What ``import package`` would load, without loading it; a folder without ``__init__`` counts as the folder."""
    if search_path is None:
        spec = importlib.util.find_spec(package)
    else:
        spec = importlib.machinery.PathFinder.find_spec(package, search_path)
    if spec is None:
        return None
    if spec.origin and spec.origin != "namespace":
        return Path(spec.origin).resolve()
    places = list(spec.submodule_search_locations or ())
    return Path(places[0]).resolve() if places else None


def _recorded_hashes(home: Path) -> dict[str, str]:
    """SHA-256 (urlsafe base64) that the installer recorded for our files in ``home``; empty for a source checkout."""
    for distribution in metadata.distributions(name=DISTRIBUTION, path=[str(home)]):
        record = distribution.read_text("RECORD") or ""
        rows = (line.rsplit(",", 2) for line in record.splitlines())
        return {row[0]: row[1].removeprefix("sha256=") for row in rows if len(row) == 3 and row[1]}
    return {}


def _sha256(file: Path) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()


def _owners(package: str, search_path: list[str] | None) -> tuple[str, ...]:
    """Names of other installed distributions with files in a top-level ``package``."""
    names: set[str] = set()
    for distribution in metadata.distributions(path=search_path if search_path is not None else sys.path):
        name = distribution.metadata["Name"] or "?"
        if name.replace("_", "-").lower() == DISTRIBUTION:
            continue
        if any(file.parts and file.parts[0] == package for file in distribution.files or ()):
            names.add(f"{name} {distribution.version}")
    return tuple(sorted(names))


def main() -> int:
    """Run the command line of the current process; returns the exit code."""
    shadows = find_shadows()
    if shadows:
        print(f"{DISTRIBUTION}: error: this Python environment is not safe to run in", file=sys.stderr)
        for shadow in shadows:
            print(f"  {shadow.describe()}", file=sys.stderr)
        print(
            f"  What to do: give {DISTRIBUTION} an environment of its own (make setup), or uninstall the other "
            f"distribution and install {DISTRIBUTION} again.",
            file=sys.stderr,
        )
        return _EXIT_ENVIRONMENT
    from nav.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
