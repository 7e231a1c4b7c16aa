"""The start-up guard: a package of ours that another distribution hides or overwrites is named with its owner."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from pathlib import Path

import ablation_nav
from ablation_nav import PACKAGES, find_shadows

REPO = Path(ablation_nav.__file__).parent


def install(site: Path, name: str, files: dict[str, str], version: str = "1.0") -> None:
    """Put a distribution into ``site`` as pip would: files and their record."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    rows = []
    for path, text in files.items():
        file = site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text)}")
    (info / "RECORD").write_text("\n".join(rows) + "\n")


def install_ours(site: Path) -> None:
    install(site, "ablation-nav", {f"{package}/__init__.py": f"# {package}\n" for package in PACKAGES})


def test_nothing_is_wrong_with_this_environment() -> None:
    assert find_shadows() == []


def test_a_clean_installation(tmp_path: Path) -> None:
    install_ours(tmp_path)
    assert find_shadows([str(tmp_path)], root=tmp_path) == []


def test_a_distribution_earlier_on_the_path_is_named(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    install_ours(ours)
    install(theirs, "selenium-drivers", {"drivers/__init__.py": "# browsers\n"}, "4.2")
    (shadow,) = find_shadows([str(theirs), str(ours)], root=ours)
    assert (shadow.package, shadow.owners, shadow.overwritten) == ("drivers", ("selenium-drivers 4.2",), False)
    assert "comes from" in shadow.describe()
    assert "selenium-drivers 4.2" in shadow.describe()


def test_an_overwritten_package_is_named(tmp_path: Path) -> None:
    install_ours(tmp_path)
    install(tmp_path, "navigation-menu", {"nav/__init__.py": "# menus\n"})
    (shadow,) = find_shadows([str(tmp_path)], root=tmp_path)
    assert (shadow.package, shadow.owners, shadow.overwritten) == ("nav", ("navigation-menu 1.0",), True)
    assert "overwritten" in shadow.describe()


def test_a_plain_folder_and_a_missing_package(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    install_ours(ours)
    (tmp_path / "work" / "configs").mkdir(parents=True)
    (tmp_path / "work" / "configs" / "__init__.py").touch()
    (ours / "calib" / "__init__.py").unlink()
    (ours / "calib").rmdir()
    calib, configs = find_shadows([str(tmp_path / "work"), str(ours)], root=ours)
    assert (calib.package, calib.found) == ("calib", None)
    assert "missing" in calib.describe()
    assert configs.package == "configs"
    assert "no installed distribution" in configs.describe()


def test_the_program_says_so_and_ends_with_6(tmp_path: Path) -> None:
    """Even when it is `nav` itself that is hidden, so that nothing of ours can be imported."""
    install(tmp_path, "navigation-menu", {"nav/__init__.py": ""})
    program = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(REPO)!r}]
import ablation_nav
sys.exit(ablation_nav.main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 6, done.stderr
    assert "'nav' comes from" in done.stderr
    assert "navigation-menu 1.0" in done.stderr
    assert "What to do" in done.stderr
    assert "Traceback" not in done.stderr
