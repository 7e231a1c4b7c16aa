"""The command line: helps, exit codes, messages without a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nav.cli import main as cli
from nav.cli.environment import prepare
from nav.cli.errors import CommandError, ExitCode, exit_code_of, message_of
from nav.cli.main import COMMANDS, load_command, main
from nav.config.load import ConfigError
from nav.io.errors import MaskError

HEAVY = ("numba", "numpy", "scipy", "PySide6", "pyqtgraph", "cv2", "SimpleITK", "pydicom", "skimage", "mcap", "pyigtl")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def failing(error: BaseException):
    """A command that raises ``error``."""

    def command() -> None:
        raise error

    return command


@pytest.fixture
def command_that(monkeypatch: pytest.MonkeyPatch):
    """Replace the command ``demo`` by one that raises."""

    def replace(error: BaseException) -> None:
        import typer

        app = typer.Typer(rich_markup_mode=None)
        app.command("demo")(failing(error))
        monkeypatch.setattr(cli, "load_command", lambda _name: typer.main.get_command(app))

    return replace


def test_overview_lists_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name, summary in COMMANDS.items():
        assert name in out
        assert summary[:40] in out
    for number in ExitCode:
        assert str(int(number)) in out
    assert "not for clinical use" in out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_each_command_has_an_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert "Example" in out
    assert f"ablation-nav {name}" in out.split("Example", 1)[1]


def test_help_of_register_landmarks_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "register", "landmarks", "--help")
    assert code == 0
    assert "ablation-nav register landmarks --fixed" in out


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in sorted(COMMANDS))], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """Help answers at once: in a fresh process, because this one has everything loaded."""
    program = (
        "import sys; from nav.cli.main import main\n"
        f"code = main({arguments!r})\n"
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip().splitlines()[-1] == "LOADED [] 0"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith("ablation-nav ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dem"], "Did you mean 'demo'"),
        (["doctor", "--nonsense"], "--nonsense"),
        (["register", "landmarks"], "--fixed"),
        ([], "Commands:"),
    ],
)
def test_wrong_use_ends_with_2_and_names_what(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == ExitCode.USAGE
    assert words in err + out
    assert "Traceback" not in err


ERRORS = [
    (CommandError("two values side by side"), ExitCode.FAILED, "two values side by side"),
    (CommandError("no landmarks", ExitCode.INPUT), ExitCode.INPUT, "no landmarks"),
    (ConfigError("room.toml", ["port = 0: must be larger"]), ExitCode.CONFIGURATION, "port = 0"),
    (MaskError("label 451 is not in the file"), ExitCode.INPUT, "label 451"),
    (
        FileNotFoundError(2, "No such file or directory", "ct.nrrd"),
        ExitCode.INPUT,
        "No such file or directory: ct.nrrd",
    ),
    (ConnectionRefusedError(111, "Connection refused"), ExitCode.CONNECTION, "Connection refused"),
    (OSError(98, "Address already in use"), ExitCode.CONNECTION, "Address already in use"),
    (ImportError("libEGL.so.1: cannot open shared object file"), ExitCode.ENVIRONMENT, "ablation-nav doctor"),
    (ZeroDivisionError("division by zero"), ExitCode.INTERNAL, "--debug"),
    (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
]


@pytest.mark.parametrize(("error", "code", "words"), ERRORS, ids=[type(e[0]).__name__ + e[1].name for e in ERRORS])
def test_errors_end_in_one_message_and_their_code(
    capsys: pytest.CaptureFixture[str], command_that, error: BaseException, code: ExitCode, words: str
) -> None:
    command_that(error)
    ended, out, err = run(capsys, "demo")
    assert ended == code
    assert words in err
    assert not out
    assert "Traceback" not in err


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], command_that, place: str) -> None:
    command_that(ZeroDivisionError("division by zero"))
    ended, _, err = run(capsys, *(["--debug", "demo"] if place == "before" else ["demo", "--debug"]))
    assert ended == ExitCode.INTERNAL
    assert "Traceback" in err
    assert "in command" in err


def test_a_command_decides_its_own_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    def demo() -> int:
        return 6

    app = typer.Typer(rich_markup_mode=None)
    app.command("demo")(demo)
    monkeypatch.setattr(cli, "load_command", lambda _name: typer.main.get_command(app))
    assert run(capsys, "demo")[0] == 6


def test_every_command_can_be_loaded() -> None:
    for name in COMMANDS:
        assert (load_command(name).name or name) == name


def test_message_of_an_error_without_words() -> None:
    assert message_of(CommandError("")) == "CommandError"
    assert exit_code_of(TimeoutError()) is ExitCode.CONNECTION


def test_environment_is_prepared_and_a_choice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "tbb")
    prepare()
    import os

    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["NUMBA_THREADING_LAYER"] == "tbb"


def test_read_only_installation_gets_a_kernel_cache(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    import os

    monkeypatch.setattr("nav.cli.environment._can_write", lambda _folder: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    prepare()
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "ablation-nav" / "kernels")
    monkeypatch.delenv("NUMBA_CACHE_DIR")


def test_every_error_with_a_code_of_its_own_exists() -> None:
    from importlib import import_module

    from nav.cli.errors import _KNOWN

    for module, name, _ in _KNOWN:
        assert issubclass(getattr(import_module(module), name), Exception)
