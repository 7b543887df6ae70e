"""What strangers type: hundreds of bad inputs, each of which ends in one line and exit status 2, with nothing trained or written."""

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_cli import call

NAN = ("nan", "inf", "-inf")
WORDS = ("", "x", "1,2", "0x10", "None", "[1]", "{}", "1;2")
WHOLE = (*WORDS, *NAN, "0", "-1", "1.5", "1e3", str(2**64), "9" * 400)
LONG = "a" * 60_000

#: Options with values that are wrong for them, wherever a command has them.
VALUES = {
    "--batch-size": WHOLE,
    "--epochs": WHOLE,
    "--limit": WHOLE,
    "--seed": (*WORDS, *NAN, "-1", "1.5", str(2**32), str(2**64)),
    "--seeds": WHOLE,
    "--cap": WHOLE,
    "--processes": WHOLE,
    "--hidden": (*WHOLE, "1000000000000", "16385"),
    "--iterations": WHOLE,
    "--threshold": (*WORDS, *NAN, "1e999"),
    "--device": ("", "meta", "toaster", "cpu:x", "cuda:-1", "cuda:99", LONG),
    "--data": ("", "nowhere", "no/such/folder", "/no/such/folder", "file.txt", "~", ".", "..", "/proc", "empty", LONG, "a/b/c", "-"),
    "--model": ("", "tree", "LOGREG", "a:b:c", "a b:c", ":f", "m:", "no_such_module:f", "os:getcwd", "os:path", "sys:exit", "cnn,", LONG),
    "--hypergrad-data": ("", "test", "Validation"),
    "--output": ("", "file.txt", "file.txt/run", "/proc/run", LONG),
    "--log": ("", "paper", "tensorboard,paper", ","),
    "--engine": ("", "magic", "Auto"),
    "--hypergrad-lr": (*WORDS, *NAN, "-1"),
}

#: Of each command what makes it quick, and the options that it shares with others.
TRAINING = ("--batch-size", "--limit", "--device", "--hidden")
COMMANDS = {
    "train": ("--seed", "--epochs", "--iterations", "--threshold", "--data", "--model", "--hypergrad-data", "--output", "--log", *TRAINING),
    "demo": ("--seed", "--device", "--output"),
    "heatmap --data digits": ("--cap", "--epochs", "--seeds", "--threshold", "--model", "--output", "--log", "--engine", *TRAINING),
    "tower --quick": ("--epochs", "--seeds", "--data", "--output", "--engine"),
    "sensitivity --data digits": ("--epochs", "--seeds", "--hypergrad-lr", "--output", "--engine"),
    "tuning --data digits --model logreg": ("--epochs", "--seeds", "--output", "--log"),
    "sweep grid.toml": ("--epochs", "--seeds", "--limit", "--device", "--data", "--model", "--output", "--engine"),
    "compare --quick": ("--seeds", "--processes", "--output"),
}

#: Optimizers, a line each.
CALLS = """
tree
sgd-hd
sgd
SGDHD(
SGDHD)
SGDHD(lr=)
SGDHD(lr=1
SGDHD lr=1
1
'SGDHD'
None
SGDHD,Adam
SGDHD(lr=-1)
SGDHD(lr=nan)
SGDHD(lr='1')
SGDHD(lr=True)
SGDHD(lr=(1,))
SGDHD(lr=[0.1])
SGDHD(lr=[])
SGDHD(lr={})
SGDHD(lr=1e999)
SGDHD(lr=1e300)
SGDHD(lr=1, lr=2)
SGDHD(rate=1)
SGDHD(*[1])
SGDHD(**{'lr': 1})
SGDHD(lr=1+1)
SGDHD(lr=__import__('os'))
__import__('os').system('touch here')
os.system('touch here')
SGDHD(lr=(lambda: 1)())
open('here', 'w')
exec('1')
SGDHD(lr=f'1')
SGDHD(params=1)
SGDHD(1, 2)
SGDHD(lr=x)
SGDHD(lr=b'1')
SGDHD(lr=1j)
SGDHD(lr=...)
SGDHD(momentum=-1)
SGDHD(lr=1, momentum=1e300)
SGDHD(nesterov=True)
SGDHD(weight_decay=-1)
SGDHD(lr=1, weight_decay=1e308)
SGDHD(rule=1)
SGDHD(rule=Additive())
SGDHD(rule=Additive(-1))
SGDHD(rule=Additive)
SGDHD(rule='Additive')
SGDHD(rule=Rule(1))
SGDHD(hypergrad_lr=1, rule=Additive(1))
SGDHD(hypergrad_lr='x')
SGDHD(rule=Adapted(1, Additive(1)))
SGDHD(rule=Multiplicative(1, 2, 3))
SGDHD(adapt=1)
SGDHD(adapt={'speed': Additive(1)})
SGDHD(adapt={1: 2})
SGDHD(scope='x')
SGDHD(signal=1)
SGDHD(signal=Signal(2))
SGDHD(horizon=0)
SGDHD(lr_bounds=(1, 0))
SGDHD(lr_bounds=1)
SGDHD(lr=5, lr_bounds=(0, 1))
SGDHD(capturable='x')
AdamHD(betas=1)
AdamHD(betas=(2, 2))
AdamHD(betas=(0.9,))
AdamHD(eps=-1)
AdamHD(momentum=0.9)
HDM(lr=-1)
HDM(momentum=2)
Adam(lr=-1)
Adam(lr='x')
Adam(rate=1)
Adam(betas=0.9)
Adam(fused=True, foreach=True)
LBFGS
SparseAdam
Optimizer
SGD(lr=1e300)
Hypergradient
Hypergradient(1)
Hypergradient(Additive(1))
Hypergradient(ASGD())
Hypergradient(SGDHD())
Hypergradient(LBFGS())
Prodigy(1)
Prodigy(rate=1)
DoG(x=1)
Mechanic(lr=-1)
"""
MORE_CALLS = ("", " ", LONG, "(" * 900, "f(" * 300 + ")" * 300, "SGDHD(\x00)", "-" * 1500 + "1")

NUMBERS = ("0", "-1", "true", '"x"', "1.5", "[]", "nan")
TEXTS = ("1", "true", "[]", '""', "[1]", "{}", '"\\u0000"')
GRIDS = [
    *(f"{name} = {value}" for name in ("epochs", "batch_size", "limit", "iterations", "hidden") for value in NUMBERS),
    *(f"{name} = {value}" for name in ("data", "model", "device", "optimizer") for value in TEXTS),
    *(f"seed = {value}" for value in ("-1", "4294967296", "[1, -1]", "[[1]]", "{ a = 1 }", "1979-05-27", "false")),
    *(f"threshold = {value}" for value in ("nan", "inf", '"x"', "true")),
    *("lr = 0.1", "final = true", "optimiser = 1", "data_digest = 1", "epochs = 1\nepochs = 2", "a.b = 1", "[epochs]\na = 1", "= 1", "x"),
    *("\x00", "batch-size = 1\nbatch_size = 2", 'optimizer = "SGD(lr=[])"', 'optimizer = ["SGD", "sgd"]', 'hypergrad_data = "x"'),
    *("[" * 3000, 'optimizer = "Adam"\nhypergrad_data = "validation"'),
]

#: Commands, a line each.
OTHERS = """
fly
train stray
train --learning-rate 1
train --lr 1
train --epochs
train --epochs 1 --epochs 2
train --resume
train -x
train --no-resume
train --resume=x
train --json 1
train --data-digest 1
train --config
train --config nowhere.toml
train --rule x
train --config empty
train --config list.toml
train --config bad.toml
train --config file.txt
train --config=
train --quick
train --data text
train --model transformer
train --data quadratic --model cnn
train --model vgg16
train --limit 5 --hypergrad-data validation
train --optimizer Adam --hypergrad-data validation
train --optimizer SGDHD --hypergrad-data validation
train --final
train --height 2
sweep
sweep nowhere.toml
sweep empty
sweep file.txt
sweep bad.toml
sweep grid.toml grid.toml
sweep grid.toml --address auto
sweep grid.toml --engine batched --model cnn
heatmap --engine ray --address 127.0.0.1:1
heatmap --threshold
demo stray
tower --quick --optimizer Adam
tower --quick --heights x
tower --quick --heights -1
tower --quick --heights 1.5
tower --quick --heights ,
tower --quick --heights 101
tower --quick --lr 0
tower --quick --lr x
tower --quick --lr nan
tower --quick --lr 1,,2
tower --level up
tower --quick --hypergrad-lr -1
tower --quick --level-lr x
tower --quick --level-lr up=1
tower --quick --level-lr nan
tower --level
tuning --data digits,digits
tuning --data tree=digits
tuning --model ,
tuning --model logreg,tree --data digits
sensitivity --data x=y=z
compare --workload tree
compare --family tree
compare --workload digits --held-out
compare --methods --held-out
compare --data nowhere
compare --workload ,
compare --development --held-out
compare --processes 0
compare --processes x
compare --data mnist=
compare --workload=
report
report nowhere
report empty
report file.txt
report a b
runs
runs nowhere
runs file.txt
runs empty --where x
report ''
"""


def rows() -> Iterator[tuple[str, ...]]:
    for command, options in COMMANDS.items():
        for option in options:
            some = VALUES[option] if command == "train" else VALUES[option][:: max(1, len(VALUES[option]) // 4)]
            yield from ((*command.split(), option, value) for value in some)
    yield from (("train", "--optimizer", text) for text in (*CALLS.strip().splitlines(), *MORE_CALLS))
    yield from (("sweep", f"grid-{i}.toml") for i in range(len(GRIDS)))
    yield from (tuple(word.replace("''", "") for word in words.split(" ")) for words in OTHERS.strip().splitlines())


ROWS = [*rows()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the rows name."""
    root = tmp_path_factory.mktemp("place")
    (root / "empty").mkdir()
    for name, text in {
        "file.txt": "mine",
        "grid.toml": "epochs = 1",
        "bad.toml": "= 1",
        "list.toml": "epochs = [1, 2]",
        "many.toml": "epochs = 1\nseed = ["
        + ", ".join(map(str, range(101)))
        + ']\noptimizer = "SGD(lr=['
        + ", ".join(["1e-3"] * 100)
        + '])"',
        **{f"grid-{i}.toml": text for i, text in enumerate(GRIDS)},
    }.items():
        (root / name).write_text(text)
    return root


def content(root: Path) -> set[Path]:
    return {path.relative_to(root) for path in root.rglob("*")}


def too_slow(*_: object) -> None:
    raise TimeoutError("took more than 4 s")


def accepted(*_: object) -> None:
    raise AssertionError("was accepted, and a run began")


def test_there_are_hundreds() -> None:
    assert len(set(ROWS)) >= 400


@pytest.mark.parametrize("part", range(8))
def test_bad_inputs_are_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, place: Path, part: int) -> None:
    monkeypatch.chdir(place)
    for begins in ("runs.train.Run.go", "runs.chunk.Chunk.go", "compare.workers.Workers.submit"):
        monkeypatch.setattr(f"hypergradient.lab.{begins}", accepted)
    signal.signal(signal.SIGALRM, too_slow)
    before, wrong = content(place), []
    for words in itertools.islice(ROWS, part, None, 8):
        signal.alarm(4)  # what is silent for so long is as bad
        try:
            code = call(monkeypatch, *words)
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
        out, err = capfd.readouterr()
        told = err.startswith("hypergradient: ") and len(err.splitlines()) == 1 and len(err) < 700
        if code != 2 or out or not told or content(place) != before:
            wrong.append((" ".join(words)[:100], code, out[:100], err[:200], content(place) - before))
            if content(place) != before:
                before = content(place)
    signal.alarm(0)
    assert not wrong, "\n" + "\n".join(map(str, wrong))
