"""The report: what it makes of a folder, whole or not; what strangers may write there; and how the page behaves in a browser."""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plotly.offline import get_plotlyjs

from hypergradient.lab.compare.runs import Job, Result
from hypergradient.lab.errors import LabError
from hypergradient.lab.experiments import charts, flat, heatmap, tower
from hypergradient.lab.experiments.curves import sensitivity, tuning
from hypergradient.lab.experiments.run import run_of
from hypergradient.lab.pages import figures, report, tables
from hypergradient.lab.runs.config import Config, paper
from hypergradient.lab.runs.data import load
from hypergradient.lab.runs.files import FORMAT, provenance
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.runs.train import train
from hypergradient.lab.sweeps.sweep import folder_of, sweep
from test_compare import made

SHORT = Config("digits", limit=256, epochs=2, batch_size=64)
GRID = [replace(SHORT, optimizer=paper(title, lr), seed=seed) for title in ("SGD", "SGD-HD") for lr in (1e-3, 0.1) for seed in (1, 2)]
#: Some runs of both figures, and one learning rate that diverges.
FLAT = [run for run in flat.configurations(SHORT) if run.call.options.get("lr", 1.0) in (0.01, 1.0)]
DEMO = [*FLAT, *(replace(run, optimizer=paper("SGDN", 1e20)) for run in FLAT if run.optimizer == paper("SGDN", 1.0)), *GRID[::4]]
TUNING_FREE = replace(SHORT, optimizer="AdamHD(weight_decay=0.0001)")
HOSTILE = {"model": "x:<img src=x onerror=alert(1)>", "data": "/home/me/</script><script>alert(2)<!--"}


def fill(root: Path, kind: str, configs: list[Config]) -> Path:
    sweep(configs, load("digits", "cpu"), root)
    Folder(root).start_experiment(kind, configs)
    return root


def strange(root: Path, config: Config = SHORT, **options: Any) -> Path:
    """A run that this machine could not make, with the history of one that it could."""
    train(config, load("digits", "cpu"), Folder(root))
    Folder(root).write_json("config.json", {"format": FORMAT, "config": config.as_dict() | options, **provenance()})
    return root


def comparison(root: Path, results: Iterable[Result], **about: Any) -> Path:
    Folder(root).write_json("experiment.json", {"format": FORMAT, "experiment": "compare", **provenance()} | about)
    for found in results:
        Folder(root).append_json("runs.jsonl", found.as_dict())
    return root


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One report of each kind."""
    root = tmp_path_factory.mktemp("stores")
    capped = replace(SHORT, iterations=30, threshold=1.8, epochs=30)
    roots = {
        "tuning": fill(root / "tuning", "tuning", tuning(replace(SHORT, hidden=16), dict.fromkeys(("logreg", "mlp"), "digits"), 2, 1)),
        "sensitivity": fill(root / "sensitivity", "sensitivity", sensitivity(SHORT, {"logreg": "digits"}, 1e-3, 1)),
        "heatmap": fill(root / "heatmap", "heatmap", heatmap.grid(capped, 1)),
        "tower": fill(root / "tower", "tower", tower.grid(SHORT, "SGD-HD", "0,1,2", "0.1,0.01", "1e-3,1e30", "both", None)),
        "sweep": fill(root / "sweep", "sweep", GRID),
        "demo": fill(root / "demo", "demo", DEMO),
        "compare": comparison(root / "compare", made()),
        "train": strange(root / "train"),
        "tuning-free": strange(root / "tuning-free", TUNING_FREE),
        "hostile": strange(root / "hostile", **HOSTILE),
    }
    assert [report.write(path) for path in roots.values()] == [path / "report.html" for path in roots.values()]
    return roots


def page_of(root: Path) -> str:
    """The page without Plotly."""
    text = report.write(root).read_text()
    return "".join(text.split(get_plotlyjs()))


def unscripted(page: str) -> str:
    return page.split('id="data">')[1].split("</script>")[0]


def figures_of(root: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(unscripted(page_of(root)))
    return found


def small(root: Path) -> Path:
    return fill(root, "sweep", GRID[:2])


def first_run(root: Path) -> Path:
    return folder_of(root, GRID[0]).path


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(shutil.rmtree, r"store contains neither an experiment .* nor a run .*: give an output folder", id="nothing"),
        pytest.param(lambda root: (root / "experiment.json").unlink(), "contains neither an experiment", id="no-experiment"),
        pytest.param(lambda root: (root / "experiment.json").write_text("{"), r"experiment.json cannot be read", id="damaged"),
        pytest.param(lambda root: (root / "experiment.json").write_text("{}"), "experiment.json lists no configurations", id="empty"),
        pytest.param(
            lambda root: (root / "experiment.json").write_text('{"configurations": [1]}'), "lists no configurations", id="no-options"
        ),
        pytest.param(lambda root: (root / "experiment.json").write_text('{"format": 9}'), "newer hypergradient", id="newer"),
        pytest.param(lambda root: (first_run(root) / "status.json").write_text("["), "status.json cannot be read", id="status"),
        pytest.param(lambda root: (first_run(root) / "history.parquet").write_text("?"), "history.parquet cannot be read", id="history"),
        pytest.param(
            lambda root: shutil.copy(first_run(root) / "history.parquet", first_run(root) / "epochs.parquet"),
            "epochs.parquet cannot be read",
            id="columns",
        ),
        pytest.param(
            lambda root: (first_run(root) / "status.json").write_text('{"status": "finished", "digests": {"history": "0", "epochs": "0"}}'),
            r"epochs.parquet cannot be read \(its content does not match its digest\): remove its folder",
            id="another-history",
        ),
    ],
)
def test_a_folder_that_cannot_be_reported(tmp_path: Path, spoil: Any, message: str) -> None:
    root = small(tmp_path / "store")
    spoil(root)
    with pytest.raises(LabError, match=message) as error:
        report.write(root)
    assert "\n" not in str(error.value)
    assert not (root / "report.html").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda run: None, ["Runs finished: 2 of 2, of which none diverged"], id="whole"),
        pytest.param(
            lambda run: (run / "status.json").unlink(),
            ["Runs finished: 1 of 2", "unfinished"],
            id="unfinished",
        ),
        pytest.param(lambda run: shutil.rmtree(run), ["Runs finished: 1 of 2", "not started"], id="not-started"),
        pytest.param(
            lambda run: [(run / name).unlink() for name in ("status.json", "history.parquet", "epochs.parquet")],
            ["Runs finished: 1 of 2", "unfinished"],
            id="no-history-yet",
        ),
        pytest.param(
            lambda run: (run / "status.json").write_text('{"status": "diverged"}'),
            ["Runs finished: 2 of 2, of which 1 diverged"],
            id="bare",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["sweep", "heatmap", "tower", "sensitivity", "of a later version"])
def test_what_is_there_is_shown(tmp_path: Path, kind: str, spoil: Any, said: list[str]) -> None:
    root = small(tmp_path / "store")
    Folder(root).start_experiment(kind, GRID[:2])
    spoil(first_run(root))
    page = page_of(root)
    assert all(text in page for text in said)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(None, r"runs\.jsonl is missing, as in comparisons of earlier versions: run hypergradient compare", id="earlier"),
        pytest.param("{\n", r"runs\.jsonl cannot be read", id="damaged"),
        pytest.param("[1]\n", r"runs\.jsonl cannot be read \(line 31: it has no workload\)", id="list"),
        pytest.param('{"workload": "cancer"}\n', r"runs\.jsonl cannot be read \(line 31: it has no base\)", id="keys"),
    ],
)
def test_a_comparison_that_cannot_be_reported(tmp_path: Path, line: str | None, message: str) -> None:
    root = comparison(tmp_path, made() if line else [])
    if line:
        with (root / "runs.jsonl").open("a") as file:
            file.write(line)
    with pytest.raises(LabError, match=message):
        report.write(root)


def test_a_comparison_of_strangers(tmp_path: Path) -> None:
    """Text is escaped, and runs of what this version does not know are left out; a torn line is too."""
    odd = Result(Job("<s>cancer", "adam", "ours", None, 1), 1.0, 1.0)
    broken = Result(Job("cancer", "adam", "momo", None, 2), error="</script><img src=x>")
    root = comparison(tmp_path, [*made(), odd, broken], command="</code><s>", versions=["<s>"])
    with (root / "runs.jsonl").open("a") as file:
        file.write('{"workload": "can')
    page = page_of(root)
    assert "Runs finished: 31, of which 5 diverged or failed" in page
    assert not [text for text in ("<img", "<s>", "TypeError: <b>") if text in page]


def test_a_comparison_that_has_just_begun(tmp_path: Path) -> None:
    root = comparison(tmp_path, [next(made())])
    assert "Runs finished: 1, of which none" in page_of(root)


def test_downsampled_over_a_logarithmic_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "POINTS", 5)
    _, by_iteration = figures_of(strange(tmp_path))
    values = by_iteration["runs"][0]["values"]
    assert values["iteration"] == [1, 2, 4, 8]  # of 8: 1, 1.7, 2.8, 4.8, 8
    assert {len(column) for column in values.values()} == {4}


LABELS = [
    pytest.param("tuning", tuning(SHORT, {"logreg": "digits"}, 2, 2), [["SGD"], ["SGD-HD"], ["SGDN"]], id="tuning"),
    pytest.param("sweep", GRID, [["α₀ = 0.001", "SGD"], ["α₀ = 0.001", "SGD"], ["α₀ = 0.1", "SGD"]], id="sweep"),
    pytest.param("sweep", GRID[::4], [["SGD"], ["SGD-HD"]], id="sweep-of-optimizers"),
    pytest.param(
        "sweep",
        [replace(SHORT, optimizer=paper("Adam-HD", lr, beta)) for beta in (1e-7, 1e-6) for lr in (0.1, 0.01)],
        [["α₀ = 0.1", "β = 1e-07"], ["α₀ = 0.01", "β = 1e-07"]],
        id="sweep-of-one",
    ),
    pytest.param(
        "sweep",
        [replace(SHORT, optimizer=paper("SGD-HD", lr, 10.0**-k)) for k in range(7) for lr in (0.1, 0.01)],
        [["β = 1", "α₀ = 0.1"], ["β = 1", "α₀ = 0.01"]],
        id="more-than-stand-beside",
    ),
    pytest.param("sensitivity", sensitivity(SHORT, {"logreg": "digits"}, 1e-3, 1), [["α₀ = 0.1", "baseline"]], id="sensitivity"),
    pytest.param("train", GRID[:1], [["SGD"]], id="train"),
]


@pytest.mark.parametrize(("kind", "configs", "labels"), LABELS)
def test_labels_tell_runs_apart(kind: str, configs: list[Config], labels: list[list[str]]) -> None:
    chips = charts.chips_of(kind, [run_of(config.as_dict()) for config in configs])
    assert [[chip.label for chip in own] for own in chips][: len(labels)] == labels


def test_cells_of_the_heat_map(tmp_path: Path) -> None:
    runs = []
    for call, summary in (
        (paper("SGD", 0.1), {"status": "reached", "iterations": 20}),
        (paper("SGD-HD", 0.1, 1e-3), {"status": "reached", "iterations": 1234}),
        (paper("SGD-HD", 0.1, 1e-2), {"status": "cap", "iterations": 3000}),
        (paper("SGD-HD", 0.1, 0.5), {"status": "reached", "iterations": 7}),
        (paper("SGD-HD", 0.1, 0.9), {}),
    ):
        runs.append(run_of(replace(SHORT, optimizer=call, iterations=3000, threshold=0.3).as_dict(), tmp_path, summary))
    (figure,), legend = figures.figures_of("heatmap", runs)
    adapting, baseline = figure["panels"]
    assert figure["lrs"] == ["10<sup>-1</sup>"]
    assert adapting["betas"] == ["10<sup>-3</sup>", "10<sup>-2</sup>", "0.5", "0.9"]
    assert adapting["cells"] == [[1234], ["> 3,000"], [7], [None]]
    assert adapting["texts"] == [["1,234"], ["> 3,000"], ["7"], [""]]
    assert (baseline["title"], baseline["cells"], baseline["worse"]["x"]) == ("SGD", [[20]], [])
    assert len(adapting["worse"]["x"]) == 3 * 6  # six sides go round two cells
    assert "seed = 1, cap, iterations 3000" in adapting["hover"][1][0]
    assert (legend["scale"]["low"], legend["scale"]["high"]) == ("7", "1,234")
    assert legend["scale"]["label"] == "iterations until a minibatch loss ≤ 0.3"


def history(path: Path, losses: list[float], alpha: list[float]) -> Path:
    """What a run writes, as far as figures read it."""
    path.mkdir(parents=True)
    n = [*range(1, len(losses) + 1)]
    pq.write_table(pa.table({"iteration": n, "loss": losses, "alpha": alpha}), path / "history.parquet")
    pq.write_table(pa.table({"epoch": n, "train_loss": losses, "valid_loss": losses, "alpha": alpha}), path / "epochs.parquet")
    return path


def test_medians_over_seeds_and_their_bands(tmp_path: Path) -> None:
    """One of three ends early, as it reached what was asked for; another diverged, and counts as infinite from then on."""
    kinds = (("finished", [3.0, 2.0, 1.0, 1.0]), ("reached", [5.0, 4.0]), ("diverged", [4.0, 9.0, float("nan")]))
    runs = [
        run_of(replace(SHORT, seed=seed).as_dict(), history(tmp_path / str(seed), losses, [0.1] * len(losses)), {"status": status})
        for seed, (status, losses) in enumerate(kinds)
    ]
    by_epoch, _ = charts.curves("sweep", runs, 100, 100)
    (line,) = by_epoch.lines
    low, high = line.bands["train_loss"]
    assert line.values["epoch"].tolist() == [1, 2, 3, 4]
    assert line.values["train_loss"].tolist() == [4, 4, 1, np.inf]
    assert (low.tolist(), high.tolist()) == ([3, 2, 1, 1], [5, 9, 1, 1])
    assert line.told[-1] == "median of 3 seeds"
    assert "seed" not in " ".join(line.told[:-1])


@pytest.mark.parametrize(
    ("alpha", "scale"),
    [
        pytest.param([1e-6, 0.1], 0.0, id="logarithmic"),
        pytest.param([0.1, 1e-4, -1e-2, 1e-6], pytest.approx(1.5e-5, rel=0.1), id="below-0"),
        pytest.param([0.0, 0.0], None, id="all-0"),
    ],
)
def test_scale_of_learning_rates(tmp_path: Path, alpha: list[float], scale: Any) -> None:
    run = run_of(SHORT.as_dict(), history(tmp_path / "run", [1.0] * len(alpha), alpha), {"status": "finished"})
    _, by_iteration = charts.curves("train", [run], 100, 100)
    assert by_iteration.scale("alpha") == scale
    json.dumps(figures.chart(by_iteration), allow_nan=False)


def test_ticks_on_both_sides_of_0() -> None:
    assert charts.ticks(1e-4, -0.02, 0.5) == [-1e-2, -1e-3, -1e-4, 0, 1e-4, 1e-3, 1e-2, 0.1]
    assert charts.ticks(1e-9, -1e-3, 1.0) == [-1e-3, -1e-6, -1e-9, 0, 1e-9, 1e-6, 1e-3, 1.0]


def test_final_loss_over_the_learning_rate() -> None:
    """The median of the seeds, of which one diverged from the higher learning rate and both of SGD-HD did."""
    runs = []
    for config in GRID:
        wild = config.call.options["lr"] == 0.1 and (config.seed == 2 or config.call.adapts)
        ended = {"status": "diverged"} if wild else {"status": "finished", "train_loss": float(config.seed), "valid_loss": 0.5}
        runs.append(run_of(config.as_dict(), None, ended))
    found = charts.over_lr(runs, 100)
    assert found is not None
    plain, adapting = found.lines
    assert [line.told for line in found.lines] == [["SGD"], ["SGD-HD"]]
    assert plain.values["learning rate"].tolist() == [1e-3, 0.1]
    assert plain.values["train_loss"].tolist() == [2, np.inf]
    assert [band.tolist() for band in plain.bands["train_loss"]] == [[1, 1], [2, 1]]
    assert adapting.values["valid_loss"].tolist() == [0.5, np.inf]
    assert charts.over_lr(runs[:2], 100) is None


def test_what_the_tuning_free_rule_sees(stores: dict[str, Path]) -> None:
    _, by_iteration = figures_of(stores["tuning-free"])
    assert [panel["column"] for panel in by_iteration["panels"]] == ["alpha", "loss", "signal", "noise", "horizon"]
    assert [panel["column"] for panel in figures_of(stores["train"])[1]["panels"]] == ["alpha", "loss"]


def test_of_many_runs_some_are_drawn_and_some_are_listed(tmp_path: Path) -> None:
    """And of many labels some stand in the legend."""
    configs = [replace(SHORT, optimizer=paper("SGD-HD", 1e-3, beta)) for beta in np.linspace(0, 1, 700).tolist()]
    Folder(tmp_path).start_experiment("sweep", configs)
    page = page_of(tmp_path)
    assert "Runs finished: 0 of 700" in page
    assert page.count("<tr>") == 1 + tables.ROWS
    assert "and 200 more: all are in sweep.csv" in page
    assert page.count('aria-pressed="true"') == figures.CHIPS
    assert f"and {figures.RUNS - figures.CHIPS} more</li>" in page
    assert f"Only the first {figures.RUNS} runs are drawn" in page
    assert len(page) < 1e6


@pytest.mark.parametrize("kind", ["train", "sweep", "heatmap", "tower", "demo"])
def test_folders_of_earlier_versions(tmp_path: Path, kind: str) -> None:
    """Of 0.1, in small: a tuning-free run of SGDN-HD; what was left of the others but for a few runs is deleted."""
    root = Path(shutil.copytree(Path(__file__).parent / "data/old" / kind, tmp_path / kind))
    runs = len(list(root.glob("**/config.json")))
    page = page_of(root)
    assert f"Runs finished: {runs} of {runs}," in page
    assert {"train": "SGDN-HD", "sweep": "1e-07", "tower": "Additive(Adapted(0.001, Multiplicative(0.02)))"}.get(kind, "SGD-HD") in page
    assert all(figure["runs"] if "runs" in figure else figure["panels"] for figure in json.loads(unscripted(page)))


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(["sgd"], id="list"),
        pytest.param(None, id="none"),
        pytest.param("SGDHD(lr='<s>', hypergrad_lr=None)", id="text"),
        pytest.param(f"AdamHD(lr=1{'0' * 400}, hypergrad_lr=1{'0' * 400}, nesterov='<s>')", id="beyond-floats"),
        pytest.param("SGDHD(lr=0.1, rule=Additive(Adapted()))", id="tower-of-nothing"),
        pytest.param("SGDHD(lr=0.1, rule=Adapted(Additive(0.1), '<s>'), betas={'<s>': (0.1,)})", id="tower-of-text"),
        pytest.param("SGD(lr=-1)", id="negative"),
        pytest.param("<s>" * 2000, id="long"),
    ],
)
def test_strangers_options(tmp_path: Path, optimizer: Any) -> None:
    odd = {
        "device": "cuda:7",
        "optimizer": optimizer,
        "seed": {},
        "threshold": float("nan"),
        "epochs": True,
        "<s>": [None],
        "limit": 10**400,
    }
    root = strange(tmp_path / "run", **HOSTILE | odd)
    page = page_of(root)
    assert "<img" not in page
    assert "alert(2)" not in page.replace("script&gt;alert(2)&lt;!--", "").replace(r"script\u003ealert(2)\u003c!--", "")
    assert "/home/me" not in page
    assert HOSTILE["model"] in unescape(page)
    for kind in ("tuning", "sensitivity", "heatmap", "tower", "sweep", "demo", "<s>", 'x" onload="'):
        experiment = {"configurations": [SHORT.as_dict() | HOSTILE | odd], "experiment": kind, "versions": ["<s>"], "command": "</code><s>"}
        for written, ended in ((FORMAT, "Runs finished: 1 of 1"), (1, "Runs finished: 0 of 1")):  # an earlier version had other options
            Folder(tmp_path).write_json("experiment.json", experiment | {"format": written})
            page = page_of(tmp_path)
            assert ended in page
            assert not [text for text in ("<img", "<s>", 'x" onload', "<!--") if text in page]


def test_long_names_are_cut(tmp_path: Path) -> None:
    assert "x" * 101 not in page_of(strange(tmp_path, model="x" * 5000, data="x" * 5000, **{"x" * 5000: "x" * 5000}))


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    assert "x:?" in page_of(strange(tmp_path, model="x:\ud800"))


def test_links_are_relative_and_lead_to_the_runs(stores: dict[str, Path]) -> None:
    for kind, root in stores.items():
        if kind == "compare":  # whose table has methods
            continue
        links = [text.split('"')[0] for text in page_of(root).split('href="')[1:]]
        assert len(links) == len(list(root.glob("**/config.json"))), kind
        assert all((root / link / "config.json").exists() and link.startswith("./") for link in links), kind


def until(page: Any, expression: str) -> None:
    """Wait; Playwright's own wait_for_function needs eval, which the page forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"waited in vain for {expression}")


class Visitor:
    """Opens each report once, and notes what its page asks for and complains of."""

    def __init__(self, browser: Any, stores: dict[str, Path]) -> None:
        self.browser, self.stores = browser, stores
        self.pages: dict[str, Any] = {}
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def __call__(self, kind: str) -> Any:
        if kind not in self.pages:
            page = self.pages[kind] = self.browser.new_page(viewport={"width": 1200, "height": 900})
            page.on("request", lambda request: self.requests.append(request.url))
            page.on("console", lambda message: self.complaints.append(message.text))
            page.on("pageerror", lambda error: self.complaints.append(str(error)))
            page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
            page.goto((self.stores[kind] / "report.html").as_uri())
            until(page, "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
        return self.pages[kind]


@pytest.fixture(scope="module")
def visitor(browser: Any, stores: dict[str, Path]) -> Visitor:
    return Visitor(browser, stores)


@pytest.fixture
def visit(visitor: Visitor) -> Iterator[Visitor]:
    """The visitor; at the end no page may have asked for anything but itself, or said anything on the console."""
    yield visitor
    assert visitor.complaints == []
    asked = [url for url in visitor.requests if not url.startswith(("data:", "blob:"))]
    assert asked == [(visitor.stores[kind] / "report.html").as_uri() for kind in visitor.pages]


browsed = pytest.mark.xdist_group("browser")


@browsed
@pytest.mark.parametrize(
    ("kind", "lines", "cells"),
    [
        pytest.param("tuning", 2 * 6 * 5, 0, id="tuning"),
        pytest.param("sensitivity", 36 * 5, 0, id="sensitivity"),
        pytest.param("sweep", 4 * 5 + 2 * 2, 0, id="sweep"),
        pytest.param("demo", 2 * 4 + 3 + 2 * 5, 0, id="demo"),
        pytest.param("train", 5, 0, id="train"),
        pytest.param("tuning-free", 8, 0, id="tuning-free"),
        pytest.param("heatmap", 0, 3 * (6 + 36), id="heatmap"),
        pytest.param("tower", 2 * 3, 3 * 2 * 4, id="tower"),
        pytest.param("hostile", 5, 0, id="hostile"),
    ],
)
def test_page(stores: dict[str, Path], visit: Visitor, kind: str, lines: int, cells: int) -> None:
    page = visit(kind)
    drawn = page.locator(".scatterlayer path.js-line").evaluate_all("lines => lines.filter(l => l.getAttribute('d').length > 9).length")
    assert drawn == lines or not lines  # but what goes round cells
    assert page.locator(".heatmap-label").count() == cells
    rows = len(list(stores[kind].glob("**/config.json")))
    assert page.locator("tbody tr").count() == rows
    assert f"Runs finished: {rows} of {rows}," in page.locator(".state").first.inner_text()
    for width in (400, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        until(page, "plots.every(p => Math.abs(p.querySelector('svg').clientWidth - p.clientWidth) < 2)")  # drawn anew
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("Math.min(...plots.map(plot => plot.clientWidth))") > width / 4


@browsed
def test_page_of_a_comparison(visit: Visitor) -> None:
    """ρ of 5 methods in two panels for two workloads, and for each loss of those two lines, ours level, and a mark."""
    page = visit("compare")
    captions = page.locator("figcaption").all_inner_texts()
    assert captions == ["Final loss over that of the best constant learning rate", "Quadratic", "Logistic regression"]
    assert page.evaluate(SEEN) == [2 * 2, 2 * 4, 2 * 4]
    assert page.locator("tbody tr").count() == 2 * 5
    assert page.locator(".state").inner_text() == "Runs finished: 30, of which 4 diverged or failed"
    assert page.locator("td b").count() == 0  # of an error
    chip = page.get_by_role("button", name="tuned, cosine", exact=True)
    chip.click()
    assert page.evaluate(SEEN) == [2 * 2, 2 * 3, 2 * 3]
    chip.click()
    assert page.evaluate(SEEN) == [2 * 2, 2 * 4, 2 * 4]


@browsed
def test_page_of_the_demo(visit: Visitor) -> None:
    """Runs that diverged are crosses at the top, which their label hides too."""
    page = visit("demo")
    captions = page.locator("figcaption").all_inner_texts()
    assert captions[:3] == [
        "Final loss over the initial learning rate",
        "Learning rates of AdamHD",
        "Logistic regression on digits, by epoch",
    ]
    assert "Validation loss from 3 learning rates, median of 3 seeds: Adam " in page.locator(".state").last.inner_text()
    crosses = "plots[0].data.filter(t => t.marker?.symbol === 'x-thin-open' && t.visible !== false).map(t => [t.x[0], t.y[0]])"
    top = page.evaluate("figures[0].panels.map(panel => panel.ends[1])")
    assert page.evaluate(crosses) == [[1e20, top[0]], [1e20, top[1]]]
    page.get_by_role("button", name="SGD (Nesterov)", exact=True).click()
    assert page.evaluate(crosses) == []
    assert page.evaluate("plots[1].data.map(t => [t.x[0], t.y[0]])")[:2] == [[0, 0.01], [0, 1]]


@browsed
def test_page_of_towers(visit: Visitor) -> None:
    """Grey cells where β = 1e30 diverges, and a legend that hides lines alone."""
    page = visit("tower")
    texts = page.locator(".heatmap-label").all_text_contents()
    assert texts.count("–") == 2 * 2 * 2  # heights 1 and 2, two rules, two α₀
    page.get_by_role("button", name="height 2", exact=True).click()
    until(page, "document.querySelectorAll('.scatterlayer path.js-line').length === 4")
    assert page.locator(".heatmap-label").count() == len(texts)
    page.get_by_role("button", name="height 2", exact=True).click()
    until(page, "document.querySelectorAll('.scatterlayer path.js-line').length === 6")


@browsed
def test_strangers_text_is_text(visit: Visitor) -> None:
    page = visit("hostile")
    assert HOSTILE["model"] in page.locator(".subject").inner_text()
    assert HOSTILE["model"] in page.locator("tbody").inner_text()
    assert page.locator("img, body b").count() == 0
    line = page.locator(".js-line").first.bounding_box()
    page.mouse.move(line["x"], line["y"] + line["height"])
    page.mouse.move(line["x"] + 1, line["y"] + line["height"])
    assert HOSTILE["model"] in page.locator(".hoverlayer").first.text_content()


@browsed
def test_page_forbids_requests_and_scripts(browser: Any, stores: dict[str, Path]) -> None:
    page = browser.new_page()
    broken: list[str] = []
    page.on("console", lambda message: broken.append(message.text))
    page.goto((stores["train"] / "report.html").as_uri())
    page.evaluate("fetch('file:///nowhere').catch(() => 0)")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p id=p onclick=\"document.title = 1\">')")
    page.evaluate("document.getElementById('p').click()")
    assert page.title().startswith("Training run")
    found = {rule for rule in ("default-src", "script-src") if any(rule in text for text in broken)}
    assert found == {"default-src", "script-src"}, broken
    page.close()


def column(page: Any, head: str) -> list[str]:
    at = page.locator("th").all_inner_texts()
    place = next(i for i, text in enumerate(at) if text.split("\n")[0].strip(" ↑↓") == head)
    found: list[str] = page.locator(f"tbody tr td:nth-child({place + 1})").all_inner_texts()
    return found


@browsed
@pytest.mark.parametrize(
    ("head", "key"),
    [
        pytest.param("α₀", float, id="number"),
        pytest.param("validation loss", float, id="loss"),
        pytest.param("accuracy", lambda text: float(text.strip("%")), id="percent"),
        pytest.param("β", lambda text: float(text.replace("–", "inf")), id="missing-last"),
        pytest.param("optimizer", str, id="text"),
    ],
)
def test_table_sorts(visit: Visitor, head: str, key: Any) -> None:
    page = visit("sensitivity")
    button = page.locator("th button", has_text=head)
    before = column(page, head)
    button.focus()
    page.keyboard.press("Enter")
    assert column(page, head) == sorted(before, key=key)
    assert button.locator("..").get_attribute("aria-sort") == "ascending"
    button.click()
    there = sorted((text for text in before if text != "–"), key=key, reverse=True)
    assert column(page, head) == there + ["–"] * before.count("–")
    assert page.locator("th[aria-sort=descending]").count() == 1
    assert page.locator("th[aria-sort=none]").count() == page.locator("th").count() - 1


@browsed
def test_hover_tells_the_configuration(visit: Visitor) -> None:
    page = visit("train")
    line = page.locator(".js-line").first.bounding_box()
    page.mouse.move(line["x"], line["y"] + line["height"])
    page.mouse.move(line["x"] + 1, line["y"] + line["height"])
    told = page.locator(".hoverlayer").first.text_content()
    assert all(text in told for text in ("SGD-HD", "α₀ = 0.001", "β = 0.001", "seed = 1", "epoch 1: 0.0"))
    page = visit("heatmap")
    cell = page.locator(".heatmap-label").first.bounding_box()
    page.mouse.move(cell["x"], cell["y"])
    page.mouse.move(cell["x"] + 5, cell["y"] + 5)
    told = page.locator(".hoverlayer").first.text_content()
    assert all(text in told for text in ("SGD", "α₀ = ", "seed = 1, ", "iterations ", "median: "))


SEEN = "[...document.querySelectorAll('.plot')].map(p => p.data.filter(t => t.visible !== false).length)"


@browsed
def test_legend_hides_runs_in_all_panels(visit: Visitor) -> None:
    page = visit("sensitivity")
    assert page.evaluate(SEEN) == [18 * 3, 18 * 3, 18 * 2, 18 * 2]
    chips = page.locator(".legend button")
    assert chips.all_inner_texts() == [f"α₀ = {10.0**-k:g}" for k in range(1, 7)] + ["baseline", "HD", "HDM (multiplicative)"]
    chips.nth(0).click()
    assert chips.nth(0).get_attribute("aria-pressed") == "false"
    assert page.evaluate(SEEN) == [15 * 3, 15 * 3, 15 * 2, 15 * 2]
    chips.nth(7).dblclick()
    assert page.evaluate(SEEN) == [5 * 3, 5 * 3, 5 * 2, 5 * 2]
    chips.nth(7).dblclick()
    chips.nth(0).click()
    assert page.evaluate(SEEN) == [18 * 3, 18 * 3, 18 * 2, 18 * 2]


@browsed
def test_panels_of_a_column_zoom_together(visit: Visitor) -> None:
    page = visit("train")
    first = page.locator(".plot").first
    box = first.locator(".subplot.xy .drag, .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"], steps=3)
    page.mouse.up()
    until(page, "plots[0].layout.xaxis.range[0] > 1.1")
    before = page.evaluate("plots.map(plot => Object.keys(plot.layout).filter(name => name.startsWith('xaxis')).length)")
    assert before == [1, 1]  # one horizontal axis for all panels
    assert page.evaluate("plots[1].layout.xaxis.range[0]") == 0
