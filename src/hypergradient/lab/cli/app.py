"""The command ``hypergradient``: its commands by name, each imported when it is called, and what an error looks like."""

import codecs
import gc
import os
import sys
import unicodedata
from typing import Any

from cyclopts import App, CycloptsError, Parameter, Token
from pydantic import ValidationError

import hypergradient

from ..errors import LabError, complain, told

#: Where each command is, and what the list of them says of it.
COMMANDS = {
    "demo": ("experiments", "Any learning rate or none, and the paper's six optimizers: digits, no download, a minute."),
    "train": ("train", "Train one model. The defaults are the paper's settings."),
    "sensitivity": ("experiments", "Curves from learning rates 1e-1 ... 1e-6: SGD, Adam and their HD versions."),
    "tuning": ("experiments", "Curves from learning rate 1e-3: SGD, SGDN, Adam and their HD versions."),
    "heatmap": ("experiments", "Iterations until a training loss is reached, over α0 × β."),
    "tower": ("experiments", "Towers of adaptation: the final training loss over α0 × β for each height."),
    "sweep": ("experiments", "Any grid over any option of train, with seeds as an axis."),
    "compare": ("compare", "Without a learning rate, on fifty workloads, beside tuned optimizers and others."),
    "runs": ("runs", "List, filter, compare and delete the runs of a folder."),
    "report": ("report", "Write the report of a folder again: one page for the browser."),
}


def from_file(app: App, commands: Any, arguments: Any) -> None:
    """The options of ``--config FILE`` for those that are not given."""
    from pathlib import Path

    from ..sweeps.grid import axes_of, options_of

    config, _, _ = arguments.match("--config")
    for token in config.tokens[:1]:
        for name, values in axes_of(Path(token.value), options_of(Path(token.value))).items():
            if len(values) > 1:
                raise LabError(f"{token.value}: {name} has {len(values)} values: give one, or use hypergradient sweep {token.value}")
            argument, _, _ = arguments.match(f"--{name.replace('_', '-')}")
            if not argument.tokens:
                argument.append(Token(keyword=name, value=str(values[0]), source=token.value))


app = App(
    name="hypergradient",
    help="Hypergradient descent: train with a learning rate that adapts itself, and reproduce the paper (Baydin et al., ICLR 2018).",
    version=f"hypergradient {hypergradient.__version__}",
    default_parameter=Parameter(negative=""),
)
for i, (name, (room, says)) in enumerate(COMMANDS.items()):
    own: dict[str, Any] = {"config": from_file} if name == "train" else {}
    app.command(f"hypergradient.lab.cli.{room}:{name}", name=name, help=says, sort_key=i, **own)
app.register_install_completion_command()


def spelled(error: UnicodeError) -> tuple[str, int]:
    """What a terminal of few characters shows for others: Greek letters by their names."""
    assert isinstance(error, UnicodeEncodeError)
    names = [unicodedata.name(character, "?").split() for character in error.object[error.start : error.end]]
    return "".join(name[-1].lower() if name[0] == "GREEK" else "?" for name in names), error.end


def run() -> None:
    """Run the command line: an error the user can mend is one line on stderr and exit status 2."""
    codecs.register_error("spelled", spelled)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="spelled")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    gc.freeze()  # what torch has made stays, and is not to be looked through again and again
    gc.set_threshold(50_000)
    try:
        code = app(sys.argv[1:], exit_on_error=False, print_error=False)
    except LabError as error:
        code = complain(str(error))
    except ValidationError as error:
        code = complain(told(error))
    except CycloptsError as error:
        code = complain(f"{refused(error)} (see hypergradient --help)")
    sys.exit(code if isinstance(code, int) else 0)


def refused(error: CycloptsError) -> str:
    """A line for what the command line could not be read as."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ValidationError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return told(cause, error.argument.name if error.argument is not None else "")
    return str(error)
