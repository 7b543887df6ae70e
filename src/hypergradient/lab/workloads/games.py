"""Games: the training data depends on the model's actions."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from ..runs.data import Data
from ..runs.models import mlp
from .problem import Order, Problem, Workload, built_in, evaluation, seeded

SIDE, DISCOUNT, EPISODE = 6, 0.9, 20
GOAL = SIDE * SIDE - 1
EPSILON = 0.2


def bandit(seed: int, _: Data | None) -> Problem:
    """A contextual bandit with five arms, by policy gradients; losses are the policy's expected regret."""
    contexts = seeded(lambda: torch.randn(2, 2000, 10), 0)
    with torch.no_grad():
        rewards = 3 * seeded(lambda: nn.Sequential(nn.Linear(10, 50), nn.Tanh(), nn.Linear(50, 5)), 0)(contexts)
    model, order, generator = seeded(lambda: mlp(10, 50, 5), seed), Order(2000, 64, seed), torch.Generator().manual_seed(seed)

    def loss(i: int) -> Tensor:
        chosen = order(i)
        logs = model(contexts[0, chosen]).log_softmax(1)
        arm = torch.multinomial(logs.detach().exp(), 1, generator=generator)
        reward = rewards[0, chosen].gather(1, arm) + 0.5 * torch.randn(len(chosen), 1, generator=generator)
        gain: Tensor = ((reward - reward.mean()) * logs.gather(1, arm)).mean()
        return -gain

    def regret(x: Tensor, reward: Tensor) -> Tensor:
        return (reward.max(1, keepdim=True).values - reward).mul(model(x).softmax(1)).sum(1).mean()

    return Problem(model, loss, evaluation(model, regret, [*zip(contexts, rewards, strict=True)]))


def reinforce(seed: int, _: Data | None) -> Problem:
    """A grid world with a goal, by REINFORCE with a learned baseline; losses are the expected regret from two sets of start cells."""
    chances, gain, best = grid()
    cells = torch.arange(GOAL + 1)
    seen = torch.cat([one_hot(cells // SIDE, SIDE), one_hot(cells % SIDE, SIDE)], 1).float()
    shuffled = torch.randperm(GOAL, generator=torch.Generator().manual_seed(0))
    starts = shuffled[: GOAL // 2], shuffled[GOAL // 2 :]
    model, generator = seeded(lambda: mlp(2 * SIDE, 32, 5), seed), torch.Generator().manual_seed(seed)

    def loss(i: int) -> Tensor:
        out = model(seen)
        logs, baseline = out[:, :4].log_softmax(1), out[:, 4]
        policy = logs.detach().exp()
        cell = starts[0][torch.randint(len(starts[0]), (32,), generator=generator)]
        path, moves = [cell], []
        for _ in range(EPISODE):
            move = torch.multinomial(policy[cell], 1, generator=generator)[:, 0]
            cell = torch.multinomial(chances[cell, move], 1, generator=generator)[:, 0]
            path.append(cell)
            moves.append(move)
        visited, move = torch.stack(path), torch.stack(moves)
        walking, arrived = visited[:-1] != GOAL, visited[1:] == GOAL
        left = (EPISODE - arrived.sum(0)) - torch.arange(EPISODE)[:, None]
        returns = torch.where(arrived.any(0), DISCOUNT**left, 0.0)[walking]
        value = baseline[visited[:-1]][walking]
        both: Tensor = (value.detach() - returns) * logs[visited[:-1], move][walking] + (value - returns).square() / 2
        return both.mean()

    def regret(cells: Tensor) -> Tensor:
        policy = model(seen)[:, :4].double().softmax(1)
        move = torch.einsum("ca,cat->ct", policy, chances.double())
        value = torch.linalg.solve(torch.eye(GOAL + 1).double() - DISCOUNT * move, (policy * gain).sum(1))
        mean: Tensor = (best - value)[cells].mean()
        return mean.clamp_min(1e-9)

    return Problem(model, loss, evaluation(model, regret, [(cells,) for cells in starts]))


def adversarial(seed: int, _: Data | None) -> Problem:
    """Digits under the fast gradient sign attack, in training and in evaluation."""
    sets = built_in("digits")(None)
    train_x, train_y = sets[0]
    model, order = seeded(lambda: mlp(64, 100, 10), seed), Order(len(train_y), 64, seed)

    @torch.enable_grad()
    def attacked(x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(model(x), y), x)
        return cross_entropy(model(x.detach() + EPSILON * slope.sign()), y)

    def loss(i: int) -> Tensor:
        chosen = order(i)
        return attacked(train_x[chosen], train_y[chosen])

    return Problem(model, loss, evaluation(model, lambda x, y: attacked(x, y).detach(), sets))


@cache
def grid() -> tuple[Tensor, Tensor, Tensor]:
    """The grid world: transition probabilities [cell, move, cell] (one move in five slips), rewards [cell, move], optimal values."""
    cells = torch.arange(GOAL + 1)
    moves = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])
    places = (torch.stack([cells // SIDE, cells % SIDE], 1)[:, None] + moves).clamp(0, SIDE - 1)
    to = one_hot(places[..., 0] * SIDE + places[..., 1], GOAL + 1).double()
    chances = 0.8 * to + 0.2 * to.mean(1, keepdim=True)
    chances[GOAL] = one_hot(torch.tensor(GOAL))
    gain = chances[..., GOAL].clone()
    gain[GOAL] = 0
    best = torch.zeros(GOAL + 1).double()
    for _ in range(500):
        best = (gain + DISCOUNT * chances @ best).max(1).values
    return chances.float(), gain, best


WORKLOADS = {
    "bandit": Workload("Contextual bandit", 1500, bandit),
    "reinforce": Workload("Grid by REINFORCE", 500, reinforce, held_out=True),
    "adversarial": Workload("Adversarial training", 800, adversarial, held_out=True),
}
