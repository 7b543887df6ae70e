"""Learning rates on several ranks equal those of one process with the whole batch, and are the same on every rank, bit for bit."""

from pathlib import Path

import pytest
import ranks


@pytest.mark.parametrize("spread", ranks.SPREADS)
def test_ranks_move_as_one_process(spread: str) -> None:
    """Every optimizer; and a gradient that is not finite on one rank is skipped by all."""
    found = ranks.run(ranks.SPREADS[spread][0], "compare", list(ranks.OPTIMIZERS), spread)
    assert {name: (own["apart None"], own["apart 7"], own["skipped"]) for name, own in found.items()} == dict.fromkeys(found, (0, 0, 1))
    assert {name: own["off"] for name, own in found.items() if not own["off"] < 1e-6} == {}
    assert not any(own["edited"] for own in found.values()), "what spreads parameters does not look like an edit"


@pytest.mark.parametrize("name", ["tensor", "group"])
def test_zero_redundancy_optimizer(name: str) -> None:
    (found,) = ranks.run(2, "zero", [name]).values()
    assert found["apart"] == 0
    assert found["off"] < 1e-8


@pytest.mark.parametrize("name", ["AdamHD", "SGDHD-nesterov", "AdamWHD-adapt"])
def test_checkpoint_of_2_ranks_goes_on(name: str, tmp_path: Path) -> None:
    ranks.run(2, "checkpoint", [name], f"save {tmp_path}")
    for world in (1, 2, 3):
        found = ranks.run(world, "checkpoint", [name], f"load {tmp_path}")[name]
        assert found["apart"] == 0
        assert found["off"] < 1e-6


def test_what_else_people_do() -> None:
    found = ranks.run(2, "others", ["meta", "compiled", "refused", "adapt", "clamped"])
    assert found["refused"] == {"refused": 1}
    assert found["adapt"] == {"told": 1}
    clamped = found["clamped"]
    assert (clamped["apart"], clamped["edited"]) == (0, 3)
    assert clamped["outside"] <= 0.0625
    assert clamped["alpha"] < 1
    for name in ("meta", "compiled"):
        assert found[name]["apart"] == 0
        assert found[name]["off"] < 1e-6
