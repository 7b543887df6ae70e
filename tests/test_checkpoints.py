"""Checkpoints of an earlier version resume bit for bit (tests/data/make_checkpoints.py says which, and how it wrote them)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import flat
from checkpoint_rows import END, ROWS, SAVED, arithmetic, copied, reached
from hypergradient.checkpoint import convert_momentum

FILE = Path(__file__).parent / "data" / "checkpoints.pt"
WRITTEN = torch.load(FILE, weights_only=True)

#: Those of the tuning-free rule as it was in version 0.1, when gradients were taken at the iterate.
OLDER = [name for name, row in WRITTEN["rows"].items() if "largest" in row["optimizer"]["param_groups"][0].get("memory", ())]
SAME = [name for name in ROWS if name not in OLDER]

pytestmark = pytest.mark.filterwarnings("ignore:.* skipped a step", "ignore:weight_decay is adapted on the training loss")


@pytest.fixture(scope="module")
def bits() -> bool:
    """Whether this machine rounds as the one that wrote the file; bits are compared there alone."""
    return torch.equal(arithmetic(), WRITTEN["arithmetic"])


def assert_same(found: Any, expected: Any, rel: float = 0.0, within: float = 0.0, at: str = "") -> None:
    """Equal in every bit, or numbers to ``rel`` and parameters ``within``, wherever the numbers lie then."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for name, value in expected.items():
            assert_same(found[name], value, rel, within, f"{at} {name}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), at
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, rel, within, f"{at} {i}")
    elif isinstance(expected, Tensor) and (rel == 0 or expected.dim() > 0):
        assert found.dtype == expected.dtype, at
        assert torch.equal(found, expected) if rel == 0 else torch.allclose(found, expected, rtol=0, atol=within), at
    elif rel == 0:
        assert (type(found), found) == (type(expected), expected), at
    else:
        assert float(found) == pytest.approx(float(expected), rel=rel, abs=1e-15), at


def check(name: str, problem: Any, opt: Any, bits: bool) -> None:
    """Bit for bit on the host; on the device the order of operations is not promised, on another machine that of additions is not."""
    row = ROWS[name]
    if not bits:
        tolerance = (1e-3, 1e-5) if row.dtype == torch.float32 else (1e-9, 1e-11)
    else:
        tolerance = (1e-12, 1e-14) if row.capturable else (0.0, 0.0)
    assert_same(reached(problem, opt), WRITTEN["rows"][name]["reached"], *tolerance, at=name)


def test_file_has_the_rows() -> None:
    assert list(WRITTEN["rows"]) == list(ROWS)
    assert FILE.stat().st_size < 300_000


def test_machine_rounds_as_the_one_that_wrote_the_file(bits: bool) -> None:
    if not bits:
        pytest.skip("this processor or this torch rounds otherwise: checkpoints are compared to 1e-9 here, not bit for bit")


@pytest.mark.parametrize("name", SAME)
def test_checkpoint_of_an_earlier_version_goes_on(name: str, bits: bool) -> None:
    row = ROWS[name]
    problem, opt = row.load(WRITTEN["rows"][name])
    row.train(problem, opt, SAVED, END)
    check(name, problem, opt, bits)


@pytest.mark.parametrize("name", SAME)
def test_checkpoint_of_an_earlier_version_is_saved_again(name: str, bits: bool, tmp_path: Path) -> None:
    """Loaded as it was, and once more between the steps, from files of plain data."""
    row, between = ROWS[name], SAVED + 2
    saved, file = WRITTEN["rows"][name], tmp_path / "checkpoint.pt"
    for start, end in ((SAVED, SAVED), (SAVED, between), (between, END)):
        torch.save(copied({key: saved[key] for key in ("model", "optimizer")}), file)
        problem, opt = row.load(torch.load(file, weights_only=True))
        row.train(problem, opt, start, end)
        saved = row.save(problem, opt)
    check(name, problem, opt, bits)


@pytest.mark.parametrize("name", OLDER)
def test_older_rule_goes_on_from_its_average(name: str) -> None:
    """The average is the one that was saved, before a step and, but for what that adds, after it; and training goes on."""
    saved, row = WRITTEN["rows"][name], ROWS[name]
    problem, opt = row.load(saved)
    state = [opt.state[p] for p in problem.parameters()]
    expected = torch.cat([(p.detach() + own.get("trace", 0.0)).reshape(-1) for p, own in zip(problem.parameters(), state, strict=True)])
    iterate = flat(problem.parameters()).clone()
    with opt.averaged():
        torch.testing.assert_close(flat(problem.parameters()), expected, rtol=0, atol=0)
    checkpoint = copied({"model": dict(problem.model.state_dict()), "optimizer": opt.state_dict()})
    problem, opt = row._replace(evaluates=False).load(checkpoint)
    convert_momentum(opt)
    with opt.averaged():
        torch.testing.assert_close(flat(problem.parameters()), expected, rtol=0, atol=1e-6)
    ways = [opt.state[p].get("trace", torch.zeros_like(p)) for p in problem.parameters()]
    b = max(opt.setup.direction.interpolation(group) for group in opt.param_groups)
    torch.testing.assert_close(flat(problem.parameters()) - b / (1 - b) * flat(ways), iterate, rtol=0, atol=1e-6)
    row.train(problem, opt, SAVED, END)
    assert flat(problem.parameters()).isfinite().all()


@pytest.mark.parametrize("name", ROWS)
def test_rows_show_something(name: str) -> None:
    """A row whose hyperparameters stood still would hold whatever became of the state."""
    saved = WRITTEN["rows"][name]
    before, after = saved["optimizer"]["param_groups"], saved["reached"]["groups"]
    assert any(old[name] != value for old, new in zip(before, after, strict=True) for name, value in new.items())
    start = torch.cat([x.reshape(-1) for x in saved["model"].values()])
    assert not torch.equal(start, saved["reached"]["parameters"])
