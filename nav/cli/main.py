"""The command line ``ablation-nav``: commands are imported when they are called, errors end in a message and a code.

A command lives in ``nav/cli/<name>.py`` as a function of the same name with typer annotations (or, for a group of
sub-commands, as a `typer.Typer` called ``app``). Its help is the module's ``HELP`` text, or the function's docstring.
It may raise any error: `nav.cli.errors` turns it into one message on stderr and an exit code.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
import typer.core

from nav.cli.environment import prepare
from nav.cli.errors import ExitCode, exit_code_of, message_of

__all__ = ["COMMANDS", "main"]

#: Name → one line for the overview. The module is ``nav.cli.<name>``, with ``_`` for ``-``.
COMMANDS: dict[str, str] = {
    "demo": "Play the whole job in the built-in simulated procedure room.",
    "run": "Guide: streams of a room, registered to a CT, on the screen.",
    "room": "Start the simulated procedure room on its own.",
    "record": "Record the streams of a room without guiding.",
    "replay": "Play a recording through the same program again.",
    "plan": "Access paths to a tumour, and the placement of ablations.",
    "register": "Register from files: landmarks, two images.",
    "transform-points": "Take points through a transform.",
    "resample": "Resample an image onto the grid of another one.",
    "zone": "The zone of an applicator, from its chart or computed.",
    "margin": "Measure the margin of an ablation around a tumour.",
    "igtl": "OpenIGTLink messages in files and on the wire.",
    "doctor": "Check this computer and say what is wrong and what to do.",
}

_OVERVIEW = """Image-guided ablation navigation. Research software: not for clinical use.

\b
Examples:
  ablation-nav demo
  ablation-nav run ROOM.toml --ct CT_FOLDER --tumor TUMOR.nrrd --out OUT
  ablation-nav doctor

\b
Exit codes: 0 done, 1 failed, 2 usage, 3 configuration, 4 input data,
5 connection, 6 environment, 70 internal error, 130 interrupted.
"""


class _LazyGroup(typer.core.TyperGroup):
    """Knows the commands by name and summary; imports one only when it is called or its own help is asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = load_command(name)
        return name, command, rest


def load_command(name: str) -> Any:
    """Import the module of a command and build it."""
    function = name.replace("-", "_")
    module = import_module(f"nav.cli.{function}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name, help=getattr(module, "HELP", None))(getattr(module, function))
    return typer.main.get_command(app)


def _version(value: bool) -> None:
    if value:
        print(f"ablation-nav {metadata.version('ablation-nav')}")
        raise typer.Exit


def _root(  # the values are dealt with in `main` and `_version`
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; anywhere on the line.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _build() -> Any:
    app = typer.Typer(
        cls=_LazyGroup,
        help=_OVERVIEW,
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, summary in COMMANDS.items():
        app.command(name, help=summary)(_placeholder)
    return typer.main.get_command(app)


def _placeholder() -> None:
    """Stands for a command in the overview; `_LazyGroup` puts the real one in its place."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process unless given.

    Returns
    -------
    int
        The exit code (`ExitCode`).
    """
    prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in ours
    if debug:
        arguments.remove("--debug")
    try:
        result = _build().main(args=arguments, prog_name="ablation-nav", standalone_mode=False)
    except typer.Abort:
        print("ablation-nav: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except Exception as error:
        # Errors in the use of the command line know how to show themselves.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        if debug:
            traceback.print_exc()
        print(f"ablation-nav: error: {message_of(error)}", file=sys.stderr)
        return exit_code_of(error)
    if result == ExitCode.INTERRUPTED:
        print("ablation-nav: interrupted", file=sys.stderr)
    return int(result) if isinstance(result, int) else ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
