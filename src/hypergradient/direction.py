"""The interface of a direction, d_t = −∂θ_t/∂α_t: what the loop asks of an algorithm. Implementations are in directions.py and base.py."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from .ranks import local
from .runner import Coefficients, TensorLists
from .tensors import TensorOrList, add_scaled, is_zero, make_buffer, real


class Direction(ABC):
    """What the hypergradient of the learning rate needs to know of an algorithm."""

    #: Options of a param group that ``previous`` needs with their values in the last step.
    remembered_options: tuple[str, ...]

    #: Keys in the state of a tensor: buffers of the tensor's shape, and step counts.
    buffers: tuple[str, ...]
    counters: tuple[str, ...] = ()

    #: Buffers that are initialized with the parameter.
    initialized_from_params: tuple[str, ...] = ()

    #: Whether ``previous`` returns one of the buffers, rather than computing d from them.
    stored = False

    #: Whether a step cannot be undone, so that the host must wait for the device to say that it is taken.
    irreversible = False

    #: Whether a step that did not lower the loss is a null step: it is undone, and the next starts where it started.
    monotone = False

    #: Whether momentum is left to the averaging, with gradients taken between iterate and average (see average.py).
    averaging = False

    def without_momentum(self) -> "Direction":
        """The same direction with its momentum left to the averaging; itself if it has none to leave."""
        return self

    def interpolation(self, group: Mapping[str, Any]) -> Any:
        """b in [0, 1): gradients are taken at (1 − b) iterate + b average. It is the momentum, where that is left to the averaging."""
        return 0.0

    def decay_rate(self, group: Mapping[str, Any]) -> Any:
        """λ if the step is θ − α (λ θ + ...), momentum aside; 0 for other kinds of decay or none."""
        return 0.0

    @abstractmethod
    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError if an option of a param group is out of its range."""

    def begin_step(self, moving: Mapping[Tensor, dict[str, Any]]) -> None:  # noqa: B027 - closed forms need none
        """Called once a step with all tensors that move and their param groups, before ``advance`` is called for each."""

    def first_directions(self, moving: Mapping[Tensor, dict[str, Any]], grads: Mapping[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """d_1 of tensors, given with their param groups and gradients; the state made for it is thrown away."""
        for p, group in moving.items():
            state: dict[str, Any] = {}
            theta = local(real(p))
            self.prepare(theta, state, group)
            g = self.gradient(grads[p], theta, self.objective_coef(group))
            buffers = {name: state[name] for name in self.buffers if name in state}
            yield p, self.advance(g, theta, buffers, self.coefficients(state, group))

    def is_gradient(self, group: Mapping[str, Any]) -> bool:
        """Whether d_t is the gradient of the loss itself, stored as "direction"."""
        return False

    def fused_step(self, tensors: TensorLists, state: Mapping[str, Any], group: Mapping[str, Any], alpha: float) -> bool:
        """Take the whole step, θ_t = θ_{t-1} − α d_t and its buffers, with one of torch's fused kernels; return whether there is one.

        Such a kernel reads and writes each tensor once, unlike ``advance`` on pieces, and needs no compiler.
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
        """Coefficients of ``gradient``: the sign of the objective, and its penalty."""
        return {"maximize": group["maximize"], "penalty": group["weight_decay"]}

    @abstractmethod
    def coefficients(self, state: Mapping[str, Any], group: Mapping[str, Any], taken: Any = None) -> Coefficients:
        """Coefficients of ``advance``, from the options and the step count; in Python's precision, or float64 on a device."""

    @abstractmethod
    def last_coef(self, state: Mapping[str, Any], last: Mapping[str, Any]) -> Coefficients:
        """Coefficients of ``previous``, from the options that the last step used."""

    @abstractmethod
    def gradient(self, g: TensorOrList, p: TensorOrList | None, coef: Coefficients) -> Any:
        """The gradient of the objective, from the gradient g of the loss: a new tensor, or g itself, unchanged. Takes p for a penalty."""

    @abstractmethod
    def previous(self, p: TensorOrList | None, state: Mapping[str, Any], coef: Coefficients) -> Any:
        """d_{t-1}, from the buffers as the last step left them; read-only. p if decay is part of it."""

    @abstractmethod
    def advance(self, g: TensorOrList, p: TensorOrList, state: Mapping[str, Any], coef: Coefficients) -> Any:
        """d_t, read-only, with the buffers advanced to step t. Elementwise, so it may be called on pieces."""

    def gradient_part(self, g: Any, state: Mapping[str, Any], coef: Coefficients) -> Any:
        """The direction that ``advance`` would give for this step's gradient alone, without momentum and decoupled decay."""
        return g


def signed(g: Any, coef: Coefficients) -> Any:
    """The gradient of the minimised objective: that of the loss, or of its negative under maximize."""
    return -g if coef["maximize"] else g


def decayed(g: Any, p: Any, coef: Coefficients) -> Any:
    """The gradient with coupled weight decay, g + λ θ."""
    g = signed(g, coef)
    return g if is_zero(coef["penalty"]) else add_scaled(g, coef["penalty"], p)
