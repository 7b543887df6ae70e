"""Gradients stored for the next step as they are, without a copy, if the training loop leaves them alone."""

import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, final

from torch import Tensor

#: Gradients with fewer elements are copied, together with others.
SMALL = 16_384


@final
class LastGradients:
    """Which gradients of the last step are stored in the state as its directions, and whether they are unchanged.

    After ``zero_grad()`` has set ``p.grad`` to None the backward pass makes a new tensor, and the old one can be stored. With
    ``set_to_none=False`` the same tensor is written again. So a gradient is stored only if it is another tensor than in the step before and
    owns its whole memory. It is recognized by a mark, and a change by its version.
    """

    #: The attribute of a gradient that holds the count at which it was last seen.
    MARK = "_hypergradient_seen"
    LOOKS = itertools.count()

    def __init__(self) -> None:
        self._seen: dict[Tensor, int] = {}
        self._stored: dict[Tensor, tuple[Tensor, int]] = {}
        self._excluded: set[Tensor] = set()

    def __bool__(self) -> bool:
        """Whether any gradient is stored or was looked at."""
        return bool(self._stored or self._seen)

    def select(self, rows: Iterable[Any], is_direction: Callable[[dict[str, Any]], bool], enabled: bool) -> set[Tensor]:
        """Drop stored gradients that were changed, and return the parameters whose gradients of this step can be stored.

        Args:
            rows: the tensors with a gradient (``products.GradientEntry``).
            is_direction: whether the gradient is the direction in a param group.
            enabled: whether gradients may be stored.
        """
        fits: dict[int, bool] = {}
        candidates = []
        for row in rows:
            if row.group_index not in fits:
                fits[row.group_index] = is_direction(row.group)
            if fits[row.group_index]:
                candidates.append(row)
        modified = [row.state for row in candidates if self.was_modified(row.p, row.state)] if self._stored else []
        for state in modified:
            state["applied"] = False
        if modified:
            warnings.warn(
                f"the gradients of {len(modified)} parameters were changed after a step that stored them, as zero_grad() had set them to "
                "None before: they are left out of this step's hypergradient, and copied from now on",
                stacklevel=9,
            )
        return {row.p for row in candidates if row.grad.numel() >= SMALL and self.can_store(row.p)} if enabled else set()

    def exclude(self, params: Iterable[Tensor]) -> None:
        """Never store gradients of these again."""
        self._excluded.update(params)

    def can_store(self, p: Tensor) -> bool:
        """Whether the gradient of ``p`` can be stored; to be called once a step."""
        g: Any = p.grad
        if p in self._excluded or type(g) is not Tensor or g.requires_grad or g._is_view() or g.untyped_storage().nbytes() != g.nbytes:
            return False
        if p in self._stored:
            return g is not self._stored[p][0]
        last, self._seen[p] = self._seen.get(p), next(self.LOOKS)
        fresh = last is not None and getattr(g, self.MARK, None) != last
        if not fresh:  # a stored gradient has no mark, since it gets into checkpoints
            setattr(g, self.MARK, self._seen[p])
        return fresh

    def store(self, p: Tensor, state: dict[str, Any]) -> None:
        """Store the gradient in the state."""
        assert p.grad is not None
        state["direction"] = p.grad
        self._stored[p] = p.grad, p.grad._version

    def release(self, p: Tensor, state: dict[str, Any]) -> None:
        """Remove the stored gradient from the state, which must not write to it."""
        stored = self._stored.pop(p, None)
        if stored is not None and state.get("direction") is stored[0]:
            del state["direction"]

    def was_modified(self, p: Tensor, state: dict[str, Any]) -> bool:
        """Whether the stored gradient was written to; none of ``p`` is stored from then on."""
        if p not in self._stored:
            return False
        g, version = self._stored[p]
        if state.get("direction") is not g or g._version == version:
            return False
        self._excluded.add(p)
        self.release(p, state)
        return True
