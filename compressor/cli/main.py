"""The command line: `compress-export MODEL ...` is `compress-export run MODEL ...`.

Commands import what is heavy only when they run, so `--help` is instant.
This is the one place where errors become messages and exit codes.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click
from click_default_group import DefaultGroup

from compressor import __version__
from compressor.cli.environment import PREFIX, give_variables, is_set, refuse_unknown, variables
from compressor.cli.foreign_errors import as_error_of_ours, is_panic
from compressor.core.errors import CLOSED_OUTPUT_EXIT_CODE, INTERRUPTED_EXIT_CODE, UsageError
from compressor.core.escaping import printable
from compressor.core.interruption import end_on
from compressor.core.lazy import resolve

_ALIKE = 0.7  # of two words, from which on one is taken for a misspelt other
_MAX_CHARACTERS = 8_000  # of a message; what is longer is a file's content
PROGRAM = "compress-export"
COMPLETION_VARIABLE = "_COMPRESS_EXPORT_COMPLETE"  # a shell asks what could follow
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_ROOM = "compressor.cli"
COMMANDS = {
    "run": (f"{_ROOM}.run:run", "Run all stages; the default."),
    "plan": (f"{_ROOM}.run:plan", "Show shapes, parameters, memory, disk, hours and costs of a run."),
    "search": (f"{_ROOM}.search:search", "Try several shapes of a target size, and rank them."),
    "prune": (f"{_ROOM}.stages:prune", "Prune a model to a target size or shape."),
    "generate": (f"{_ROOM}.stages:generate", "Sample text from a model, to distill on."),
    "correct-teacher": (
        f"{_ROOM}.stages:correct_teacher",
        "Fine-tune a teacher on the text that its student will be distilled on.",
    ),
    "cache-logits": (f"{_ROOM}.stages:cache_logits", "Store a teacher's top-k logits on disk."),
    "reconstruct": (f"{_ROOM}.stages:reconstruct", "Repair a pruned, sparse or quantized model."),
    "distill": (f"{_ROOM}.stages:distill", "Retrain a student on the logits of its teacher."),
    "sparsify": (f"{_ROOM}.stages:sparsify", "Make the linear layers of a model 2:4 sparse."),
    "quantize": (f"{_ROOM}.stages:quantize", "Quantize a model to FP8 by calibration."),
    "export": (f"{_ROOM}.stages:export", "Write a model for a runtime, and verify what was written."),
    "bench": (f"{_ROOM}.bench:bench", "Measure the speed of models in pairs, and compare benchmarks."),
    "evaluate": (f"{_ROOM}.evaluate:evaluate", "Measure perplexity, tasks of lm-eval, or chat quality."),
    "gate": (f"{_ROOM}.gate:gate", "Judge a finished run by its gates: accuracy, speed, memory, size."),
    "clean": (f"{_ROOM}.release:clean", "Delete the weights of a finished run's stages, not its results."),
    "publish": (
        f"{_ROOM}.release:publish",
        "Upload a finished run to the Hugging Face Hub, or sign its sums.",
    ),
    "completion": (f"{_ROOM}.completion:completion", "Print a script that completes commands in a shell."),
    "schema": (f"{_ROOM}.schema:schema", "Print the JSON schema of recipes, which editors check them by."),
    "verify": (f"{_ROOM}.checks:verify", "Check a directory that this tool wrote: every file and number."),
    "doctor": (f"{_ROOM}.checks:doctor", "Check versions, GPU, engine builder, disk and hub access."),
}


class LazyGroup(DefaultGroup):
    """A group with a default command, made from a table; commands are imported when they are called."""

    def __init__(self, *arguments: Any, table: Mapping[str, tuple[str, str]], **named: Any) -> None:
        """A group of click; of each name, where the command is and its line in the group's help."""
        super().__init__(*arguments, **named)
        self._table = table

    def list_commands(self, _context: click.Context) -> list[str]:
        """The names, in the table's order."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now; else the default one."""
        name = cmd_name if cmd_name in self._table else self.default_cmd_name
        if name not in self.commands:
            command = resolve(self._table[name][0])
            give_variables(command)
            self.add_command(command, name)
        found: click.Command | None = super().get_command(ctx, cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with, else the default one.

        Raises:
            UsageError: for a word that is nearly a command, and nothing that is there.
        """
        word = args[0]
        close = difflib.get_close_matches(word, self._table, n=1, cutoff=_ALIKE)
        if close and word not in self._table and "/" not in word and not Path(word).exists():
            raise UsageError(f"there is no command {word!r}", hint=f"did you mean {close[0]}?")
        found: tuple[str | None, click.Command | None, list[str]] = super().resolve_command(ctx, args)
        return found

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table's lines."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._table.items()])


@click.group(cls=LazyGroup, table=COMMANDS, default="run", default_if_no_args=False, context_settings=CONTEXT)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Prune and distill a language model to a target size, export it, and measure the speed-up.

    \b
    compress-export llama3.1-8b --target 4b --fp8      all stages
    compress-export plan llama3.1-8b --target 4b       what it would do; no network, no weights
    compress-export MODEL ...                          the same as: compress-export run MODEL ...

    Every stage is also a command of its own. Results go to stdout, everything else to stderr.

    \b
    Exit codes: 0 done, 1 unexpected, 2 usage, 3 unsupported, 4 missing dependency, 5 memory or disk,
    6 accuracy gate, 7 speed or size gate, 8 verification failed or corrupt weights, 9 network or
    authorisation, 130 interrupted (run the same command again to resume), 141 the program that
    read the output closed it.

    Every option can be set by an environment variable as well: --train-data by
    COMPRESS_EXPORT_TRAIN_DATA. An option goes before a variable, a variable before --config.
    """
    if any(name.startswith(PREFIX) for name in os.environ):
        from bench.machine.environment import CONTAINER_DIGEST_VARIABLE

        known = variables(resolve(place) for place, _ in COMMANDS.values())
        refuse_unknown({*known, CONTAINER_DIGEST_VARIABLE}, os.environ)


def main() -> NoReturn:
    """Entry point: run, and turn every error into one message and its exit code."""
    end_on((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    _make_streams_usable()
    if COMPLETION_VARIABLE in os.environ:
        cli.main(prog_name=PROGRAM)
    try:
        code = invoke(sys.argv[1:])
    except KeyboardInterrupt:  # a second one, while the first was answered
        code = INTERRUPTED_EXIT_CODE
    _let_go_of_closed_streams()
    sys.exit(code)


def invoke(arguments: list[str]) -> int:
    """Run one command line; returns its exit code."""
    debug = "--debug" in arguments or is_set("--debug")
    try:
        # Not cli.main: it ends the program itself, with 1, when the reader of its output is gone.
        with cli.make_context(PROGRAM, list(arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        _say(shown.getvalue().rstrip())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted; run the same command again to resume")
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        return CLOSED_OUTPUT_EXIT_CODE
    except SystemExit:
        raise
    except BaseException as error:
        # A panic of a Rust library is no Exception; what is neither that nor ours is passed on.
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        return _fail(error, debug=debug)
    return 0


def _fail(error: BaseException, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    ours = as_error_of_ours(error)
    if ours is not None:
        usual = f"\n  try: {ours.usual_hint}" if ours.hint is None and ours.usual_hint else ""
        _say(f"error: {ours}{usual}")
        return ours.exit_code
    _say(f"unexpected error: {type(error).__name__}: {error}\n  try: run the same command with --debug")
    return 1


def _say(message: str) -> None:
    """A message on stderr, if anybody is there: after a hang-up the terminal is gone."""
    with contextlib.suppress(OSError):
        if len(message) > _MAX_CHARACTERS:
            message = f"{message[:_MAX_CHARACTERS]} ... ({len(message):,} characters)"
        click.echo(printable(message), err=True)


def _make_streams_usable() -> None:
    """Open what is closed, and write as escapes what a terminal's encoding does not know."""
    sys.stdout, sys.stderr = (
        open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: PTH123, SIM115
        for stream in (sys.stdout, sys.stderr)
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _let_go_of_closed_streams() -> None:
    """Flush what is left; what nobody reads must not become the interpreter's last complaint."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
