"""Many runs as one program: parameters stacked [R, ...], one learning rate per run, with the library's own directions and rules.

Runs may differ in lr, β, rule, the levels above it, momentum and weight decay, and in whether they adapt at all; they share model, seed,
minibatches and base optimizer. All runs see the same minibatch, so the first layer is one matrix product. A finished run leaves the
stack.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from hypergradient import directions
from hypergradient.direction import Direction
from hypergradient.hyperparameter_update import group_alike
from hypergradient.lr_update import update_lr
from hypergradient.rules import Additive, Rule
from hypergradient.scalars import HostScalars, exact_sum

from .config import Config
from .data import Data
from .models import make_model

DIRECTIONS: dict[str, Direction] = {"SGD": directions.SGD(), "SGDN": directions.SGD(), "Adam": directions.Adam(decoupled=False)}

#: The options that runs of an ensemble must share, besides the base optimizer.
SHARED = ("data", "model", "batch_size", "epochs", "seed", "device", "limit", "iterations", "threshold", "hidden")

#: The models that can be stacked: Linear and ReLU layers.
MODELS = ("logreg", "mlp")


def shared(config: Config) -> tuple[Any, ...]:
    return config.call.family, *(getattr(config, name) for name in SHARED)


def stackable(config: Config, data: Data) -> bool:
    """Whether such runs can be stacked: these models, integer labels, only α and β adapted, on the training loss."""
    call = config.call
    labels = data.train_y.dim() == 1 and not data.train_y.is_floating_point()
    options = {"lr", "hypergrad_lr", "rule", "weight_decay"} | ({"momentum", "nesterov"} if call.family == "SGDN" else set())
    plain = call.family in DIRECTIONS and not call.args and call.options.keys() <= options and call.style != "other"
    return config.model in MODELS and labels and plain and config.hypergrad_data == "train"


class Ensemble:
    """R stacked runs. ``runs`` holds the configurations of those that have not finished."""

    def __init__(self, configs: Sequence[Config], shape: Sequence[int], classes: int) -> None:
        first = configs[0]
        assert all(shared(config) == shared(first) for config in configs)
        self.runs = list(configs)
        optimizers = [config.make_optimizer(nn.ParameterList([torch.zeros(1)])) for config in configs]
        self.options = [optimizer.param_groups[0] for optimizer in optimizers]
        self.alphas = [float(options["lr"]) for options in self.options]
        self.rules: list[Rule] = [optimizer.setup.rule if hasattr(optimizer, "setup") else Additive(0.0) for optimizer in optimizers]
        self.betas = [rule.initial_beta for rule in self.rules]
        self.memories = [rule.initial_memory() for rule in self.rules]
        self.skipped = [False for _ in configs]
        model = make_model(first.model, shape, classes, first.seed, hidden=first.hidden).to(first.device)
        self.params = [p.detach().expand(len(configs), *p.shape).clone().requires_grad_() for p in model.parameters()]
        self.layers = [layer for layer in model.children() if isinstance(layer, nn.Linear | nn.ReLU)]
        self.states: list[dict[str, Any]] = [{} for _ in self.params]
        self.direction = DIRECTIONS[first.call.family]
        self.steps = 0
        self._stack_options()

    def _stack_options(self) -> None:
        """One param group per stacked tensor, with one value per run for options in which runs differ."""

        def stacked(name: str, p: Tensor) -> float | Tensor:
            values = [float(options[name]) for options in self.options]
            if len(set(values)) == 1:
                return values[0]
            return torch.tensor(values, dtype=p.dtype, device=p.device).reshape(-1, *[1] * (p.dim() - 1))

        nesterov = self.runs[0].call.family == "SGDN"
        fixed: dict[str, Any] = {"maximize": False, "capturable": False, "momentum": 0.0, "dampening": 0.0, "nesterov": nesterov}
        fixed |= {"betas": (0.9, 0.999), "eps": 1e-8}
        varied = ("weight_decay", "momentum") if nesterov else ("weight_decay",)
        self.groups = [{**fixed, **{name: stacked(name, p) for name in varied}} for p in self.params]

    def logits(self, x: Tensor) -> Tensor:
        """Outputs [R, batch, classes] for images shared by all runs."""
        params = iter(self.params)
        h = x.flatten(1)
        for layer in self.layers:
            if isinstance(layer, nn.ReLU):
                h = relu(h)
                continue
            w, b = next(params), next(params)
            if h.dim() == 2:  # one product for all runs
                h = (h @ w.flatten(0, 1).T).reshape(len(h), len(w), -1).transpose(0, 1) + b[:, None]
            else:
                h = torch.baddbmm(b[:, None], h, w.transpose(1, 2))
        return h

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of each run, [R]."""
        logits = self.logits(x)
        runs, batch, classes = logits.shape
        return cross_entropy(logits.reshape(-1, classes), y.repeat(runs), reduction="none").reshape(runs, batch).mean(1)

    def step(self, x: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
        """Train every run on one minibatch; returns the losses before the step, and the hypergradients.

        Updates ``alphas`` and ``betas``, except for runs marked ``skipped``, whose values are no longer finite.
        """
        for p in self.params:
            p.grad = None
        losses = self.losses(x, y)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            gx, gg, xx = self._products()
            h = [-x for x in gx]
            for i in range(len(self.runs)):
                self.skipped[i] = not math.isfinite(h[i])
            adapting = {i: rule for i, rule in enumerate(self.rules) if self.runs[i].call.adapts}
            for runs in group_alike(adapting):
                self._adapt(runs, {"gx": [gx[i] for i in runs], "gg": [gg[i] for i in runs], "xx": [xx[i] for i in runs]})
            self._update()
        self.steps += 1
        return losses.tolist(), h

    def _adapt(self, runs: Sequence[int], sums: dict[str, list[float]]) -> None:
        """Apply the rule to the α and β of some runs, whose rules differ in β only."""
        rule = self.rules[runs[0]]
        state_keys = {name: f"memory.{name}" for name in rule.initial_memory()}
        free = {"low": [-math.inf] * len(runs), "high": [math.inf] * len(runs)}
        columns = {"alpha": [self.alphas[i] for i in runs], "beta": [self.betas[i] for i in runs], **free, **sums}
        columns |= {key: [self.memories[i][name] for i in runs] for name, key in state_keys.items()}
        found = HostScalars().apply(partial(update_lr, rule, math.inf, state_keys), columns, len(runs))
        for k, i in enumerate(runs):
            self.skipped[i] |= not (found["finite"][k] and math.isfinite(found["alpha"][k]))
            if not self.skipped[i]:
                self.alphas[i], self.memories[i] = found["alpha"][k], {name: found[key][k] for name, key in state_keys.items()}
                self.betas[i] = found["beta"][k] if "beta" in found else self.betas[i]

    def _products(self) -> tuple[list[float], list[float], list[float]]:
        """g · d of each run, and g · g and d · d if a rule needs norms."""
        runs = len(self.runs)
        zeros = [0.0] * runs
        if self.steps == 0 or not any(config.call.adapts for config in self.runs):
            return zeros, zeros, zeros
        reads = any(rule.reads_norms for rule in self.rules)
        terms: list[list[Tensor]] = [[], [], []]
        for p, state, group in zip(self.params, self.states, self.groups, strict=True):
            assert p.grad is not None
            g = self.direction.gradient(p.grad, p, self.direction.objective_coef(group)).flatten(1)
            d: Tensor = self.direction.previous(p, state, self.direction.last_coef({"lr": 0.0, **state}, group)).flatten(1)
            for term, pair in zip(terms, ((g, d), (g, g), (d, d)) if reads else ((g, d),), strict=False):
                term.append(torch.linalg.vecdot(*pair))
        gd, gg, dd = ([exact_sum(part) for part in zip(*map(Tensor.tolist, term), strict=True)] or zeros for term in terms)
        return gd, gg, dd

    def _update(self) -> None:
        for p, state, group in zip(self.params, self.states, self.groups, strict=True):
            assert p.grad is not None
            self.direction.prepare(p, state, group)
            g = self.direction.gradient(p.grad, p, self.direction.objective_coef(group))
            d = self.direction.advance(g, p, state, self.direction.coefficients(state, group))
            alpha = torch.tensor(self.alphas, dtype=p.dtype, device=p.device).reshape(-1, *[1] * (p.dim() - 1))
            p.addcmul_(d, alpha, value=-1)

    def retain(self, which: Sequence[int]) -> None:
        """Drop all runs except those with the indices ``which``."""
        index = torch.tensor(which, dtype=torch.int64, device=self.params[0].device)
        self.runs = [self.runs[i] for i in which]
        for name in ("alphas", "betas", "memories", "rules", "skipped", "options"):
            setattr(self, name, [getattr(self, name)[i] for i in which])
        self.params = [p.detach()[index].requires_grad_() for p in self.params]
        for state in self.states:
            state.update({key: value[index] for key, value in state.items() if isinstance(value, Tensor)})
        if self.runs:
            self._stack_options()

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
        """Mean cross-entropy and accuracy, per run."""
        loss, right = torch.zeros(len(self.runs), dtype=torch.float64), torch.zeros(len(self.runs), dtype=torch.float64)
        for images, labels in zip(torch.split(x, 2_000), torch.split(y, 2_000), strict=True):
            logits = self.logits(images)
            each = cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none").reshape(len(logits), -1)
            loss += each.double().sum(1).cpu()
            right += (logits.argmax(2) == labels).double().sum(1).cpu()
        return (loss / len(y)).tolist(), (right / len(y)).tolist()

    def state(self) -> dict[str, Any]:
        """The state, as plain data and tensors, for torch.save."""
        return {
            "alphas": self.alphas,
            "betas": self.betas,
            "memories": self.memories,
            "params": [p.detach() for p in self.params],
            "states": self.states,
            "steps": self.steps,
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Restore ``state()`` of an ensemble of the same configurations."""
        device = self.params[0].device
        for name in ("alphas", "betas", "memories", "steps"):
            setattr(self, name, saved[name])
        self.states = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in state.items()} for state in saved["states"]]
        self.params = [p.to(device).requires_grad_() for p in saved["params"]]
