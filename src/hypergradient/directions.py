"""Directions in closed form: d_t = −∂θ_t/∂α_t = −∇αu_t, the step that θ_t = θ_{t-1} − α_t d_t takes at learning rate 1.

A direction gives three things: the gradient that its algorithm uses; the direction of the last step, recomputed from the optimizer's state
before that advances; and the next direction. Its arguments are real views (see tensors.py): a tensor, a piece of one, or a list. Only
``prepare``, which makes buffers, takes the parameter itself.

An option may be a tensor instead of a float: if it is adapted on a device, or if the parameters of R runs are stacked, [R, ...], and each
run has its own value (see lab/ensemble.py): momentum, dampening and weight decay that broadcast, [R, 1, ...].

On a device the host does not know whether a step will be taken. The coefficient "taken" is 1 or 0 then, and the other coefficients are such
that a skipped step, given a gradient of 0, leaves every buffer as it was; "skipped" is 1 − "taken".

Symbols: g gradient, v momentum buffer, m and s first and second moment of Adam, t the parameter's own step count, μ momentum, τ dampening,
λ weight decay.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Parameter

from .checks import check_flag, check_number, check_pair
from .direction import Direction, decayed, signed
from .runner import Coefficients, TensorLists
from .tensors import TensorOrList, add_product, add_scaled, assign_if_taken, bump_version, copy_tensors, is_dense, is_zero, lerp


@final
class SGD(Direction):
    """Stochastic gradient descent, with momentum or Nesterov momentum if the group sets it."""

    remembered_options: tuple[str, ...] = ("momentum", "nesterov", "weight_decay")
    buffers: tuple[str, ...] = ("momentum_buffer", "direction")
    stored: bool = True

    def __init__(self, *, averaging: bool = False) -> None:
        self.averaging = averaging

    def check(self, group: Mapping[str, Any]) -> None:
        for name in ("momentum", "weight_decay"):
            check_number(name, group[name])
        check_number("dampening", group["dampening"], low=-math.inf)
        for name in ("nesterov", "maximize"):
            check_flag(name, group[name])
        if self.averaging and group["momentum"] >= 1:
            raise ValueError(f"momentum must be below 1 under TuningFree, as it interpolates with the average, got {group['momentum']!r}")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov=True needs momentum > 0 and dampening = 0, got momentum={group['momentum']!r}, dampening={group['dampening']!r}"
            )

    def without_momentum(self) -> Direction:
        return SGD(averaging=True)

    def interpolation(self, group: Mapping[str, Any]) -> Any:
        return group["momentum"] if self.averaging else 0.0

    def decay_rate(self, group: Mapping[str, Any]) -> Any:
        return group["weight_decay"]

    def needed_buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        if self.averaging:
            return ()
        no_momentum = is_zero(group["momentum"])
        return ("momentum_buffer",) * (not no_momentum) + ("direction",) * bool(no_momentum or group["nesterov"])

    def coefficients(self, state: Mapping[str, Any], group: Mapping[str, Any], taken: Any = None) -> Coefficients:
        if self.averaging:
            return {}
        new = 1.0 if state.get("first") else 1 - group["dampening"]  # the first step sets the buffer to the gradient
        mu = group["momentum"]
        own = {"momentum": mu, "nesterov": group["nesterov"]}
        return own | {"gradient_weight": new, "momentum_decay": mu if taken is None else 1 - taken * (1 - mu)}

    def last_coef(self, state: Mapping[str, Any], last: Mapping[str, Any]) -> Coefficients:
        return {name: last[name] for name in ("momentum", "nesterov")}

    def is_gradient(self, group: Mapping[str, Any]) -> bool:
        return not self.averaging and is_zero(group["momentum"]) and is_zero(group["weight_decay"]) and not group["maximize"]

    def fused_step(self, tensors: TensorLists, state: Mapping[str, Any], group: Mapping[str, Any], alpha: float) -> bool:
        copies_gradient = "direction" in tensors  # otherwise the gradient itself is stored
        if (copies_gradient and not self.is_gradient(group)) or not fits_fused_kernels(tensors):
            return False
        if copies_gradient:
            copy_tensors(tensors["direction"], tensors["g"])
        options: Any = {name: group[name] for name in ("weight_decay", "momentum", "dampening", "maximize")}
        first = bool(state.get("first", False))
        buffers = [] if is_zero(group["momentum"]) else tensors["momentum_buffer"]
        torch._fused_sgd_(tensors["p"], tensors["g"], buffers, lr=alpha, nesterov=False, is_first_step=first, **options)
        bump_version(*tensors["p"], *buffers)
        return True

    def gradient(self, g: TensorOrList, p: TensorOrList | None, coef: Coefficients) -> Any:
        return decayed(g, p, coef)

    def previous(self, p: TensorOrList | None, state: Mapping[str, Any], coef: Coefficients) -> Any:
        # Plain momentum's direction is its buffer, which is still that of the last step.
        return state["direction" if is_zero(coef["momentum"]) or coef["nesterov"] else "momentum_buffer"]

    def advance(self, g: TensorOrList, p: TensorOrList, state: Mapping[str, Any], coef: Coefficients) -> Any:
        if self.averaging:
            return g
        mu = coef["momentum"]
        if is_zero(mu):
            if "taken" in coef:
                return state["direction"].mul_(coef["skipped"]).add_(g)
            return state["direction"].copy_(g) if "direction" in state else g  # d_t = g_t; the gradient itself if that is stored
        v = state["momentum_buffer"].mul_(coef["momentum_decay"])
        add_scaled(v, coef["gradient_weight"], g, out=v)  # v_t = μ v + (1 − τ) g
        if not coef["nesterov"]:
            return v  # d_t = v_t
        d = state["direction"]  # d_t = g_t + μ v_t
        return assign_if_taken(d, add_scaled(g, mu, v), coef) if "taken" in coef else add_scaled(g, mu, v, out=d)


@final
class HeavyBall(Direction):
    """Gradient descent with momentum in the displacement: θ_t = θ_{t-1} − α_t g_t + μ_t (θ_{t-1} − θ_{t-2}), where d_t = g_t.

    So α_t scales the gradient only, and the derivative by μ_t is the displacement. A null step restores the parameters and the gradient at
    which it started, with a displacement of 0.
    """

    remembered_options: tuple[str, ...] = ("momentum",)
    buffers: tuple[str, ...] = ("direction", "momentum_buffer", "before")
    initialized_from_params: tuple[str, ...] = ("before",)
    stored: bool = True

    def __init__(self, *, monotone: bool = False) -> None:
        self.monotone: bool = monotone
        self.irreversible: bool = monotone

    def check(self, group: Mapping[str, Any]) -> None:
        for name in ("momentum", "weight_decay"):
            check_number(name, group[name])
        check_flag("maximize", group["maximize"])

    def decay_rate(self, group: Mapping[str, Any]) -> Any:
        return group["weight_decay"]

    def needed_buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return self.buffers

    def coefficients(self, state: Mapping[str, Any], group: Mapping[str, Any], taken: Any = None) -> Coefficients:
        return {"momentum": group["momentum"] if taken is None else taken * group["momentum"]}

    def last_coef(self, state: Mapping[str, Any], last: Mapping[str, Any]) -> Coefficients:
        return {}

    def gradient(self, g: TensorOrList, p: TensorOrList | None, coef: Coefficients) -> Any:
        return decayed(g, p, coef)

    def previous(self, p: TensorOrList | None, state: Mapping[str, Any], coef: Coefficients) -> Any:
        return state["direction"]

    def advance(self, g: TensorOrList, p: TensorOrList, state: Mapping[str, Any], coef: Coefficients) -> Any:
        d, before, displacement = state["direction"], state["before"], state["momentum_buffer"]
        if coef.get("null_step"):
            p.copy_(before)
            displacement.mul_(0.0)
        else:
            assign_if_taken(displacement, p.sub(before), coef)
            assign_if_taken(before, p, coef)
            assign_if_taken(d, g, coef)
        add_scaled(p, coef["momentum"], displacement, out=p)
        return d


@final
class Adam(Direction):
    """Adam with weight decay coupled into the gradient, or AdamW, which decays the parameters themselves."""

    remembered_options: tuple[str, ...] = ("betas", "eps", "weight_decay")
    buffers: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    counters: tuple[str, ...] = ("step",)

    def __init__(self, *, decoupled: bool, averaging: bool = False) -> None:
        self.decoupled: bool = decoupled
        self.averaging: bool = averaging

    def check(self, group: Mapping[str, Any]) -> None:
        for name in ("eps", "weight_decay"):
            check_number(name, group[name])
        check_flag("maximize", group["maximize"])
        check_pair("betas", group["betas"])

    def without_momentum(self) -> Direction:
        return Adam(decoupled=self.decoupled, averaging=True)

    def interpolation(self, group: Mapping[str, Any]) -> Any:
        return group["betas"][0] if self.averaging else 0.0

    def decay_rate(self, group: Mapping[str, Any]) -> Any:
        return group["weight_decay"] if self.decoupled else 0.0

    def needed_buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return self.buffers[self.averaging :]

    def fused_step(self, tensors: TensorLists, state: Mapping[str, Any], group: Mapping[str, Any], alpha: float) -> bool:
        if not fits_fused_kernels(tensors):
            return False
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        p, g, m, s = (tensors[name] for name in ("p", "g", "exp_avg", "exp_avg_sq"))
        count = torch.full((), state["step"], dtype=torch.float32, device=tensors["p"][0].device)
        beta1, beta2 = group["betas"]
        options: Any = {name: group[name] for name in ("weight_decay", "eps", "maximize")}
        kernel(p, g, m, s, [], [count] * len(p), lr=alpha, beta1=beta1, beta2=beta2, amsgrad=False, **options)
        bump_version(*p, *m, *s)
        return True

    def coefficients(self, state: Mapping[str, Any], group: Mapping[str, Any], taken: Any = None) -> Coefficients:
        beta1, beta2 = (0.0, group["betas"][1]) if self.averaging else group["betas"]
        own = {"beta2": beta2, "gradient_weight1": 1 - beta1, "gradient_weight2": 1 - beta2, "weight_decay": group["weight_decay"]}
        if taken is not None:
            new = as_pair((own["gradient_weight1"], own["gradient_weight2"]), taken)
            own["beta1"], own["beta2"] = (1 - new * taken).unbind()
        return own | adam_coef(state["step"], (beta1, beta2), group["eps"])

    def last_coef(self, state: Mapping[str, Any], last: Mapping[str, Any]) -> Coefficients:
        return adam_coef(state["step"], last["betas"], last["eps"]) | self.last_decay(state, last)

    def last_decay(self, state: Mapping[str, Any], last: Mapping[str, Any]) -> Coefficients:
        """ "weight_decay", the decay that is part of the last direction, and "decay_factor", the part of the parameters that it left."""
        decay = last["weight_decay"] if self.decoupled else 0.0
        if is_zero(decay):
            return {"weight_decay": 0.0}
        if isinstance(state["step"], Tensor):  # 0 if no step was taken yet
            decay = decay * (state["step"] > 0).float()
        return {"weight_decay": decay, "decay_factor": decay_factor(state["lr"], decay)}

    def gradient(self, g: TensorOrList, p: TensorOrList | None, coef: Coefficients) -> Any:
        return signed(g, coef) if self.decoupled else decayed(g, p, coef)

    def previous(self, p: TensorOrList | None, state: Mapping[str, Any], coef: Coefficients) -> Any:
        d = adam_direction(state["exp_avg"], state["exp_avg_sq"], coef)
        decay = coef["weight_decay"]
        if is_zero(decay):
            return d
        # d_s = a + λ θ_{s-1} = (a + λ θ_s) / (1 − α_s λ), since θ_s = θ_{s-1} − α_s d_s.
        return add_scaled(d, decay, p, out=d).div_(
            decay_factor(with_schedule(state["lr"], coef), decay) if "lr" in state else coef["decay_factor"]
        )

    def advance(self, g: TensorOrList, p: TensorOrList, state: Mapping[str, Any], coef: Coefficients) -> Any:
        m, s = g, state["exp_avg_sq"].mul_(coef["beta2"])
        if not self.averaging:
            m = state["exp_avg"]
            if "taken" in coef:
                add_scaled(m.mul_(coef["beta1"]), coef["gradient_weight1"], g, out=m)
            else:
                lerp(m, coef["gradient_weight1"], g)  # m_t = β1 m_{t-1} + (1 − β1) g_t
        add_product(s, coef["gradient_weight2"], g, g, out=s)  # s_t = β2 s_{t-1} + (1 − β2) g_t²
        d = adam_direction(m, s, coef)
        return add_scaled(d, coef["weight_decay"], p, out=d) if self.decoupled else d

    def gradient_part(self, g: Any, state: Mapping[str, Any], coef: Coefficients) -> Any:
        return adam_direction(g.mul(coef["c1"]), state["exp_avg_sq"], coef)


def fits_fused_kernels(tensors: TensorLists) -> bool:
    """Whether torch's fused kernels take the tensors: dense, on a CPU or CUDA device, and not bfloat16, where torch 2.13's SGD is wrong."""
    first = tensors["p"][0]
    if first.dtype not in (torch.float32, torch.float64) or first.device.type not in ("cpu", "cuda"):
        return False
    for column in tensors.values():
        if not {type(x) for x in column} <= {Tensor, Parameter} or {x.dtype for x in column} != {first.dtype}:
            return False
    contiguous = all(all(map(Tensor.is_contiguous, column)) for column in tensors.values())
    return contiguous or all(map(is_dense, zip(*tensors.values(), strict=True)))


def adam_coef(step: Any, betas: tuple[Any, Any], eps: Any) -> Coefficients:
    """W = c1 (√ŝ + ε) = "root" √s + "eps", where c1 = 1 − β1^t, c2 = 1 − β2^t and ŝ = s/c2; with t = 1 before the first step."""
    if isinstance(step, Tensor):
        c1, c2 = (1 - as_pair(betas, step) ** step.clamp(min=1)).unbind()
        return {"root": c1 / c2.sqrt(), "eps": c1 * eps, "c1": c1}
    c1, c2 = (1 - beta ** max(step, 1) for beta in betas)
    return {"root": c1 / c2**0.5, "eps": c1 * eps, "c1": c1}


def as_pair(pair: tuple[Any, Any], like: Tensor) -> Tensor:
    """Two scalars as a tensor [2], or [2, 1] if ``like`` has one entry per tensor."""
    if any(isinstance(x, Tensor) for x in pair):
        both = torch.stack([x if isinstance(x, Tensor) else torch.full_like(like, x).reshape(-1)[0] for x in pair])
    else:
        both = constants(pair, like.dtype, like.device)
    return both if like.dim() == 0 else both[:, None]


@functools.lru_cache(maxsize=1000)
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Constants on a device, made once."""
    return torch.tensor(values, dtype=dtype, device=device)


def adam_direction(m: Any, s: Any, coef: Coefficients) -> Any:
    """m̂ / (√ŝ + ε) = m/W as a new tensor of float32 or wider, with m̂ = m / (1 − β1^t) and ŝ = s / (1 − β2^t) (Algorithm 3)."""
    w = adam_root(s).mul_(coef["root"]).add_(coef["eps"])
    return m.div(w) if isinstance(w, list) else torch.div(m, w, out=w)


def adam_root(s: Any) -> Any:
    """√s as a new tensor of float32 or wider: in float16 ε = 1e-8 would be 0, and an element without a gradient 0 / 0."""
    return s.to(torch.promote_types(s.dtype, torch.float32)).sqrt()


def with_schedule(alpha: Any, coef: Coefficients) -> Any:
    """Elementwise learning rates, times the factor of a scheduler if there is one."""
    return alpha.mul(coef["factor"]) if "factor" in coef else alpha


def decay_factor(alpha: Any, decay: Any) -> Any:
    """1 − αλ, the part of the parameters that a step of decoupled decay leaves; 1 if it left nothing, since θ_{t-1} is lost then."""
    if isinstance(alpha, list):  # elementwise learning rates of several tensors
        return [decay_factor(x, decay) for x in alpha]
    left = 1 - alpha * decay
    if isinstance(left, Tensor):
        return left.masked_fill_(left == 0, 1.0)
    return left or 1.0
