"""`mnemoscope`: nouns, then verbs. torch is imported inside commands only.

Exit codes: 0 ok, 1 failed, 2 usage, 3 unsupported model, 4 a check or gate did not hold,
130 interrupted and resumable.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from ..models.errors import MnemoscopeError
from .commands import (
    app_command,
    binding,
    demo_command,
    heads,
    models,
    neurons,
    prune,
    retrieval,
    runs,
    study,
    sweep,
    trace,
)
from .exit_codes import INTERRUPTED, exit_code_of
from .output import say

app = typer.Typer(
    name="mnemoscope",
    help="Where did the model's answer come from? Memory in language models, measured.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(models.app, name="models")
app.add_typer(heads.app, name="heads")
app.add_typer(neurons.app, name="neurons")
app.add_typer(retrieval.app, name="retrieval")
app.add_typer(trace.app, name="trace")
app.add_typer(binding.app, name="binding")
app.add_typer(prune.app, name="prune")
app.add_typer(sweep.app, name="sweep")
app.add_typer(runs.app, name="runs")
app.add_typer(study.app, name="study")
app.command("app")(app_command.app)
app.command("demo")(demo_command.demo)


def main() -> None:
    """Run the command line and turn errors into one sentence and an exit code."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer turns every kind of interruption into this code
            say("interrupted: run the same command again to go on; what is finished is kept.")
        sys.exit(code)
    except MnemoscopeError as error:
        say(f"error: {error}")
        sys.exit(exit_code_of(error))
    except typer.TyperException as error:
        usage: Any = error  # typer's usage errors show themselves, but its types do not say so
        usage.show()
        sys.exit(usage.exit_code)


if __name__ == "__main__":
    main()
