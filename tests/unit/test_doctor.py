"""The doctor: what it finds on this machine, and that each kind of trouble is found and told with what to do."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from nav.cli import doctor as module
from nav.cli import system_libraries
from nav.cli.doctor import Check, check_configurations, check_packages, check_ports, check_qt, run_checks, worst
from nav.cli.main import main


def test_json_of_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernels are compiled by their own tests; here it would only cost time.
    monkeypatch.setattr(module, "_kernel_modules", lambda: ["nav.imaging.reslice"])
    code = main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"version", "python", "platform", "status", "checks"}
    failed = [check for check in document["checks"] if check["status"] == "fail"]
    assert (code, failed) == (0, [])
    ids = {check["id"].split(":")[0] for check in document["checks"]}
    assert {"python", "packages", "shadowed", "libraries", "threads", "qt", "kernels", "config", "port", "cache"} <= ids
    for check in document["checks"]:
        assert set(check) == {"id", "status", "what", "todo"}
        assert check["status"] in ("ok", "warn", "fail")
        assert check["what"]
        assert bool(check["todo"]) == (check["status"] != "ok"), check


def test_every_kernel_module_is_found() -> None:
    found = module._kernel_modules()
    assert "nav.imaging.reslice" in found
    assert "nav.ablation.margin" in found
    assert not [name for name in found if name.startswith("nav.hud")]


def test_a_failed_check_ends_with_6_and_the_others_still_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken():
        raise RuntimeError("half an installation")
        yield

    monkeypatch.setattr(module, "check_packages", broken)
    monkeypatch.setattr(module, "_kernel_modules", list)
    assert main(["doctor"]) == 6
    out = capsys.readouterr().out
    assert "half an installation" in out
    assert "qt" in out
    assert "1 failed" in out


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("PySide6-Essentials", "6.12.0", "aborts Python 3.11"),
        ("opencv-python-headless", "5.0.0.93", "calibrateHandEye"),
        ("numpy", "2.6.0", "outside"),
    ],
)
def test_version_traps(monkeypatch: pytest.MonkeyPatch, name: str, version: str, words: str) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda asked: version if asked.lower() == name.lower() else real(asked))
    first = next(iter(check_packages()))
    assert first.status == "fail"
    assert f"{name} {version}" in first.what
    assert words in first.what


def test_missing_package_and_second_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "mcap":
            raise metadata.PackageNotFoundError(name)
        return "4.12.0" if name == "opencv-python" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {check.id: check for check in check_packages()}
    assert "mcap is missing" in found["packages"].what
    assert found["packages:conflict"].status == "fail"
    assert "pip uninstall opencv-python" in found["packages:conflict"].todo


def test_shadowed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import ablation_nav

    shadow = ablation_nav.Shadow("drivers", Path("/ours/drivers"), Path("/theirs/drivers"), ("other 1.0",))
    monkeypatch.setattr(ablation_nav, "find_shadows", lambda: [shadow])
    (check,) = module.check_shadowed()
    assert (check.id, check.status) == ("shadowed:drivers", "fail")
    assert "other 1.0" in check.what


def test_missing_library_names_the_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_libraries, "can_load", lambda name: name != "libgomp.so.1")
    (check,) = module.check_system_libraries()
    assert check.status == "fail"
    assert "libgomp.so.1" in check.what
    assert check.todo.endswith("libgomp1")


def test_workqueue_threads_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    from nav.runtime import warmup

    monkeypatch.setattr(warmup, "use_one_thread", lambda: None)
    monkeypatch.setattr(warmup, "threading_layer", lambda: "workqueue")
    (check,) = module.check_kernels()
    assert (check.id, check.status) == ("kernels", "fail")
    assert "workqueue" in check.what
    assert "libgomp1" in check.todo


def test_qt_that_does_not_start_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "ImportError: libEGL.so.1: cannot open shared object file: No such file or directory"
    monkeypatch.setattr(module, "_QT_PROBE", f"import sys; sys.exit({said!r})")
    (check,) = check_qt()
    assert check.status == "fail"
    assert "libEGL.so.1" in check.what
    assert "libegl1" in check.todo


def test_configuration_with_mistakes(tmp_path: Path) -> None:
    room = tmp_path / "room.toml"
    room.write_text('[[sources]]\nname = "Tracker"\nport = 0\n')
    bad = [check for check in check_configurations(room) if check.status == "fail"]
    assert [check.id for check in bad] == [f"config:{room}"]
    assert "2 mistakes" in bad[0].what


def test_ports_of_a_room_and_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as other:
            silent = other.getsockname()[1]
        room = tmp_path / "room.toml"
        room.write_text(f'[[sources]]\nname = "a"\nport = {port}\n[[sources]]\nname = "b"\nport = {silent}\n')
        a, b = check_ports(room)
    assert (a.id, a.status, b.id, b.status) == ("port:a", "ok", "port:b", "warn")
    assert "'b'" in b.todo
    monkeypatch.setattr(module, "_answers", lambda _host, _port: True)
    assert {check.status for check in check_ports(None)} == {"warn"}


def test_worst_status() -> None:
    ok, warn, fail = (Check("x", status, "") for status in ("ok", "warn", "fail"))
    assert [worst([]), worst([ok]), worst([ok, warn]), worst([fail, ok, warn])] == ["ok", "ok", "warn", "fail"]


def test_findings_are_reported_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kernel_modules", list)
    seen: list[Check] = []
    assert run_checks(None, seen.append) == seen
    assert seen
