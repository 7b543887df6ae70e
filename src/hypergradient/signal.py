"""The signal of a rule: what the gradient is multiplied with to give a hypergradient, the last direction or a trace of all past ones.

    z_t = γ (z_{t-1} − α_t C z_{t-1}) + w d_t,    h_t = −g_t · z_{t-1} / N

z_t is the derivative of −θ_t by a learning rate that all steps so far have in common. C is the curvature, through which a step depends on
the ones before it; w = α_t where the rule updates log α, else 1. With γ = 0 this is the paper: z = d.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from .checks import check_flag
from .direction import signed
from .runner import Coefficients
from .tensors import add_scaled, assign_if_taken, is_zero

Curvature = Literal["hessian", "squares"] | Callable[[Tensor], Tensor] | None


@final
@dataclass(frozen=True)
class Signal:
    """Where the hypergradient of the learning rate comes from: the last step alone, or a discounted trace of all past steps.

        z_t = γ (1 − α_t (λ + C)) z_{t-1} + w d_t,    h_t = −g_t · z_{t-1} / N
        w = α_t where the rule updates log α, else 1

    λ is the weight decay of the step (AdamW, SGD). With ``opt.adapt(loss)`` the gradient ``g_t`` is that of other data than the step's.

    Args:
        discount: γ in [0, 1]. 0 is the last direction alone, 1 forgets nothing. Default 0.
        curvature: C, through which a step depends on earlier ones. None: ignored. ``"hessian"``: the Hessian of the training loss over the
            tensors that share a learning rate; takes one more backward pass per learning rate, gradients with a graph
            (``create_graph=True`` in ``backward`` or ``torch.autograd.grad``), a single process, and SGDHD without Nesterov momentum (one
            more buffer with momentum). A function: called with a parameter, returns a diagonal of its shape, such as the squared inputs
            in linear prediction. ``"squares"``: the squared gradient, as a proxy for that diagonal. A diagonal never removes more than all
            of z. Default None.
        part: ``"step"``: ``d_t`` is the direction of the step, with momentum and weight decay. ``"gradient"``: the direction that this
            step's gradient alone would give. Default "step".
        normalized: divide hypergradients, also those of other hyperparameters, by N = ‖g_{t-1}‖² of the param group (of all groups for
            ``scope="global"``). Default False: N = 1.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import torch
        >>> from hypergradient import AdamWHD, LionRule, Signal
        >>> w = torch.nn.Parameter(torch.tensor([5.0, -3.0]))
        >>> opt = AdamWHD([w], lr=1e-4, rule=LionRule(0.05, log=True), signal=Signal(0.999))
        >>> for _ in range(50):
        ...     opt.zero_grad()
        ...     (w**2).sum().backward()
        ...     opt.step()
        >>> opt.param_groups[0]["lr"] > 1e-4
        True

    References:
        Sharifnassab et al., *MetaOptimize*, ICML 2025 (γ, w = α); Franceschi et al., ICML 2017, and Donini et al., IJCAI 2020 (RTHO and
        MARTHE: γ and the Hessian); Sutton, *Adapting Bias by Gradient Descent*, AAAI 1992 (IDBD: a diagonal); Chu et al., ICML 2025 (HDM:
            N).
    """

    discount: float = 0.0
    curvature: Curvature = None
    part: Literal["step", "gradient"] = "step"
    normalized: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.discount, bool) or not isinstance(self.discount, int | float) or not 0 <= self.discount <= 1:
            raise ValueError(f"discount must lie in [0, 1], got {self.discount!r}")
        if not (callable(self.curvature) or self.curvature in (None, "hessian", "squares")):
            raise ValueError(f'curvature must be "hessian", "squares", None or a function of a parameter, got {self.curvature!r}')
        if self.part not in ("step", "gradient"):
            raise ValueError(f'part must be "step" or "gradient", got {self.part!r}')
        check_flag("normalized", self.normalized)


def curvatures(signal: Signal, by_lr: Iterable[Sequence[Tensor]], state: Mapping[Tensor, Mapping[str, Any]]) -> dict[Tensor, Tensor]:
    """C z of each tensor if C is the Hessian; the diagonal if C is a function.

    Args:
        signal: names the curvature.
        by_lr: the tensors that have a gradient, grouped by learning rate; a trace belongs to one learning rate alone.
        state: has the traces.

    Raises:
        RuntimeError: the gradients have no graph.
        ValueError: the function returns a tensor of another shape.
    """
    found: dict[Tensor, Tensor] = {}
    if callable(signal.curvature):
        for p in (p for own in by_lr for p in own):
            found[p] = signal.curvature(p)
            if found[p].shape != p.shape:
                raise ValueError(f"curvature must return a tensor of its parameter's shape {tuple(p.shape)}, got {tuple(found[p].shape)}")
        return found
    for own in ([p for p in tensors if "trace" in state.get(p, ())] for tensors in by_lr if signal.curvature == "hessian"):
        grads = [p.grad for p in own if p.grad is not None and p.grad.requires_grad]
        if len(grads) < len(own):
            raise RuntimeError('curvature="hessian" needs gradients with a graph: call backward(create_graph=True)')
        with torch.enable_grad():
            traces = [state[p]["trace"] for p in own]
            products = torch.autograd.grad(grads, own, traces, retain_graph=True, materialize_grads=True) if own else ()
        found |= dict(zip(own, products, strict=True))
    return found


def update_trace(piece: Mapping[str, Any], d: Any, alpha: Any, squares: Any, coef: Coefficients) -> None:
    """Update z_{t-1} to z_t, in place.

    Args:
        piece: "trace" is z; "curvature", if there is one; "trace_momentum" is the derivative of the momentum buffer, ∂v/∂α, with a Hessian.
        d: d_t, or its part.
        alpha: α_t; 0 for a skipped step.
        squares: g_t² where it stands for the curvature, else None.
        coef: "trace_decay" is γ; "decay_rate" is λ; "lr_weighted", whether w is α; "ratio", if it is not 1; "hessian"; on a device "taken",
            1 or 0.
    """
    z, decay, c = piece["trace"], coef.get("decay_rate", 0.0), piece.get("curvature", squares)
    if c is None or coef["hessian"]:
        if not is_zero(decay) or c is not None:
            shrinkage = z.mul(decay) if c is None else add_scaled(signed(c, coef), decay, z)
            if "trace_momentum" in piece:
                shrinkage = add_scaled(shrinkage, coef["momentum"], piece["trace_momentum"])
                assign_if_taken(piece["trace_momentum"], shrinkage.mul(coef["trace_decay"]), coef)
            z.sub_(shrinkage.mul(alpha))
    else:
        z.mul_(c.mul(1.0).add_(decay).mul_(alpha).mul_(-1.0).add_(1.0).clamp_min_(0.0))
    z.mul_(coef["trace_decay"])
    if coef["lr_weighted"]:
        z.add_(d.mul(alpha))
        return
    w = coef.get("taken", 1.0)
    add_scaled(z, w * coef["ratio"] if "ratio" in coef else w, d, out=z)
