"""The command line: parses, calls one function, prints. No logic.

Exit codes: 0 done, 1 something ran and failed, 2 bad input, 141 nobody reads the output any more. An error is one
line; a traceback only with ``--debug``.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from fwbench import __version__, notes
from fwbench.cli import streams

# command -> module of this package that defines it; a module is imported only when its command runs or is helped
COMMANDS = {
    "problems": "problems",
    "solvers": "solvers",
    "run": "runs",
    "certify": "proofs",
    "verify": "proofs",
    "report": "reports",
    "results": "reports",
    "compare": "reports",
    "cite": "reports",
    "trace": "runs",
    "registry": "proofs",
    "extract": "problems",
    "export": "problems",
    "import-solution": "proofs",
    "check-solver": "solvers",
    "prune": "models",
    "recover": "models",
    "perplexity": "models",
    "evaluate": "models",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return getattr(import_module(f"fwbench.cli.{COMMANDS[name]}"), name.replace("-", "_"))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.message} Commands: {', '.join(COMMANDS)}.", ctx) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fwbench")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Benchmark suite for pruning masks of language model layers: real problems, every solver, proven gaps.

    A solver is a spec such as 'wanda+fw(steps=1000,step=linesearch)+swap'; quote the parentheses for your shell.
    """
    ctx.with_resource(notes.heard(lambda sentence: _say(f"note: {sentence}")))


def main() -> None:
    """Entry point of the ``fwbench`` script."""
    debug = "--debug" in sys.argv[1:]
    streams.prepare()
    try:
        code = cli.main(standalone_mode=False) or 0
        sys.stdout.flush()
        sys.exit(code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say("stopped; what had finished is kept")
        sys.exit(130)
    except click.ClickException as error:
        _say(error.format_message())
        sys.exit(2)
    except streams.Unread:
        sys.exit(141)  # as where SIGPIPE ends a process
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ValueError | OSError) or type(error).__module__.startswith("fwbench"):
            _say(" ".join(str(error).split()))  # bad input, said in one line by the code that met it
            sys.exit(2)
        _say(f"internal error, {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)")
        sys.exit(1)


def _say(line: str) -> None:
    click.echo(f"fwbench: {line}", err=True)
