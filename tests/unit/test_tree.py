"""The tracked tree: documentation that keeps up, and nothing that belongs to one machine only."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]

#: Absolute paths of one machine and user. Written in parts, so that this file does not find itself.
_ROOTS = ("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/[a-z]", "/Us" + "ers/")
FOREIGN = re.compile("|".join(rf"(?<![\w.]){root}" for root in _ROOTS))


def tracked() -> list[Path]:
    """Tracked text files; skips where there is no git (an unpacked archive)."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=True, timeout=30)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    names = [name for name in done.stdout.decode().split("\0") if name]
    return [REPO / name for name in names if not name.endswith((".png", ".ttf")) and (REPO / name).is_file()]


def test_no_path_of_one_machine() -> None:
    found = [
        f"{file.relative_to(REPO)}:{number}: {line.strip()[:80]}"
        for file in tracked()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if FOREIGN.search(line)
    ]
    assert not found, "\n".join(found)


def test_every_command_and_option_is_documented() -> None:
    import runpy

    reference = runpy.run_path(str(REPO / "scripts" / "command_reference.py"))
    page = (REPO / "docs" / "commands.md").read_text(encoding="utf-8")
    for command in reference["shown"]():
        section = page.split(f"## {' '.join(command)}\n", 1)[1].split("\n## ", 1)[0]
        for option in re.findall(r"--[a-z][a-z-]+", reference["help_of"](command)):
            assert option in section, f"{' '.join(command)} {option}: run scripts/command_reference.py"


def test_links_in_the_documentation_lead_somewhere() -> None:
    broken = []
    for page in [file for file in tracked() if file.suffix == ".md"]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")) and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(REPO)} -> {target}")
    assert not broken


def test_lock_satisfies_the_project_and_is_exact() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (REPO / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    assert all(str(pin.specifier).startswith("==") and "*" not in str(pin.specifier) for pin in pins)
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        version = versions.get(canonicalize_name(wanted.name))
        assert version is not None, f"{wanted.name} is not in requirements.lock"
        assert wanted.specifier.contains(version, prereleases=True), f"{wanted} against {version}"


def test_installed_opencv_brings_no_qt() -> None:
    import cv2

    assert not (Path(cv2.__file__).parent / "qt").exists()
