"""The command ``hypergradient``: its subcommands, each imported when it is called, and how errors are printed."""

import codecs
import gc
import os
import sys
import unicodedata
from typing import Any

from cyclopts import App, CycloptsError, Parameter, Token
from pydantic import ValidationError

import hypergradient

from ..errors import LabError, report_error, validation_message

#: The module of each command, and its summary in ``hypergradient --help``.
COMMANDS = {
    "demo": ("experiments", "See it work in about a minute on scikit-learn's digits; no download."),
    "train": ("train", "Train one model with any optimizer. Defaults: the paper's settings."),
    "sensitivity": ("experiments", "The paper's sensitivity figure: curves from initial learning rates 1e-1 to 1e-6."),
    "tuning": ("experiments", "The paper's tuning figure: six optimizers from learning rate 1e-3."),
    "heatmap": ("experiments", "The paper's heat map: iterations to reach a training loss, over α0 × β."),
    "tower": ("experiments", "Towers of hypergradients: final training loss over α0 × β for each height."),
    "sweep": ("experiments", "Run a grid over any options of train, read from a TOML file."),
    "compare": ("compare", "Benchmark the tuning-free optimizers on fifty workloads against tuned baselines."),
    "runs": ("runs", "List, filter, compare or delete the runs in a folder."),
    "report": ("report", "Rebuild the HTML report of an experiment or a run."),
}


def from_file(app: App, commands: Any, arguments: Any) -> None:
    """Take the options that are not on the command line from ``--config FILE``."""
    from pathlib import Path

    from ..sweeps.grid import axes_of, options_of

    config, _, _ = arguments.match("--config")
    for token in config.tokens[:1]:
        for name, values in axes_of(Path(token.value), options_of(Path(token.value))).items():
            if len(values) > 1:
                raise LabError(f"{token.value}: {name} has {len(values)} values: give one value, or run hypergradient sweep {token.value}")
            argument, _, _ = arguments.match(f"--{name.replace('_', '-')}")
            if not argument.tokens:
                argument.append(Token(keyword=name, value=str(values[0]), source=token.value))


app = App(
    name="hypergradient",
    help="Hypergradient descent: train with a learning rate that adapts online, and reproduce the paper (Baydin et al., ICLR 2018).",
    version=f"hypergradient {hypergradient.__version__}",
    default_parameter=Parameter(negative=""),
)
for i, (name, (module, summary)) in enumerate(COMMANDS.items()):
    own: dict[str, Any] = {"config": from_file} if name == "train" else {}
    app.command(f"hypergradient.lab.cli.{module}:{name}", name=name, help=summary, sort_key=i, **own)
app.register_install_completion_command()


def transliterate(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler for terminals that lack a character: Greek letters become their names, others a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    names = [unicodedata.name(character, "?").split() for character in error.object[error.start : error.end]]
    return "".join(name[-1].lower() if name[0] == "GREEK" else "?" for name in names), error.end


def run() -> None:
    """Run the command line. An error that the user can fix is printed as one line to stderr, with exit status 2."""
    codecs.register_error("transliterate", transliterate)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="transliterate")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    gc.freeze()  # torch's objects live as long as the process: do not scan them at every collection
    gc.set_threshold(50_000)
    try:
        code = app(sys.argv[1:], exit_on_error=False, print_error=False)
    except LabError as error:
        code = report_error(str(error))
    except ValidationError as error:
        code = report_error(validation_message(error))
    except CycloptsError as error:
        code = report_error(f"{usage_error(error)} (see hypergradient --help)")
    sys.exit(code if isinstance(code, int) else 0)


def usage_error(error: CycloptsError) -> str:
    """The message for a command line that cannot be parsed."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ValidationError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return validation_message(cause, error.argument.name if error.argument is not None else "")
    return str(error)
