"""docs/coming-from/: the benchmark that runs its blocks, and what the pages say of the stored runs."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import pytest
import torch
from benchmarks import coming_from

DOCS = Path(__file__).parents[2] / "docs"
RUNS = json.loads((DOCS / "results" / "coming-from.json").read_text())["pages"]

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_tables_are_made_of_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of every page runs, here for one epoch and one seed, and lands in its page."""
    shutil.copytree(DOCS / "coming-from", tmp_path / "coming-from")
    monkeypatch.setattr(coming_from, "SEEDS", (1,))
    monkeypatch.setattr(coming_from, "setup", partial(coming_from.setup, epochs=1))
    coming_from.main(docs=tmp_path)
    found = json.loads((tmp_path / "results" / "coming-from.json").read_text())["pages"]
    for page, rows in coming_from.PAGES.items():
        text = (tmp_path / "coming-from" / f"{page}.md").read_text()
        assert [*found[page]] == [*rows]
        assert all(0 < runs[0]["train"] < 3 and 0 <= runs[0]["last"] <= runs[0]["highest"] for runs in found[page].values())
        assert coming_from.text(found[page]) in text


@pytest.mark.parametrize("page", coming_from.PAGES)
def test_pages_are_what_the_data_say(page: str) -> None:
    assert coming_from.text(RUNS[page]) in (DOCS / "coming-from" / f"{page}.md").read_text()
    assert [*RUNS[page]] == [*coming_from.PAGES[page]]


def test_a_change_that_changes_nothing_is_refused() -> None:
    page = "```python\nopt = Adam(lr=1e-3)\n```"
    assert coming_from.block(page, coming_from.Row(0, {"lr=1e-3": "lr=1"})).endswith("opt = Adam(lr=1)\n")
    with pytest.raises(ValueError, match="'lr=1e-4' is not in"):
        coming_from.block(page, coming_from.Row(0, {"lr=1e-4": "lr=1"}))


def every(page: str, row: str) -> list[dict[str, float]]:
    return list(RUNS[page][row])


def middle(page: str, row: str, key: str) -> float:
    return median(run[key] for run in every(page, row))


def test_alpha_falls_as_well_as_rises_and_that_of_prodigy_and_d_adaptation_does_not() -> None:
    for page, other in (("prodigy", "Prodigy"), ("d-adaptation", "DAdaptAdam")):
        assert all(run["last"] == run["highest"] for run in every(page, other))
        assert all(run["last"] < 0.8 * run["highest"] for run in every(page, "AdamWHD"))


def test_what_the_pages_say_of_their_tables() -> None:
    ours = {key: middle("prodigy", "AdamWHD", key) for key in ("train", "valid")}
    assert all(middle("prodigy", "Prodigy", key) < ours[key] for key in ours), "Prodigy is better here"
    tuned, *rest = (f"AdamW, cosine, lr={lr}" for lr in ("1e-2", "1e-4", "1e-3", "1e-1"))
    assert middle("adam-cosine", tuned, "valid") < ours["valid"] < min(middle("adam-cosine", row, "valid") for row in rest)
    assert ours["train"] < middle("adam-cosine", tuned, "train")
    free = [row for row in RUNS["schedule-free"] if row != "AdamWHD"]
    assert ours["valid"] < min(middle("schedule-free", row, "valid") for row in free)
    assert middle("schedule-free", "AdamWScheduleFree, lr=0.025", "train") < ours["train"] / 5
    assert 1.15 < middle("schedule-free", "AdamWScheduleFree, lr=0.025", "valid") / ours["valid"] < 1.25
    assert middle("gdtuo", "AdamHD", "train") < middle("gdtuo", "AdamHD, lr and betas adapted", "train")


def test_gdtuo_and_the_same_tower_here_run_alike() -> None:
    """They differ in where the second moment starts, and in rounding that a ReLU network makes more of."""
    theirs, ours = every("gdtuo", "gdtuo.Adam / gdtuo.SGD"), every("gdtuo", "AdamHD, lr and betas adapted")
    for one, other in zip(theirs, ours, strict=True):
        assert one["last"] == pytest.approx(other["last"], rel=0.1)
        assert one["valid"] == pytest.approx(other["valid"], rel=0.1)
