"""Learning rates on several ranks are those of one process with the whole batch, and the same on every rank to the bit."""

from functools import cache
from pathlib import Path

import pytest
import ranks

ALL = list(ranks.OPTIMIZERS)


@cache
def spread_over(spread: str) -> dict[str, dict[str, float]]:
    return ranks.run(ranks.SPREADS[spread][0], "compare", ALL, spread)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("spread", ranks.SPREADS)
def test_ranks_move_as_one_process(spread: str, name: str) -> None:
    found = spread_over(spread)[name]
    assert found["apart None"] == found["apart 7"] == 0
    assert found["off"] < 1e-6
    assert found["skipped"] == 1


@pytest.mark.parametrize("name", ["tensor", "group"])
def test_zero_redundancy_optimizer(name: str) -> None:
    (found,) = ranks.run(2, "zero", [name]).values()
    assert found["apart"] == 0
    assert found["off"] < 1e-8


@pytest.fixture(scope="module", params=["AdamHD", "SGDHD-nesterov", "AdamWHD-adapt"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHECKPOINT", str(folder))
        ranks.run(2, "checkpoint", [request.param], "save")
    return request.param, folder


@pytest.mark.parametrize("world", [1, 2, 3])
def test_checkpoint_of_2_ranks_goes_on(saved: tuple[str, Path], world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name, folder = saved
    monkeypatch.setenv("CHECKPOINT", str(folder))
    found = ranks.run(world, "checkpoint", [name], "load")[name]
    assert found["apart"] == 0
    assert found["off"] < 1e-6


def test_what_else_people_do() -> None:
    found = ranks.run(2, "others", ["meta", "compiled", "refused"])
    assert found["refused"] == {"refused": 1}
    for name in ("meta", "compiled"):
        assert found[name]["apart"] == 0
        assert found[name]["off"] < 1e-6
