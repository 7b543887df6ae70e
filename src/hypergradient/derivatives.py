"""∂d/∂φ in closed form: the derivative of the last direction with respect to every hyperparameter φ other than the learning rate.

    h = g_t · ∂θ_{t-1}/∂φ = −α g_t · ∂d_{t-1}/∂φ

As for the learning rate, the derivative is taken through the last step only: the state before it counts as constant. Symbols as in
directions.py, and S = √s, c1 = 1 − β1^t, c2 = 1 − β2^t, W = c1 (S/√c2 + ε): Adam's direction is d = m/W.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor

from .direction import Direction
from .directions import SGD, Adam, HeavyBall, adam_root, as_pair, decay_factor, with_schedule
from .runner import Coefficients
from .tensors import TensorOrList, add_product, add_quotient, add_scaled, is_zero


class lazy:  # noqa: N801 - a decorator
    """A property that is computed once. functools.cached_property takes a lock in Python 3.11, which torch.compile cannot trace."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name: str = f"_{name}"

    def __get__(self, instance: Any, owner: type) -> Any:
        if not hasattr(instance, self.name):
            setattr(instance, self.name, self.compute(instance))
        return getattr(instance, self.name)


class LastStep(ABC):
    """The last step of one tensor, recovered from its buffers: one method per hyperparameter gives ∂d_{t-1}/∂φ, up to a scalar ``scale``.

    Args:
        p: θ_t, the parameter after the step; a real view, whole or a piece, or a list of them.
        state: the buffers, likewise.
        coef: from ``coefficients`` of the class.
    """

    #: The hyperparameters that have such a method, by their names in ``adapt``.
    hyperparameters: tuple[str, ...]

    #: Those whose derivative is defined at 0, too.
    defined_at_zero: tuple[str, ...] = ("weight_decay",)

    #: Whether the methods give ∂d_{t-1}/∂φ, to be multiplied by the learning rate; otherwise they give −∂θ_{t-1}/∂φ itself.
    scaled_by_lr: bool = True

    def __init__(self, p: TensorOrList, state: Mapping[str, Any], coef: Coefficients) -> None:
        self.p: TensorOrList = p
        self.state: Mapping[str, Any] = state
        self.coef: Coefficients = coef

    @staticmethod
    @abstractmethod
    def needs_gradient(names: Sequence[str], group: Mapping[str, Any], direction: Direction) -> bool:
        """Whether the derivatives need the last gradient, which the state then stores as "gradient"."""

    @staticmethod
    @abstractmethod
    def coefficients(direction: Direction, state: Mapping[str, Any], last: Mapping[str, Any]) -> Coefficients:
        """Coefficients of the derivatives, in Python's precision; "scale of NAME" is the scalar factor that the tensor leaves out."""

    @property
    def alpha(self) -> Any:
        """The learning rate of the step; a tensor if each element has its own."""
        return with_schedule(self.state["lr"], self.coef) if "lr" in self.state else self.coef["lr"]

    @property
    def g(self) -> Any:
        """g_{t-1}, as used by the step."""
        return self.state["gradient"]

    @property
    @abstractmethod
    def d(self) -> Any:
        """d_{t-1}."""

    def derivative(self, name: str) -> Any:
        """∂d_{t-1}/∂φ over its scale; times the learning rates if each element has its own."""
        x = getattr(self, name)()
        return x.mul(self.state["lr"]) if "lr" in self.state and self.scaled_by_lr else x


@final
class LastSGD(LastStep):
    """Stochastic gradient descent: v_t = μ v_{t-1} + g_t, and d_t = g_t, v_t or, with Nesterov momentum, g_t + μ v_t."""

    hyperparameters: tuple[str, ...] = ("momentum", "weight_decay")

    @staticmethod
    def needs_gradient(names: Sequence[str], group: Mapping[str, Any], direction: Direction) -> bool:
        return "momentum" in names and not group["nesterov"]

    @staticmethod
    def coefficients(direction: Direction, state: Mapping[str, Any], last: Mapping[str, Any]) -> Coefficients:
        mu, nesterov = last["momentum"], last["nesterov"]
        scales = {
            "scale of momentum": 2 + mu if nesterov else 1 / (1.0 if is_zero(mu) else mu),
            "scale of weight_decay": 1 + mu if nesterov else 1.0,
        }
        return {"momentum": mu, "nesterov": nesterov, "lr": state["lr"], "d": -1 / (2 + mu), **scales}

    @lazy
    def d(self) -> Any:
        return SGD().previous(self.p, self.state, self.coef)

    def momentum(self) -> Any:
        """∂d/∂μ = v_{t-1} = (v_t − g_t)/μ; with Nesterov momentum v_t + μ v_{t-1} = 2 v_t − g_t, where g_t = d_t − μ v_t."""
        v = self.state["momentum_buffer"]
        return add_scaled(v, self.coef["d"], self.d) if self.coef["nesterov"] else v.sub(self.g)

    def weight_decay(self) -> Any:
        """∂d/∂λ = θ_{t-1}, since g = ∇f + λ θ_{t-1}; with Nesterov momentum (1 + μ) θ_{t-1}."""
        return add_scaled(self.p, self.alpha, self.d)


@final
class LastHeavyBall(LastStep):
    """The heavy ball: θ_t = θ_{t-1} − α g_t + μ (θ_{t-1} − θ_{t-2})."""

    hyperparameters: tuple[str, ...] = ("momentum",)
    defined_at_zero: tuple[str, ...] = ("momentum",)
    scaled_by_lr: bool = False

    @staticmethod
    def needs_gradient(names: Sequence[str], group: Mapping[str, Any], direction: Direction) -> bool:
        return False

    @staticmethod
    def coefficients(direction: Direction, state: Mapping[str, Any], last: Mapping[str, Any]) -> Coefficients:
        return {"scale of momentum": -1.0, "lr": state["lr"]}

    @property
    def d(self) -> Any:
        return self.state["direction"]

    def momentum(self) -> Any:
        """∂θ_t/∂μ = θ_{t-1} − θ_{t-2}."""
        return self.state["momentum_buffer"]


@final
class LastAdam(LastStep):
    """Adam and AdamW: d = m/W, plus λ θ_{t-1} for AdamW."""

    hyperparameters: tuple[str, ...] = ("betas", "eps", "weight_decay")

    @staticmethod
    def needs_gradient(names: Sequence[str], group: Mapping[str, Any], direction: Direction) -> bool:
        coupled = isinstance(direction, Adam) and not direction.decoupled
        return "beta1" in names or "beta2" in names or (coupled and "weight_decay" in names)

    @staticmethod
    def coefficients(direction: Direction, state: Mapping[str, Any], last: Mapping[str, Any]) -> Coefficients:
        betas, t, decoupled = last["betas"], state["step"], cast(Adam, direction).decoupled
        decays = cast(Adam, direction).last_decay(state, last)
        moved: Any = 1.0
        divisors, inverse_betas, inverse = [1.0 if is_zero(beta) else beta for beta in betas], list[Any](), list[Any]()
        if isinstance(t, Tensor):  # bias correction cancels the betas in Adam's first step, up to rounding
            moved, t = (t > 1).to(t.dtype), t.clamp(min=1)
            both = as_pair(betas, t)
            power = both**t
            c = 1 - power
            k = 1 + t * power / c  # β times the sum of both terms in m, or in s
            (c1, c2), (k1, k2) = c, k
            inverse_betas, inverse = list(moved * k / both), list(-1 / k)
        else:
            c1, c2 = (1 - beta**t for beta in betas)
            k1, k2 = (1 + t * beta**t / c if beta else 1.0 for beta, c in zip(betas, (c1, c2), strict=True))
            inverse_betas, inverse = [k / divisor for k, divisor in zip((k1, k2), divisors, strict=True)], [-1 / k1, -1 / k2]
        root = c2**0.5
        scales = {
            "scale of beta1": inverse_betas[0],
            "scale of beta2": -c1 * k2 / divisors[1] / (2 * root) if isinstance(k2, float) else inverse_betas[1] * c1 / (-2 * root),
            "scale of eps": -c1,
            "scale of weight_decay": 1.0 if decoupled else 1 - betas[0],
        }
        own = {"beta1": inverse[0], "beta2": inverse[1], "decoupled": decoupled, "root": c1 / root, "eps": c1 * last["eps"]}
        if not decoupled:
            own["decay"] = -c1 * (1 - betas[1]) / (root * (1 - betas[0]))
        return {"lr": state["lr"], **decays, **own, **scales}

    @lazy
    def root(self) -> Any:
        """S, at least 1e-19; it is that small only where the gradients divided by it are 0."""
        root = adam_root(self.state["exp_avg_sq"])
        return root.clamp_min_(torch.finfo(root.dtype).tiny ** 0.5)

    @lazy
    def w(self) -> Any:
        return self.root.mul(self.coef["root"]).add_(self.coef["eps"])

    @lazy
    def a(self) -> Any:
        """m/W."""
        return self.state["exp_avg"].div(self.w)

    @lazy
    def by_w(self) -> Any:
        """m/W² = −∂(m/W)/∂W."""
        return self.a.div(self.w)

    @lazy
    def d(self) -> Any:
        decay = self.coef["weight_decay"]
        return self.a if is_zero(decay) else add_scaled(self.a, decay, self.theta)

    @lazy
    def theta(self) -> Any:
        """θ_{t-1} = (θ_t + α m/W) / (1 − αλ)."""
        theta, decay = add_scaled(self.p, self.alpha, self.a), self.coef["weight_decay"]
        return theta if is_zero(decay) else theta.div_(decay_factor(self.alpha, decay) if "lr" in self.state else self.coef["decay_factor"])

    def beta1(self) -> Any:
        """∂d/∂β1 = [(m − g)/β1 + m t β1^{t-1}/c1]/W, since m_{t-1} − g_t = (m_t − g_t)/β1 and ∂c1/∂β1 = −t β1^{t-1}."""
        return add_quotient(self.a, self.coef["beta1"], self.g, self.w)

    def beta2(self) -> Any:
        """∂d/∂β2 = −m/W² ∂W/∂β2, and ∂W/∂β2 = c1/(2√c2) [(s − g²)/β2 + s t β2^{t-1}/c2]/S."""
        return add_quotient(self.root, self.coef["beta2"], self.g.mul(self.g), self.root).mul_(self.by_w)

    def eps(self) -> Any:
        """∂d/∂ε = −c1 m/W²."""
        return self.by_w

    def weight_decay(self) -> Any:
        """∂d/∂λ = θ_{t-1} for AdamW; else, since g = ∇f + λ θ_{t-1}, (1 − β1) θ_{t-1}/W − m/W² c1/√c2 (1 − β2) g θ_{t-1}/S."""
        if self.coef["decoupled"]:
            return self.theta
        x = self.theta.div(self.w)
        return add_product(x, self.coef["decay"], self.g.mul(self.by_w).div_(self.root), self.theta, out=x)


LAST_STEPS: dict[type[Direction], type[LastStep]] = {SGD: LastSGD, HeavyBall: LastHeavyBall, Adam: LastAdam}
