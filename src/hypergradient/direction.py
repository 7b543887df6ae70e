"""What a direction is: d_t = −∂θ_t/∂α_t, and what the loop asks of it. Its kinds are in directions.py and base.py."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from .ranks import local
from .runner import Coefficients, TensorLists
from .tensors import TensorOrList, add_scaled, is_zero, make_buffer, real


class Direction(ABC):
    """What an optimizer must know to take the hypergradient of its learning rate."""

    #: The options of a param group that ``previous`` must see as they were in the last step.
    remembered_options: tuple[str, ...]

    #: What it keeps in the state of a tensor: buffers of the tensor's shape, and numbers.
    buffers: tuple[str, ...]
    counters: tuple[str, ...] = ()

    #: Those of the buffers that start as the parameter itself.
    initialized_from_params: tuple[str, ...] = ()

    #: Whether ``previous`` is one of the buffers, rather than computed from them.
    stored = False

    #: Whether it must be known, and so waited for, that a step is taken, since nothing can undo it.
    irreversible = False

    #: Whether a step that has not lowered the loss is taken back, and the next is made from where it began.
    monotone = False

    #: Whether it leaves momentum to the average, between which and the iterate gradients are taken (see average.py).
    averaging = False

    def without_momentum(self) -> "Direction":
        """The same without momentum, which is ``between``; itself where it cannot be without."""
        return self

    def interpolation(self, group: Mapping[str, Any]) -> Any:
        """How far from the iterate to its average gradients are taken, in [0, 1): momentum, where it is left to that."""
        return 0.0

    def decay_rate(self, group: Mapping[str, Any]) -> Any:
        """λ of a step that is θ − α (λ θ + ...), but for momentum: 0 where it decays otherwise, or not."""
        return 0.0

    @abstractmethod
    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError where an option of a param group is out of its range."""

    def begin_step(self, moving: Mapping[Tensor, dict[str, Any]]) -> None:  # noqa: B027 - closed forms need no step as a whole
        """Called once a step, before ``advance`` is called for each of the tensors that move, given with their param groups."""

    def first_directions(self, moving: Mapping[Tensor, dict[str, Any]], grads: Mapping[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """d_1 of each of some tensors, given with their param groups and gradients, made with a state that is thrown away."""
        for p, group in moving.items():
            state: dict[str, Any] = {}
            theta = local(real(p))
            self.prepare(theta, state, group)
            g = self.gradient(grads[p], theta, self.objective_coef(group))
            buffers = {name: state[name] for name in self.buffers if name in state}
            yield p, self.advance(g, theta, buffers, self.coefficients(state, group))

    def is_gradient(self, group: Mapping[str, Any]) -> bool:
        """Whether d_t is the gradient of the loss itself, and is in the state as "direction"."""
        return False

    def fused_step(self, tensors: TensorLists, state: Mapping[str, Any], group: Mapping[str, Any], alpha: float) -> bool:
        """Take the whole step, θ_t = θ_{t-1} − α d_t with its buffers, by a kernel of torch's own; whether there is one for it.

        It reads and writes each tensor once, which ``advance`` in pieces does not, and needs no compiler.
        """
        return False

    @abstractmethod
    def needed_buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Which of ``buffers`` the next ``advance`` needs."""

    def prepare(self, p: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Make the buffers that ``advance`` needs, and count the step."""
        state["first"] = state.get("momentum_buffer") is None
        for name in self.needed_buffers(group):
            make_buffer(state, name, p)
        for name in self.counters:
            state[name] = int(state.get(name, 0)) + 1

    def objective_coef(self, group: Mapping[str, Any]) -> Coefficients:
        """What ``gradient`` needs of the options: the sign of what is minimised, and its penalty."""
        return {"maximize": group["maximize"], "penalty": group["weight_decay"]}

    @abstractmethod
    def coefficients(self, state: Mapping[str, Any], group: Mapping[str, Any], taken: Any = None) -> Coefficients:
        """What ``advance`` needs of the options and of the count of steps, in Python's precision, or float64 on a device."""

    @abstractmethod
    def last_coef(self, state: Mapping[str, Any], last: Mapping[str, Any]) -> Coefficients:
        """What ``previous`` needs of the options that the last step used."""

    @abstractmethod
    def gradient(self, g: TensorOrList, p: TensorOrList | None, coef: Coefficients) -> Any:
        """What is minimised along, from the gradient g of the loss; g itself or a new tensor, never g changed. p where it has a penalty."""

    @abstractmethod
    def previous(self, p: TensorOrList | None, state: Mapping[str, Any], coef: Coefficients) -> Any:
        """d_{t-1}, from the buffers as the last step left them; not to be written to. p where decay is part of it."""

    @abstractmethod
    def advance(self, g: TensorOrList, p: TensorOrList, state: Mapping[str, Any], coef: Coefficients) -> Any:
        """d_t, with the buffers moved on to step t; not to be written to. Elementwise, so that it may be done in pieces."""

    def gradient_part(self, g: Any, state: Mapping[str, Any], coef: Coefficients) -> Any:
        """What ``advance`` has given, as it would be by the gradient of this step alone, without momentum and decoupled decay."""
        return g


def signed(g: Any, coef: Coefficients) -> Any:
    """The gradient of what is minimised: that of the loss, or of its negative under maximize."""
    return -g if coef["maximize"] else g


def decayed(g: Any, p: Any, coef: Coefficients) -> Any:
    """The gradient with coupled weight decay, g + λ θ."""
    g = signed(g, coef)
    return g if is_zero(coef["penalty"]) else add_scaled(g, coef["penalty"], p)
