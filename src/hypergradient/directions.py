"""Directions: d_t = −∂θ_t/∂α_t = −∇αu_t in closed form, the step that θ_t = θ_{t-1} − α_t d_t takes at learning rate 1.

Each direction says three things of a parameter: the gradient that its algorithm uses, the direction of the last step, recomputed
from the optimizer's state before that is advanced, and the next direction. The tensors it is given are real views (see tensors.py),
whole or in pieces; ``prepare``, which makes buffers, is given the parameter itself.

An option may be a tensor instead of a number where the parameters are stacked, [R, ...], and each of R runs has its own (see
lab/ensemble.py): momentum, dampening and weight decay that broadcast, [R, 1, ...].

Symbols: g gradient, v momentum buffer, m and s first and second moment of Adam, t the parameter's own number of steps, μ momentum,
τ dampening, λ weight decay.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Parameter

from .checks import check_number
from .numbers import put, where, wide
from .tensors import add_product, add_scaled, changed, copy_all, dense, is_zero, make_buffer, mix, real

Numbers = dict[str, Any]
"""Coefficients of elementwise arithmetic: numbers, or tensors that broadcast; and switches that are True or False."""


Columns = Mapping[str, list[Tensor]]
"""Tensors by name: of each name as many, in one order."""


class Direction(ABC):
    """What an optimizer must know to take the hypergradient of its learning rate."""

    #: The options of a param group that ``previous`` must see as they were in the last step.
    remembers: tuple[str, ...]

    #: What it keeps in the state of a tensor: buffers of the tensor's shape, and numbers.
    buffers: tuple[str, ...]
    counts: tuple[str, ...] = ()

    #: Whether ``previous`` is one of the buffers, rather than computed from them.
    stored = False

    @abstractmethod
    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError where an option of a param group is out of its range."""

    def begin(self, moving: Mapping[Tensor, dict[str, Any]]) -> None:  # noqa: B027 - closed forms need no step as a whole
        """Called once a step, before ``advance`` is called for each of the tensors that move, given with their param groups."""

    def first(self, moving: Mapping[Tensor, dict[str, Any]]) -> Iterator[tuple[Tensor, Tensor]]:
        """d_1 of each of some tensors, given with their param groups, made with a state that is thrown away."""
        for p, group in moving.items():
            assert p.grad is not None
            state: dict[str, Any] = {}
            self.prepare(p, state, group)
            g = self.gradient(real(p.grad), real(p), self.objective(group))
            buffers = {name: real(state[name]) for name in self.buffers if name in state}
            yield p, self.advance(g, real(p), buffers, self.numbers(state, group))

    def is_gradient(self, group: Mapping[str, Any]) -> bool:
        """Whether d_t is the gradient of the loss itself, and is in the state as "direction"."""
        return False

    def step(self, tensors: Columns, state: Mapping[str, Any], group: Mapping[str, Any], alpha: float) -> bool:
        """Take the whole step, θ_t = θ_{t-1} − α d_t with its buffers, by a kernel of torch's own; whether there is one for it.

        It reads and writes each tensor once, which ``advance`` in pieces does not, and needs no compiler.
        """
        return False

    @abstractmethod
    def prepare(self, p: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Make the buffers that ``advance`` needs, and count the step."""

    def objective(self, group: Mapping[str, Any]) -> Numbers:
        """What ``gradient`` needs of the options: the sign of what is minimised, and its penalty."""
        return {"maximize": group["maximize"], "penalty": group["weight_decay"]}

    @abstractmethod
    def numbers(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Numbers:
        """What ``advance`` needs of the options and of the count of steps, in Python's precision."""

    @abstractmethod
    def last_numbers(self, state: Mapping[str, Any], last: Mapping[str, Any]) -> Numbers:
        """What ``previous`` needs of the options that the last step used."""

    @abstractmethod
    def gradient(self, g: Tensor, p: Tensor, numbers: Numbers) -> Tensor:
        """What is minimised along, from the gradient g of the loss; g itself or a new tensor, never g changed."""

    @abstractmethod
    def previous(self, p: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        """d_{t-1}, from the buffers as the last step left them; not to be written to."""

    @abstractmethod
    def advance(self, g: Tensor, p: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        """d_t, with the buffers moved on to step t; not to be written to. Elementwise, so that it may be done in pieces."""


@final
class SGD(Direction):
    """Stochastic gradient descent, with momentum or Nesterov momentum where the group says so."""

    remembers = ("momentum", "nesterov", "weight_decay")
    buffers = ("momentum_buffer", "direction")
    stored = True

    def check(self, group: Mapping[str, Any]) -> None:
        for name in ("momentum", "weight_decay"):
            check_number(name, group[name])
        check_number("dampening", group["dampening"], low=-math.inf)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov=True needs momentum > 0 and dampening = 0, got momentum={group['momentum']!r}, dampening={group['dampening']!r}"
            )

    def prepare(self, p: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        if not is_zero(group["momentum"]):
            state["first"] = state.get("momentum_buffer") is None
            make_buffer(state, "momentum_buffer", p)
        if is_zero(group["momentum"]) or group["nesterov"]:
            make_buffer(state, "direction", p)

    def numbers(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Numbers:
        new = 1.0 if state.get("first") else 1 - group["dampening"]  # the buffer starts with the gradient itself
        return {"new": new, "momentum": group["momentum"], "nesterov": group["nesterov"]}

    def last_numbers(self, state: Mapping[str, Any], last: Mapping[str, Any]) -> Numbers:
        return {name: last[name] for name in ("momentum", "nesterov")}

    def is_gradient(self, group: Mapping[str, Any]) -> bool:
        return is_zero(group["momentum"]) and is_zero(group["weight_decay"]) and not group["maximize"]

    def step(self, tensors: Columns, state: Mapping[str, Any], group: Mapping[str, Any], alpha: float) -> bool:
        copies = "direction" in tensors  # rather than keeping the gradient itself
        if (copies and not self.is_gradient(group)) or not suits_kernels(tensors):
            return False
        if copies:
            copy_all(tensors["direction"], tensors["g"])
        options: Any = {name: group[name] for name in ("weight_decay", "momentum", "dampening", "maximize")}
        first = bool(state.get("first", False))
        buffers = [] if is_zero(group["momentum"]) else tensors["momentum_buffer"]
        torch._fused_sgd_(tensors["p"], tensors["g"], buffers, lr=alpha, nesterov=False, is_first_step=first, **options)
        changed(*tensors["p"], *buffers)
        return True

    def gradient(self, g: Tensor, p: Tensor, numbers: Numbers) -> Tensor:
        return decayed(g, p, numbers)

    def previous(self, p: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        # Plain momentum's direction is its buffer, which is still that of the last step.
        return state["direction" if is_zero(numbers["momentum"]) or numbers["nesterov"] else "momentum_buffer"]

    def advance(self, g: Tensor, p: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        mu = numbers["momentum"]
        if is_zero(mu):
            return state["direction"].copy_(g) if "direction" in state else g  # d_t = g_t; the gradient itself where that is kept
        v = state["momentum_buffer"].mul_(mu)
        add_scaled(v, numbers["new"], g, out=v)  # v_t = μ v + (1 − τ) g
        return add_scaled(g, mu, v, out=state["direction"]) if numbers["nesterov"] else v  # d_t = g_t + μ v_t, or v_t


@final
class Adam(Direction):
    """Adam with weight decay coupled into the gradient, or AdamW, which decays the parameters themselves."""

    remembers = ("betas", "eps", "weight_decay")
    buffers = ("exp_avg", "exp_avg_sq")
    counts = ("step",)

    def __init__(self, *, decoupled: bool) -> None:
        self.decoupled = decoupled

    def check(self, group: Mapping[str, Any]) -> None:
        for name in ("eps", "weight_decay"):
            check_number(name, group[name])
        betas = group["betas"]
        pair = isinstance(betas, tuple | list) and len(betas) == 2
        if not pair or not all(isinstance(beta, Real) and 0 <= float(beta) < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")

    def prepare(self, p: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        if group["capturable"]:
            put(state, "step", torch.as_tensor(state.get("step", 0), dtype=torch.float32, device=p.device) + 1)
        else:
            state["step"] = int(state.get("step", 0)) + 1
        make_buffer(state, "exp_avg", p)
        make_buffer(state, "exp_avg_sq", p)

    def step(self, tensors: Columns, state: Mapping[str, Any], group: Mapping[str, Any], alpha: float) -> bool:
        if not suits_kernels(tensors):
            return False
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        p, g, m, s = (tensors[name] for name in ("p", "g", "exp_avg", "exp_avg_sq"))
        count = torch.full((), state["step"], dtype=torch.float32, device=tensors["p"][0].device)
        beta1, beta2 = group["betas"]
        options: Any = {name: group[name] for name in ("weight_decay", "eps", "maximize")}
        kernel(p, g, m, s, [], [count] * len(p), lr=alpha, beta1=beta1, beta2=beta2, amsgrad=False, **options)
        changed(*p, *m, *s)
        return True

    def numbers(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Numbers:
        beta1, beta2 = group["betas"]
        own = {"beta2": beta2, "new1": 1 - beta1, "new2": 1 - beta2, "weight_decay": group["weight_decay"]}
        return own | adam_numbers(state["step"], group["betas"], group["eps"])

    def last_numbers(self, state: Mapping[str, Any], last: Mapping[str, Any]) -> Numbers:
        own = adam_numbers(state["step"], last["betas"], last["eps"])
        return own | {"weight_decay": last["weight_decay"] if self.decoupled else 0.0, "lr": state["lr"]}

    def gradient(self, g: Tensor, p: Tensor, numbers: Numbers) -> Tensor:
        return signed(g, numbers) if self.decoupled else decayed(g, p, numbers)

    def previous(self, p: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        d = adam(state["exp_avg"], state["exp_avg_sq"], numbers)
        decay = numbers["weight_decay"]
        if is_zero(decay):
            return d
        # d_s = a + λ θ_{s-1} = (a + λ θ_s) / (1 − α_s λ), since θ_s = θ_{s-1} − α_s d_s.
        return add_scaled(d, decay, p, out=d).div_(what_decay_leaves(state.get("lr", numbers["lr"]), decay))

    def advance(self, g: Tensor, p: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        m, s = state["exp_avg"], state["exp_avg_sq"].mul_(numbers["beta2"])
        mix(m, numbers["new1"], g)  # m_t = β1 m_{t-1} + (1 − β1) g_t
        add_product(s, numbers["new2"], g, g, out=s)  # s_t = β2 s_{t-1} + (1 − β2) g_t²
        d = adam(m, s, numbers)
        return add_scaled(d, numbers["weight_decay"], p, out=d) if self.decoupled else d


def suits_kernels(tensors: Columns) -> bool:
    """Whether torch's own kernels take the tensors: without gaps, on a CPU or a CUDA device; in bfloat16 torch 2.13's SGD is wrong."""
    first = tensors["p"][0]
    plain = first.dtype in (torch.float32, torch.float64) and first.device.type in ("cpu", "cuda")
    if not plain or any(type(x) not in (Tensor, Parameter) or x.dtype != first.dtype for column in tensors.values() for x in column):
        return False
    return all(map(dense, zip(*tensors.values(), strict=True)))


def adam_numbers(step: int | Tensor, betas: tuple[float, float], eps: float) -> Numbers:
    """W = c1 (√ŝ + ε) = "root" √s + "eps", where c1 = 1 − β1^t, c2 = 1 − β2^t and ŝ = s/c2; 1 for both before the first step."""
    t = step.to(wide(step.device)) if isinstance(step, Tensor) else step
    c1, c2 = (where(t == 0, 1.0, 1 - beta**t) for beta in betas)
    return {"root": c1 / c2**0.5, "eps": c1 * eps}


def adam(m: Tensor, s: Tensor, numbers: Numbers) -> Tensor:
    """m̂ / (√ŝ + ε) = m/W as a new tensor of float32 or wider, with m̂ = m / (1 − β1^t) and ŝ = s / (1 − β2^t) (Algorithm 3)."""
    root = adam_root(s)
    denominator = adam_denominator(root, numbers, out=root)
    return torch.div(m, denominator, out=denominator)


def adam_root(s: Tensor) -> Tensor:
    """√s as a new tensor of float32 or wider: in float16 ε = 1e-8 is 0, and an element without gradient 0 / 0."""
    return s.to(torch.promote_types(s.dtype, torch.float32)).sqrt()


def adam_denominator(root: Tensor, numbers: Numbers, *, out: Tensor | None = None) -> Tensor:
    """W = (1 − β1^t) (√ŝ + ε), from √s."""
    return torch.mul(root, numbers["root"], out=out).add_(numbers["eps"])


def what_decay_leaves(alpha: float | Tensor, decay: float) -> float | Tensor:
    """1 − αλ, the part of the parameters that a step of decoupled decay keeps; 1 where it has wiped them out, and they are not known."""
    kept = 1 - alpha * decay
    if isinstance(kept, Tensor):
        return kept.masked_fill_(kept == 0, 1.0)
    return kept or 1.0


def before(p: Tensor, d: Tensor, alpha: float | Tensor, decay: float = 0.0) -> Tensor:
    """θ_{s-1} = (θ_s + α d) / (1 − αλ) as a new tensor: the parameters before a step along d + λ θ_{s-1}."""
    theta = add_scaled(p, alpha, d)
    return theta if is_zero(decay) else theta.div_(what_decay_leaves(alpha, decay))


def signed(g: Tensor, numbers: Numbers) -> Tensor:
    """The gradient of what is minimised: that of the loss, or of its negative under maximize."""
    return -g if numbers["maximize"] else g


def decayed(g: Tensor, p: Tensor, numbers: Numbers) -> Tensor:
    """The gradient with coupled weight decay, g + λ θ."""
    g = signed(g, numbers)
    return g if is_zero(numbers["penalty"]) else add_scaled(g, numbers["penalty"], p)
