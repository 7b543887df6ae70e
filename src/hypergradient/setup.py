"""The parts of an optimizer, fixed for its lifetime."""

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
@dataclass(frozen=True, eq=False, repr=False)  # methods that nothing calls would slow the import down
class Setup:
    """The parts of an optimizer.

    Args:
        direction: the direction of its steps.
        rule: adapts the learning rate.
        other_rules: the rules of other hyperparameters, by name.
        bounds: the bounds of each of these.
        scope: how tensors share learning rates.
        horizon: how many steps the trace covers, if the user sets it.
        signal: where the hypergradient of the learning rate comes from.
        scalars: on the host or on a device.
        run: runs elementwise work.
        ranks: how the parameters are sharded.
        applied_key: the key of the last step's learning rate in a param group; a base such as RMSprop has its own "alpha".
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
        """The rule of each adapted hyperparameter, the learning rate first."""
        return {"lr": self.rule, **self.other_rules}

    @cached_property
    def memory_columns(self) -> dict[str, str]:
        """The memory of a learning rate: names, with the names of their columns."""
        return {name: f"memory.{name}" for name in self.initial_memory({})}

    def initial_memory(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The memory of a learning rate before its first step: the rule's, and if it averages the peak of a scheduler's factor.

        Elementwise learning rates have theirs in ``element_memory``. A checkpoint without a peak starts from its last factor.
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
        """Whether there is a trace: of past directions, or the displacement to the average."""
        return self.rule.averages or self.rule.adapts_discount or self.horizon not in (None, 1)

    @cached_property
    def has_discount(self) -> bool:
        """Whether the trace is discounted by a signal or rule; it then includes the scale of each step."""
        return bool(self.signal.discount) or self.rule.adapts_discount

    @property
    def float32_trace(self) -> bool:
        """Whether 16-bit parameters have a float32 trace, in which a step's decay would otherwise be rounded away."""
        return self.rule.averages or self.has_discount

    @cached_property
    def norms(self) -> dict[str, bool]:
        """For which hyperparameters ‖g‖ and ‖∂θ/∂φ‖ are computed."""
        return {name: rule.reads_norms or (name == "lr" and self.signal.normalized) for name, rule in self.rules.items()}

    @cached_property
    def element_memory(self) -> dict[str, float]:
        """The memory of elementwise learning rates, by key in the state, with initial values."""
        return {f"memory_{name}": value for name, value in self.rule.initial_memory().items()} if self.per_element else {}

    @property
    def uses_lists(self) -> bool:
        """Whether tensors are processed in lists, with a coefficient per tensor."""
        return isinstance(self.scalars, DeviceScalars) and self.scalars.device.type != "cpu"
