"""The set-up of a fresh checkout: done once, done again when an input changed, clear when it cannot be done."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nav.cli import system_libraries

REPO = Path(__file__).parents[2]


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`scripts/setup_env.py`, at work in an empty checkout with an environment that runs."""
    spec = importlib.util.spec_from_file_location("setup_env", REPO / "scripts" / "setup_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("ROOT", "VENV", "VENV_PYTHON", "STAMP", "LOG", "LOCK"):
        there = Path(getattr(module, name)).relative_to(REPO)
        monkeypatch.setattr(module, name, str(tmp_path / there))
    (tmp_path / "requirements.lock").write_text("# pins\nsetuptools==84.2.1\nnumpy==2.4.6\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin_folder / "python").chmod(0o755)
    monkeypatch.delenv("SETUP_PYTHON_CHOSEN", raising=False)
    return module


@pytest.fixture
def pip_calls(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []
    monkeypatch.setattr(setup, "run_pip", lambda _title, arguments, **_options: calls.append(arguments))
    return calls


def test_second_start_calls_no_pip(setup: ModuleType, pip_calls: list[list[str]]) -> None:
    setup.prepare()
    first, locked, itself = pip_calls
    assert first == ["setuptools==84.2.1"]
    assert locked[:3] == ["--no-deps", "--no-build-isolation", "--use-pep517"]
    assert itself[-2:] == ["-e", setup.ROOT]
    pip_calls.clear()
    setup.prepare()
    assert pip_calls == []


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml"])
def test_a_changed_input_installs_again(setup: ModuleType, pip_calls: list[list[str]], changed: str) -> None:
    setup.prepare()
    pip_calls.clear()
    with open(Path(setup.ROOT) / changed, "a") as file:
        file.write("# changed\n")
    setup.prepare()
    assert len(pip_calls) == 3


def test_an_interrupted_installation_is_done_again(
    setup: ModuleType, pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(setup, "run_pip", broken)
        with pytest.raises(KeyboardInterrupt):
            setup.prepare()
    assert setup.read_stamp() is None
    setup.prepare()
    assert len(pip_calls) == 3


@pytest.mark.parametrize("reason", ["moved", "other python", "broken"])
def test_an_environment_that_does_not_fit_is_made_anew(
    setup: ModuleType, pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    setup.prepare()
    pip_calls.clear()
    stamp = json.loads(Path(setup.STAMP).read_text())
    if reason == "moved":
        Path(setup.STAMP).write_text(json.dumps({**stamp, "place": "elsewhere"}))
    elif reason == "other python":
        monkeypatch.setenv("SETUP_PYTHON_CHOSEN", "1")
        monkeypatch.setattr(setup, "venv_version", iter(["3.12.99", platform.python_version()]).__next__)
    else:
        (Path(setup.VENV) / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    made: list[list[str]] = []
    real = subprocess.run

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        if command[1:3] != ["-m", "venv"]:
            return real(command, **options)  # type: ignore[call-overload,no-any-return]
        made.append(command)
        bin_folder = Path(command[3]) / "bin"
        assert not bin_folder.exists(), "the old environment was not removed"
        bin_folder.mkdir(parents=True)
        (bin_folder / "python").symlink_to(sys.executable)
        return subprocess.CompletedProcess(command, 0, b"")

    monkeypatch.setattr(setup.subprocess, "run", run)
    setup.prepare()
    assert len(made) == 1
    assert len(pip_calls) == 3


def test_pip_that_fails_ends_with_its_words_and_the_log(
    setup: ModuleType, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(setup.ROOT)
    script = "#!/bin/sh\necho 'Collecting numpy'\necho 'ERROR: no matching distribution'\nexit 1\n"
    Path(setup.VENV_PYTHON).write_text(script)
    with pytest.raises(SystemExit) as ended:
        setup.run_pip("installing 2 pinned packages", ["numpy"], expected=2)
    out, err = capfd.readouterr()
    assert ended.value.code == 1
    assert "fetching 1/2 numpy" in out
    assert "no matching distribution" in err
    assert "pip failed while installing 2 pinned packages" in err
    assert "pip.log" in err


def test_a_python_that_is_too_old_or_lacks_venv(
    setup: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(setup.sys, "version_info", (3, 9, 2))
        with pytest.raises(SystemExit):
            setup.check_this_python()
    assert "Python 3.9; this program needs 3.11, 3.12 or 3.13" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SystemExit):
        setup.check_this_python()
    assert "apt-get install -y --no-install-recommends python3-venv" in capsys.readouterr().err


def test_missing_library_without_root_prints_the_line_to_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_libraries, "can_load", lambda name: name not in ("libGL.so.1", "libgomp.so.1"))
    monkeypatch.setattr(system_libraries.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(system_libraries.shutil, "which", lambda _name: "/usr/bin/apt-get")
    assert system_libraries.main([]) == 1
    err = capsys.readouterr().err
    assert "sudo apt-get install -y --no-install-recommends libgl1 libgomp1\n" in err


def test_root_installs_what_is_missing_and_fetches_lists_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: set[str] = set()
    calls: list[list[str]] = []

    def run(command: list[str], **_options: object) -> subprocess.CompletedProcess[bytes]:
        calls.append(command)
        if ["apt-get", "update", "-qq"] in calls:
            installed.add("libgomp.so.1")
            return subprocess.CompletedProcess(command, 0, b"")
        return subprocess.CompletedProcess(command, 100, b"E: Unable to locate package")

    monkeypatch.setattr(system_libraries, "can_load", lambda name: name != "libgomp.so.1" or name in installed)
    monkeypatch.setattr(system_libraries.os, "geteuid", lambda: 0)
    monkeypatch.setattr(system_libraries.shutil, "which", lambda _name: "/usr/bin/apt-get")
    monkeypatch.setattr(system_libraries.os.path, "isdir", lambda _path: True)
    monkeypatch.setattr(system_libraries.os, "listdir", lambda _path: ["debian_main_Packages.lz4"])
    monkeypatch.setattr(system_libraries.subprocess, "run", run)
    monkeypatch.setattr(system_libraries.subprocess, "call", lambda command, **_options: calls.append(command) or 0)
    assert system_libraries.main([]) == 0
    install = ["apt-get", "install", "-y", "--no-install-recommends", "libgomp1"]
    assert calls == [install, ["apt-get", "update", "-qq"], install]


def test_check_only_installs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_libraries, "can_load", lambda _name: False)
    monkeypatch.setattr(system_libraries.os, "geteuid", lambda: 0)
    monkeypatch.setattr(system_libraries, "apt_install", lambda _packages: pytest.fail("must not install"))
    assert system_libraries.main(["--check"]) == 1


def test_missing_rows_name_library_package_and_purpose() -> None:
    for library, package, purpose in [*system_libraries.ALWAYS, *system_libraries.WINDOW]:
        assert ".so" in library
        assert package.startswith("lib")
        assert purpose
