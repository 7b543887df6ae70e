"""Parameters that the user writes between steps: clamped, projected, masked, restored, loaded, averaged over clients."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import TUNING_FREE, Problem, flat, joined, turns
from hypergradient import SGDHD, AdamHD, Additive, Multiplicative

CAPTURABLE = pytest.param(partial(AdamHD, capturable=True), id="AdamHD-capturable")
MASKS = {extent: torch.rand(extent, generator=torch.Generator().manual_seed(5)) < 0.4 for extent in ((32, 20), (3, 32))}

CONSTRAINTS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda w: w.clamp(-0.05, 0.05),
    "norm": lambda w: w * (1 / w.norm(dim=1, keepdim=True)).clamp(max=1.0),
    "mask": lambda w: w * MASKS[tuple(w.shape)],
}
WAYS: dict[str, Callable[[nn.Parameter, Tensor], Any]] = {
    "in place": lambda w, value: w.copy_(value),
    "data": lambda w, value: w.data.copy_(value),
    "new data": lambda w, value: setattr(w, "data", value),
}


class Net(nn.Module):
    """A small net, and a problem for it; with a constraint that is part of it, weights are used as that makes them."""

    def __init__(self, constraint: Callable[[Tensor], Tensor] = lambda w: w) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.constraint = nn.Linear(20, 32), nn.Linear(32, 3), constraint
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(1024, 20, generator=generator)
        self.y = (self.x @ torch.randn(20, 3, generator=generator) + torch.randn(1024, 3, generator=generator) / 2).argmax(1)

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter]:
        return self.first.weight, self.second.weight

    def loss(self, rows: Tensor | slice = slice(None)) -> Tensor:
        hidden = nn.functional.linear(self.x[rows], self.constraint(self.first.weight), self.first.bias).tanh()
        return nn.functional.cross_entropy(
            nn.functional.linear(hidden, self.constraint(self.second.weight), self.second.bias), self.y[rows]
        )

    def train_by(self, opt: Any, steps: int, after: Callable[[int], None] = lambda t: None, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        for t in range(steps):
            rows = torch.randint(1024, (64,), generator=generator)
            opt.zero_grad()
            self.loss(rows).backward()
            opt.step()
            with torch.no_grad():
                after(t)


def mean_log_lr(opt: Any) -> float:
    lrs = [math.log(float(row["lr"])) for row in opt.summary()]
    return sum(lrs) / len(lrs)


@pytest.mark.parametrize(
    ("make", "constraint", "way"),
    [*turns(turns(TUNING_FREE, list(CONSTRAINTS), 2), ["in place", "data"]), joined(CAPTURABLE, "clamp", "in place")],
)
def test_a_constraint_after_each_step(make: Any, constraint: str, way: str) -> None:
    """Beside the net that has it inside. The average keeps to it; before, α was 5 to 30,000 times that, and the loss 5 to 1e9."""
    inside, outside = Net(CONSTRAINTS[constraint]), Net()
    twin, opt = make(inside.parameters()), make(outside.parameters())

    def keep(_: int) -> None:
        for w in outside.weights:
            WAYS[way](w, CONSTRAINTS[constraint](w))

    inside.train_by(twin, 200)
    outside.train_by(opt, 200, keep)
    assert abs(mean_log_lr(opt) - mean_log_lr(twin)) < math.log(6)
    with opt.averaged(), twin.averaged(), torch.no_grad():
        assert outside.loss() < 1.3 * inside.loss()
        for w in outside.weights:
            torch.testing.assert_close(CONSTRAINTS[constraint](w), w, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("make", "way"), turns(TUNING_FREE, list(WAYS)))
def test_a_mask_that_comes_late(make: Any, way: str) -> None:
    net = Net()
    opt = make(net.parameters())
    found = []

    def prune(t: int) -> None:
        if t == 148:
            found.append(mean_log_lr(opt))
        for w in net.weights if t >= 150 else ():
            WAYS[way](w, CONSTRAINTS["mask"](w))

    net.train_by(opt, 300, prune)
    assert abs(mean_log_lr(opt) - found[0]) < math.log(5)
    with opt.averaged(), torch.no_grad():
        assert net.loss() < 0.3  # it was 0.4 to 30
        assert all(torch.equal(CONSTRAINTS["mask"](w), w) for w in net.weights)


@pytest.mark.parametrize("make", [*TUNING_FREE, CAPTURABLE])
def test_rows_that_are_put_back(make: Any) -> None:
    """As an embedding's that is given by hand, and is to stay: its average does."""
    torch.manual_seed(0)
    table, head = nn.Parameter(torch.randn(10, 8)), nn.Linear(8, 3)
    ids = torch.randint(10, (300, 5))
    y = (table[ids].mean(1) @ torch.randn(8, 3)).argmax(1).detach()
    opt = make([table, *head.parameters()])
    given = table[:4].detach().clone()
    for _ in range(150):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(head(table[ids].mean(1)), y)
        loss.backward()
        opt.step()
        with torch.no_grad():
            table[:4] = given
    assert loss < 0.5
    assert mean_log_lr(opt) < math.log(1_000)  # SGD's; it was 1e10
    with opt.averaged():
        torch.testing.assert_close(table[:4], given, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", TUNING_FREE)
def test_averages_of_clients(make: Any) -> None:
    """Two that each train alone, and are given the mean of both every 20 steps, beside one that is trained alone.

    Each mean takes some of the way back, and so of what momentum is here: the loss is 1.2 to 2.4 times that.
    """
    alone, clients = Net(), [Net(), Net()]
    single, opts = make(alone.parameters()), [make(net.parameters()) for net in clients]
    alone.train_by(single, 240)
    for turn in range(12):
        for k, (net, opt) in enumerate(zip(clients, opts, strict=True)):
            net.train_by(opt, 20, seed=2 * turn + k)
        both = [net.state_dict() for net in clients]
        mean = {name: (x + both[1][name]) / 2 for name, x in both[0].items()}
        for net in clients:
            net.load_state_dict(mean)
    for net, opt in zip(clients, opts, strict=True):
        assert abs(mean_log_lr(opt) - mean_log_lr(single)) < math.log(5)
        with opt.averaged(), single.averaged(), torch.no_grad():
            assert net.loss() < 3 * alone.loss()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_loaded_takes_its_average_along(dtype: torch.dtype) -> None:
    problem = Problem(dtype)
    opt = AdamHD(problem.parameters())
    problem.train(opt, 30)
    p = problem.parameters()[0]
    for shift in (0.0, 2.0):  # the first is seen, and a copy kept from then on
        with torch.no_grad():
            p.add_(shift)
        problem.train(opt, 1)
    z = opt.state[p]["trace"].clone()
    away = 3 * z.sign() * (z != 0)
    with torch.no_grad():
        p.sub_(away.to(dtype))
    with opt.averaged():
        pass
    assert torch.equal(opt.state[p]["trace"], z), "away from the average"
    with torch.no_grad():
        p.add_(2 * z.abs().max())  # into it, where z > 0, and past it
    with opt.averaged():
        pass
    assert torch.equal(opt.state[p]["trace"], torch.where(z > 0, 0, z))


@pytest.mark.parametrize("make", [*TUNING_FREE, CAPTURABLE])
def test_what_nobody_writes_has_no_copy(make: Any) -> None:
    """Nor do evaluation, checkpoints, another optimizer's step and gradients that are not finite look like an edit."""
    problem, own = Problem(), nn.Linear(3, 3)
    opt, other = make(problem.groups()), torch.optim.SGD(own.parameters())
    for t in range(25):
        problem.train(opt, 1, start=t)
        opt.train()
        with opt.averaged():
            saved = copy.deepcopy(problem.model.state_dict())
        other.step()
        assert opt.state_dict()["state"]
    assert saved
    assert not opt.edits.copies
    with torch.no_grad():
        problem.parameters()[2].mul_(1.5)
    problem.train(opt, 1, start=25)
    assert list(opt.edits.copies) == problem.parameters()[2:3]


def test_the_first_false_alarm_is_the_last() -> None:
    """As where an EMA is put into the model for evaluation, and taken out again."""
    problem, twin = Problem(), Problem()
    opt, other = AdamHD(problem.parameters()), AdamHD(twin.parameters())
    problem.train(opt, 2)
    twin.train(other, 2)
    for t in range(2, 70):
        if t % 4 == 2:
            kept = copy.deepcopy(problem.model.state_dict())
            problem.model.load_state_dict({name: x + 1 for name, x in kept.items()})
            problem.model.load_state_dict(kept)
        assert problem.train(opt, 1, start=t) == twin.train(other, 1, start=t)
    assert torch.equal(flat(problem.parameters()), flat(twin.parameters()))


@pytest.mark.parametrize("rule", [Additive(1e-4), Multiplicative(0.01)], ids=["additive", "multiplicative"])
def test_rules_without_an_average_look_at_nothing(rule: Any) -> None:
    problem = Problem()
    opt = SGDHD(problem.parameters(), lr=0.1, rule=rule, horizon=5)
    for t in range(5):
        problem.train(opt, 1, start=t)
        with torch.no_grad():
            problem.parameters()[0].clamp_(-0.01, 0.01)
    assert (opt.edits.steps, opt.edits.copies) == (0, {})


def test_edits_beside_a_compiled_step() -> None:
    net, twin = Net(), Net()
    opt, other = AdamHD(net.parameters()), AdamHD(twin.parameters())
    compiled = torch.compile(lambda: opt.step(), backend="aot_eager", fullgraph=True)

    class Compiled:
        zero_grad, step = opt.zero_grad, staticmethod(compiled)

    def keep(_: int) -> None:
        for w in (*net.weights, *twin.weights):
            w.clamp_(-0.05, 0.05)

    net.train_by(Compiled, 20)
    assert not opt.edits.copies
    twin.train_by(other, 20)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
    net.train_by(Compiled, 60, keep)
    assert set(net.weights) <= opt.edits.copies.keys()
    with opt.averaged():
        assert all(float(w.detach().abs().max()) < 0.0501 for w in net.weights)
