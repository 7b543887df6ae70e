"""How a step processes tensors: pieces of large ones, packs of small ones, torch's kernels; and its peak memory."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from benchmarks.timing import peak_bytes
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cases import Problem, flat
from hypergradient import SGDHD, AdamHD, AdamWHD, Multiplicative, TuningFree
from hypergradient.directions import SGD, Adam
from hypergradient.fused import SMALL
from hypergradient.runner import BLOCK, Copies, plan_packs


@given(st.lists(st.integers(0, 3 * SMALL)))
def test_parts_are_all_tensors_in_order(sizes: list[int]) -> None:
    found = plan_packs(sizes)
    assert sorted(i for part in found for i in part) == list(range(len(sizes)))
    for part in found:
        assert part == sorted(part)
        assert len(part) == 1 or sum(sizes[i] for i in part) <= BLOCK
        assert all(sizes[i] < SMALL for i in part) or len(part) == 1
    packs = [part for part in found if sizes[part[0]] < SMALL]
    assert all(sum(sizes[i] for i in [*a, *b]) > BLOCK for a, b in pairwise(packs))  # no more than are needed


def test_a_pack_copies_what_is_asked_for_and_writes_back_what_was_written() -> None:
    columns = {name: [torch.full((2, 3), float(i)).t(), torch.full((4,), float(i))] for i, name in enumerate("abc")}
    pack = Copies(columns, packed=True)
    assert set(pack) == set("abc")
    assert "a" in pack
    assert "d" not in pack
    pack["a"].add_(pack["b"])
    pack.write_back()
    assert set(pack.made) == {"a", "b"}
    assert [x.tolist() for x in columns["a"]] == [[[1.0] * 2] * 3, [1.0] * 4]
    assert [x._version for name in "bc" for x in columns[name]] == [0] * 4


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        (SGDHD, {}),
        (SGDHD, {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
        (SGDHD, {"momentum": 0.9, "maximize": True}),
        (AdamHD, {"weight_decay": 0.01, "betas": (0.8, 0.99), "eps": 1e-6}),
        (AdamHD, {"maximize": True}),
        (AdamWHD, {"weight_decay": 0.1}),
        (AdamWHD, {"weight_decay": 0.1, "maximize": True, "scope": "tensor"}),
    ],
    ids=str,
)
def test_kernels_of_torch_do_what_advance_does(monkeypatch: pytest.MonkeyPatch, ours: Any, options: dict) -> None:
    one, other = Problem(sizes=(160, 128, 8, 3)), Problem(sizes=(160, 128, 8, 3))
    opt = ours(one.groups(), lr=1e-3, hypergrad_lr=1e-6, **options)
    twin = ours(other.groups(), lr=1e-3, hypergrad_lr=1e-6, **options)
    one.train(opt, 10)
    for direction in (SGD, Adam):
        monkeypatch.setattr(direction, "fused_step", lambda *_: False)
    other.train(twin, 10)
    torch.testing.assert_close(flat(one.parameters()), flat(other.parameters()), rtol=0, atol=1e-12)
    assert opt.hypergradients == pytest.approx(twin.hypergradients, rel=1e-9)


@pytest.mark.parametrize(
    ("ours", "options"), [(SGDHD, {"momentum": 0.9}), (AdamHD, {}), (AdamWHD, {})], ids=lambda x: getattr(x, "__name__", "")
)
def test_torchs_kernels_count_their_changes(ours: Any, options: dict) -> None:
    w = nn.Parameter(torch.ones(4))
    opt = ours([w], lr=0.1, hypergrad_lr=1e-3, **options)
    loss = (w**2).sum()
    w.grad = torch.ones(4)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        (SGDHD, {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "rule": Multiplicative(0.01)}),
        (AdamHD, {"rule": TuningFree()}),
        (AdamWHD, {"lr": 1e-3, "rule": Multiplicative(0.01), "horizon": 5}),
        (AdamHD, {"lr": 1e-3, "adapt": {"betas": (Multiplicative(0.01), Multiplicative(0.01)), "lr": Multiplicative(0.01)}}),
    ],
    ids=["nesterov", "tuning", "adamw", "adapt"],
)
@pytest.mark.parametrize("shapes", [[(4000, 1000)], [(800, 1000)] * 5, [(100, 100)] * 400], ids=["one", "five", "many"])
def test_a_step_takes_no_more_memory_than_some_pieces(ours: Any, options: dict, shapes: list) -> None:
    params = [nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes]
    opt = ours(params, **options)
    for _ in range(3):
        for p in params:
            p.grad = p.detach() * 0.5
        opt.step()
    most = peak_bytes(opt.step)
    assert 0 < most <= 10 * BLOCK * 4  # four million parameters are 16 MB, fifteen pieces
