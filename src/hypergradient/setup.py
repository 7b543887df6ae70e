"""What an optimizer is made of, for as long as it lives."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from .direction import Direction
from .learning_rates import ScopeName
from .ranks import Ranks
from .rules import Level, Rule
from .runner import Runner
from .scalars import DeviceScalars, Scalars
from .signal import Signal


@final
@dataclass(frozen=True)
class Setup:
    """The parts of an optimizer.

    Args:
        direction: what it steps along.
        rule: moves the learning rate.
        adapted: the rules of other hyperparameters, by name.
        bounds: what each of these is held inside.
        scope: how tensors share learning rates.
        horizon: over how many steps the trace looks, where the user says so.
        signal: where the hypergradient of the learning rate comes from.
        numbers: where its numbers are.
        run: does the elementwise work.
        ranks: how the parameters are spread.
        applied: the key of a param group that reads the learning rate of the last step; a base such as RMSprop has an "alpha" of its own.
    """

    direction: Direction
    rule: Rule
    other_rules: Mapping[str, Level]
    bounds: Mapping[str, tuple[float, float]]
    scope: ScopeName
    horizon: float | None
    signal: Signal
    scalars: Scalars
    run: Runner
    ranks: Ranks
    applied_key: str

    @cached_property
    def rules(self) -> dict[str, Rule]:
        """The rule of each hyperparameter that moves, the learning rate first."""
        return {"lr": self.rule, **self.other_rules}

    @cached_property
    def memory_columns(self) -> dict[str, str]:
        """What is kept of a learning rate, by name, with the name of its column."""
        return {name: f"memory.{name}" for name in self.initial_memory({})}

    def initial_memory(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of a learning rate before its first step: by the rule, and where it averages the largest factor of a scheduler.

        What is kept of the learning rate of an element lies beside that.

        A checkpoint of when that was not kept goes on from its last factor.
        """
        if self.per_element:
            return {}
        return self.rule.initial_memory() | ({"peak": group.get("last", {}).get("factor", 0.0)} if self.rule.averages else {})

    @property
    def per_element(self) -> bool:
        """Whether each element has a learning rate."""
        return self.scope == "element"

    @property
    def uses_trace(self) -> bool:
        """Whether there is a trace: of past directions, or to the average."""
        return self.rule.averages or self.rule.adapts_discount or self.horizon not in (None, 1)

    @cached_property
    def has_discount(self) -> bool:
        """Whether the trace is that of a signal or of the rule, which has all in it that a step moves by."""
        return bool(self.signal.discount) or self.rule.adapts_discount

    @property
    def float32_trace(self) -> bool:
        """Whether the trace of parameters of 16 bits is float32: what it forgets in a step would be rounded away."""
        return self.rule.averages or self.has_discount

    @cached_property
    def norms(self) -> dict[str, bool]:
        """Of which hyperparameters ‖g‖ and ‖∂θ/∂φ‖ are taken."""
        return {name: rule.reads_norms or (name == "lr" and self.signal.normalized) for name, rule in self.rules.items()}

    @cached_property
    def element_memory(self) -> dict[str, float]:
        """What is kept of the learning rate of each element, by its name in the state, with what it is at first."""
        return {f"memory_{name}": value for name, value in self.rule.initial_memory().items()} if self.per_element else {}

    @property
    def uses_lists(self) -> bool:
        """Whether tensors go in lists, which take a number a tensor."""
        return isinstance(self.scalars, DeviceScalars) and self.scalars.device.type != "cpu"
