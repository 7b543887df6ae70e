"""Without a learning rate, beside tuned ones and beside others who promise that: which runs, what is measured, the table."""

import csv
import io
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from .config import PEERS, TITLES, Config, LabError
from .curves import vary
from .data import Data
from .engine import Summary
from .store import FORMAT, Folder, History
from .sweep import folder_of
from .train import Run

#: What the workloads train on, and how --data names it.
DATA = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}


@dataclass(frozen=True)
class Workload:
    """A model on data, and how long it trains.

    Args:
        title: how figures name it.
        data: what the lab makes, or a key of DATA.
        options: of Config.
    """

    title: str
    data: str
    options: Mapping[str, Any]


def _mnist(batch_size: int, epochs: int, title: str) -> Workload:
    return Workload(title, "mnist", {"model": "mlp", "hidden": 128, "batch_size": batch_size, "epochs": epochs})


WORKLOADS = {
    "digits": Workload("Digits, network", "digits", {"model": "mlp", "hidden": 100, "batch_size": 64, "epochs": 15}),
    "quadratic": Workload("Quadratic, condition 1e4", "quadratic", {"model": "linear", "batch_size": 100, "epochs": 300}),
    "regression": Workload("Noisy regression, batch 16", "regression", {"model": "linear", "batch_size": 16, "epochs": 5}),
    "logreg": Workload("MNIST, logistic regression", "mnist", {"model": "logreg", "epochs": 5}),
    "mnist": _mnist(128, 4, "MNIST, network"),
    "mnist-16": _mnist(16, 1, "MNIST, network, batch 16"),
    "mnist-1024": _mnist(1024, 6, "MNIST, network, batch 1,024"),
    "mnist-long": _mnist(16, 8, "MNIST, network, 30,000 steps"),
    "cifar": Workload("CIFAR-10, network", "cifar10", {"model": "mlp", "hidden": 128, "epochs": 4, "limit": 20_000}),
    "cifar-cnn": Workload("CIFAR-10, CNN, batch norm", "cifar10", {"model": "cnn-bn", "epochs": 4, "limit": 10_000}),
    "text": Workload("Characters, transformer", "text", {"model": "transformer", "batch_size": 32, "epochs": 2}),
}

#: The workloads of --quick, which need no file.
QUICK = ("digits", "quadratic", "regression")

#: The optimizers that are tuned, and what they are called without a learning rate.
BASES = {"adam": "Adam", "sgdn": "SGD, Nesterov"}
OURS = {"adam": "AdamHD, no lr", "sgdn": "SGDHD, Nesterov, no lr"}

#: The learning rates of the grid, and those that are given to ours.
GRID = (*(float(f"{k}e{power}") for power in range(-6, 0) for k in (1, 3)), 1.0)
GIVEN = tuple(10.0**power for power in range(-6, 0))

#: What a method's base optimizer is, whose best constant learning rate its losses are divided by.
BASE_OF = {"dadapt-sgd": "sgdn", "dog": "sgdn", "sgd": "sgdn"}


def chosen(names: str | None, quick: bool) -> dict[str, Workload]:
    """The workloads of ``--workload A,B``; all of them, or those of ``--quick``, for None.

    Raises:
        LabError: there is no such workload.
    """
    wanted = names.split(",") if names else QUICK if quick else [*WORKLOADS]
    for name in wanted:
        if name not in WORKLOADS:
            raise LabError(f"--workload must be one or more, with commas, of {', '.join(WORKLOADS)}, got {name!r}")
    return {name: WORKLOADS[name] for name in dict.fromkeys(wanted)}


def data_of(given: str | None) -> dict[str, str]:
    """What ``--data mnist=PATH,cifar10=PATH`` gives; Hub ids for the others.

    Raises:
        LabError: it is written otherwise.
    """
    found = dict(DATA)
    for entry in given.split(",") if given else []:
        name, equals, place = entry.partition("=")
        if name not in DATA or not equals:
            raise LabError(f"--data must be {' and '.join(f'{name}=FOLDER' for name in DATA)} with a comma between, got {entry!r}")
        found[name] = place
    return found


def configs_of(workload: Workload, data: Mapping[str, str], seeds: int, quick: bool, device: str) -> list[Config]:
    """The runs of a workload: first what is tuned, then the others."""
    place = data.get(workload.data, workload.data)
    configs: list[Config] = []
    for seed in range(1, seeds + 1):
        base = Config(place, **{**workload.options, "seed": seed, "device": device, "weight_decay": 0.0, "final": True})
        grid = GRID[::2] if quick else GRID
        tuned: list[dict[str, Any]] = [
            {"optimizer": name, "schedule": schedule, "lr": lr} for name in BASES for schedule in ("constant", "cosine") for lr in grid
        ]
        fixed: list[dict[str, Any]] = [{"optimizer": "adam", "lr": 1e-3}, {"optimizer": "sgd", "lr": 1e-2}]
        fixed += [{"optimizer": f"{name}-hd", "lr": 1e-3} for name in BASES]
        peers: list[dict[str, Any]] = [{"optimizer": name, "lr": 0.0} for name in PEERS]
        ours: list[dict[str, Any]] = [
            {"optimizer": f"{name}-hd", "rule": "tuning-free", "lr": lr} for name in BASES for lr in (0.0, *GIVEN)
        ]
        configs += [vary(base, hypergrad_lr=None, **options) for options in (*tuned, *fixed, *peers, *ours)]
    return list(dict.fromkeys(configs))


@dataclass(frozen=True)
class Result:
    """One run: losses are infinite where it diverged."""

    workload: str
    method: str
    base: str
    kind: str
    lr: float
    seed: int
    train: float
    valid: float

    @property
    def failed(self) -> bool:
        return math.isinf(self.train)


#: Kinds of results, and what legends call them: the grids, ours without and with a learning rate, and the others.
LABELS = {"constant": "constant", "cosine": "cosine decay", "ours": "tuning-free, no lr", "given": "tuning-free from that lr"}
KINDS = (*LABELS, "other")


def result(options: Mapping[str, Any], summary: Mapping[str, Any]) -> Result:
    """A run's result from its options and its summary, as they are stored."""
    optimizer, lr, rule = str(options["optimizer"]), float(options["lr"]), options["rule"]
    base = BASE_OF.get(optimizer, optimizer.removesuffix("-hd"))
    base = base if base in BASES else "adam"
    adapts = optimizer.endswith("-hd")
    kind = "other"
    if adapts and rule == "tuning-free":
        kind = "given" if lr else "ours"
    elif optimizer in BASES:
        kind = str(options["schedule"])
    losses = [summary.get("final_train_loss"), summary.get("valid_loss")]
    train, valid = (float(x) if isinstance(x, int | float) and math.isfinite(x) else math.inf for x in losses)
    return Result(workload_of(options), method_of(optimizer, kind, lr), base, kind, lr, int(options["seed"]), train, valid)


def method_of(optimizer: str, kind: str, lr: float) -> str:
    """How the table names a method."""
    family = optimizer.removesuffix("-hd")
    if kind in ("constant", "cosine"):
        return f"{BASES[family]}, {kind}"
    if kind in ("ours", "given"):
        return OURS[family] if kind == "ours" else f"{OURS[family].removesuffix(', no lr')}, lr = {lr:g}"
    if optimizer in PEERS:
        return PEERS[optimizer]
    return f"{TITLES[optimizer]}, lr = {lr:g}" if optimizer == family else f"{TITLES[optimizer]}, additive"


def workload_of(options: Mapping[str, Any]) -> str:
    """The title of the workload that a run belongs to; its model where it is none of them."""
    for workload in WORKLOADS.values():
        own = asdict(Config()) | {"epochs": None} | dict(workload.options)
        if all(options.get(name) == own[name] for name in ("model", "hidden", "batch_size", "epochs", "limit")):
            return workload.title
    return str(options.get("model"))


@dataclass(frozen=True)
class Row:
    """A line of the table. Losses are medians over the seeds, and the lowest of them for a grid; infinite where most seeds failed.

    rho, rho_cos: over the lowest of the base optimizer's grid with a constant learning rate, with cosine decay. worst: the largest rho
    of the runs from the learning rates GIVEN, for ours alone. time: of a training step, over that of torch's Adam. bytes_per_parameter:
    of the optimizer's state. failures: runs of this method that failed, of ``runs``.
    """

    workload: str
    method: str
    train: float
    valid: float
    rho_train: float
    rho_valid: float
    rho_cos_train: float
    rho_cos_valid: float
    worst_train: float | None
    worst_valid: float | None
    time: float | None
    bytes_per_parameter: float | None
    failures: int
    runs: int


#: The columns that are averaged over workloads.
SPREAD = ("train", "valid", "rho_train", "rho_valid", "rho_cos_train", "rho_cos_valid")


def rows(results: Iterable[Result], costs: Mapping[str, Any]) -> list[Row]:
    """The table: for each workload the two bases with their grids, ours, and the others.

    Args:
        results: of all runs that have ended.
        costs: what ``measure`` gave, by workload and method.
    """
    works: dict[str, list[Result]] = {}
    for found in results:
        works.setdefault(found.workload, []).append(found)
    table = []
    for work, own in works.items():
        lowest = {
            (base, kind): best([x for x in own if x.base == base and x.kind == kind]) for base in BASES for kind in ("constant", "cosine")
        }
        methods: dict[str, list[Result]] = {}
        for found in sorted(own, key=lambda x: KINDS.index(x.kind)):
            if found.kind != "given":
                methods.setdefault(found.method, []).append(found)
        adam = [x for x in own if x.method == "Adam, constant" and x.lr == 1e-3]
        if adam:
            methods["Adam, lr = 0.001"] = adam
        for method, runs in methods.items():
            base, kind = runs[0].base, runs[0].kind
            train, valid = best(runs)
            rho, rho_cos = ([ratio(train, low[0]), ratio(valid, low[1])] for low in (lowest[base, "constant"], lowest[base, "cosine"]))
            worst: list[float] | list[None] = [None, None]
            if kind == "ours":
                given = [best([x for x in own if x.kind == "given" and x.base == base and x.lr == lr]) for lr in lrs(own, base)]
                worst = [max((ratio(x[i], lowest[base, "constant"][i]) for x in given), default=math.nan) for i in (0, 1)]
            cost = costs.get(work, {}).get(method, {})
            table.append(
                Row(
                    work, method, train, valid, rho[0], rho[1], rho_cos[0], rho_cos[1], worst[0], worst[1],
                    cost.get("time"), cost.get("bytes_per_parameter"), sum(x.failed for x in runs), len(runs),
                )
            )  # fmt: skip
    return table


def lrs(results: Sequence[Result], base: str, kind: str = "given") -> list[float]:
    return sorted({x.lr for x in results if x.kind == kind and x.base == base})


@dataclass(frozen=True)
class OverLr:
    """Final losses, medians over the seeds, over the learning rate of a base optimizer; of one kind of KINDS."""

    base: str
    kind: str
    lr: list[float]
    train: list[float]
    valid: list[float]


def over_lr(results: Sequence[Result]) -> list[OverLr]:
    """The curves of one workload. Ours without a learning rate is level, from one end of the grid to the other."""
    found = []
    for base in BASES:
        for kind in KINDS[:-1]:
            own = [x for x in results if x.base == base and x.kind == kind]
            if own:
                at = lrs(own, base, kind)
                losses = [best([x for x in own if x.lr == lr]) for lr in at]
                at, losses = ([GRID[0], GRID[-1]], losses * 2) if kind == "ours" else (at, losses)
                found.append(OverLr(base, kind, at, *([pair[i] for pair in losses] for i in (0, 1))))
    return found


def best(results: Sequence[Result]) -> list[float]:
    """For training and validation each, the lowest over the learning rates of the median over the seeds; infinite where there is none."""
    by_lr: dict[float, list[Result]] = {}
    for found in results:
        by_lr.setdefault(found.lr, []).append(found)
    return [
        min((statistics.median_high([getattr(x, name) for x in runs]) for runs in by_lr.values()), default=math.inf)
        for name in ("train", "valid")
    ]


#: ρ beyond these ends lies at the edge of the figures.
ENDS = (0.05, 20.0)


def inside(value: float) -> float:
    return min(max(value, ENDS[0]), ENDS[1]) if not math.isnan(value) else ENDS[1]


def ratio(x: float, y: float) -> float:
    return math.nan if math.isinf(x) and math.isinf(y) else x / y if y else math.inf


def geometric_mean(values: Iterable[float]) -> float:
    """Infinite where one of them is."""
    logs = [math.log(max(x, 1e-300)) for x in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


def overall(table: Sequence[Row]) -> list[tuple[Row, Row]]:
    """For each method a row of geometric means over all workloads, and one of the worst; time and bytes are medians in both."""
    lines = []
    for method in dict.fromkeys(row.method for row in table):
        own = [row for row in table if row.method == method]
        values = {name: [getattr(row, name) for row in own] for name in (field.name for field in fields(Row)[2:])}
        known = {name: [x for x in column if x is not None] for name, column in values.items()}
        common: dict[str, Any] = {name: statistics.median(known[name]) if known[name] else None for name in ("time", "bytes_per_parameter")}
        common |= {name: max(known[name], default=None) for name in ("worst_train", "worst_valid")}
        common |= {name: sum(values[name]) for name in ("failures", "runs")}
        common |= {name: geometric_mean(values[name]) for name in SPREAD}
        mean = Row(workload="all", method=method, **common)
        lines.append((mean, replace(mean, **{name: max(values[name]) for name in SPREAD})))
    return lines


def measure(configs: Sequence[Config], data: Data, rounds: int = 15) -> dict[str, dict[str, float]]:
    """What a training step of each method costs on one workload: all of them in turns, medians, over torch's Adam; bytes of its state.

    Args:
        configs: the runs of one workload.
        data: theirs.
        rounds: steps of each that are timed, after three that are not.
    """
    firsts: dict[str, Config] = {}
    for config in configs:
        found = result(config.as_dict(), {})
        method = "Adam, lr = 0.001" if found.method == "Adam, constant" and found.lr == 1e-3 else found.method
        if found.kind != "given":
            firsts.setdefault(method, config)
    runs = {method: Run(config, data) for method, config in firsts.items()}
    spent: dict[str, list[float]] = {method: [] for method in runs}
    for i in range(rounds + 3):
        for method, run in runs.items():
            size, n = run.config.batch_size, len(run.data.train_y)
            indices = torch.arange(i * size, (i + 1) * size) % n
            began = time.perf_counter()
            run.step(indices.to(run.config.device))
            spent[method] += [time.perf_counter() - began] * (i >= 3)
    unit = statistics.median(spent["Adam, constant"])
    return {
        method: {"time": statistics.median(spent[method]) / unit, "bytes_per_parameter": state_bytes(run)} for method, run in runs.items()
    }


def state_bytes(run: Run) -> float:
    """Bytes of an optimizer's state, its param groups and its average, per parameter of the model."""
    seen: dict[int, int] = {}
    own = {id(p) for p in run.model.parameters()}

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if id(value) not in own:
                seen[id(value)] = value.numel() * value.element_size()
        elif isinstance(value, Mapping):
            for x in value.values():
                walk(x)
        elif isinstance(value, list | tuple):
            for x in value:
                walk(x)

    walk([run.opt.state, [{k: v for k, v in group.items() if k != "params"} for group in run.opt.param_groups]])
    if hasattr(run.opt, "averager"):
        walk([*run.opt.averager.av_model.parameters()])
    return sum(seen.values()) / sum(p.numel() for p in run.model.parameters())


def costs_of(folder: Folder) -> dict[str, Any]:
    """What costs.json holds: by workload and method."""
    costs = (folder.read_json("costs.json") or {}).get("costs")
    return costs if isinstance(costs, dict) else {}


def write_costs(folder: Folder, configs: Sequence[Config], data: Mapping[str, Data]) -> None:
    """costs.json: what ``measure`` gives for each workload; what is there already stays."""
    works: dict[str, list[Config]] = {}
    for config in configs:
        works.setdefault(workload_of(config.as_dict()), []).append(config)
    costs = costs_of(folder)
    for title, own in works.items():
        if title not in costs:
            costs[title] = measure(own, data[own[0].data])
            folder.write_json("costs.json", {"format": FORMAT, "costs": costs})


def write_tables(folder: Folder, table: Sequence[Row]) -> list[Path]:
    """compare.csv with all columns, and compare.md for people."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    writer.writerows(["" if value is None else value for value in asdict(row).values()] for row in table)
    folder.write("compare.csv", lambda file: file.write_text(text.getvalue()))
    folder.write("compare.md", lambda file: file.write_text(page(table)))
    return [folder.path / "compare.csv", folder.path / "compare.md"]


def page(table: Sequence[Row]) -> str:
    """The tables as Markdown: all workloads together, then each."""
    heads = "training / validation loss | ρ | ρ_cos | worst ρ, lr given | time | bytes | failures |"
    lines = [f"| method | {heads}", "|---|---|---|---|---|---|---|---|"]
    for mean, worst in overall(table):
        told = [f"{x} (at worst {y})" if i in (2, 3) else x for i, (x, y) in enumerate(zip(cells(mean), cells(worst), strict=True))]
        lines.append(f"| {' | '.join(told)} |")
    for work in dict.fromkeys(row.workload for row in table):
        lines += ["", f"## {work}", "", f"| method | {heads}", "|---|---|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(cells(row))} |" for row in table if row.workload == work]
    return "\n".join(lines) + "\n"


def say(table: Sequence[Row]) -> Table:
    """What the command closes with: a line for each method over all workloads."""
    told = Table(
        box=box.SIMPLE_HEAD, title="Validation loss, and over that of the best constant learning rate (ρ) and cosine decay (ρ_cos)"
    )
    told.add_column("method", no_wrap=True)
    for name in ("geometric mean", "ρ training", "worst", "ρ validation", "worst", "ρ_cos validation", "worst", "failed"):
        told.add_column(name, justify="right")
    for mean, worst in overall(table):
        values = [getattr(row, name) for name in ("rho_train", "rho_valid", "rho_cos_valid") for row in (mean, worst)]
        shown = [f"{value:.2f}" if value < 100 else f"{value:.3g}" for value in (mean.valid, *values)]
        told.add_row(mean.method, *shown, f"{mean.failures} of {mean.runs}")
    return told


def cells(row: Row) -> list[str]:
    """A row's values as text: method, losses, ρ, ρ_cos, worst ρ, time, bytes, failures."""

    def pair(x: float | None, y: float | None, form: str) -> str:
        shown = ("–" if math.isnan(value) else format(value, ".3g" if value >= 100 else form) for value in (x, y) if value is not None)
        return " / ".join(shown) or "–"

    return [
        row.method,
        pair(row.train, row.valid, ".4g"),
        pair(row.rho_train, row.rho_valid, ".2f"),
        pair(row.rho_cos_train, row.rho_cos_valid, ".2f"),
        pair(row.worst_train, row.worst_valid, ".2f"),
        "–" if row.time is None else f"{row.time:.2f}",
        "–" if row.bytes_per_parameter is None else f"{row.bytes_per_parameter:.1f}",
        f"{row.failures} of {row.runs}",
    ]


def results_of(configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Result]:
    return [result(config.as_dict(), summary.as_dict()) for config, summary in zip(configs, summaries, strict=True)]


def write(folder: Folder, configs: Sequence[Config], summaries: Sequence[Summary]) -> list[Path]:
    """Tables and figures; returns the files."""
    from . import compare_plots, plots

    results = results_of(configs, summaries)
    table = rows(results, costs_of(folder))
    works = dict.fromkeys(row.workload for row in table)
    curves = {work: over_lr([x for x in results if x.workload == work]) for work in works}
    ours: dict[str, list[tuple[str, History]]] = {work: [] for work in works}
    for config, found in zip(configs, results, strict=True):
        if found.kind == "ours":
            ours[found.workload].append((found.base, folder_of(folder.path, config).history()))
    files = write_tables(folder, table)
    for name, figure in (
        ("compare-rho", compare_plots.rho(table)),
        ("compare-lr", compare_plots.loss_over_lr(curves)),
        ("compare-alpha", compare_plots.alpha_over_time(ours)),
    ):
        files += plots.save(figure, folder, name)
    return files
