"""Gradients that are kept as they are for the next step, where the loop leaves them alone; they need no copy then."""

import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, final

from torch import Tensor

#: Elements of a tensor below which its gradient is copied, together with others.
SMALL = 16_384


@final
class LastGradients:
    """Which gradients of the last step stand in the state as its directions, and whether they are what they were.

    ``zero_grad()`` sets ``p.grad`` to None, and the backward pass makes a new tensor: the old one is left to whoever holds it. With
    ``set_to_none=False`` there is one tensor that is written to again. So a gradient is kept only if it is another tensor than that of
    the step before, and has no part in a larger one; it is known again by a mark, and a change by its version.
    """

    #: The attribute of a gradient that holds the number of the look at it.
    MARK = "_hypergradient_seen"
    LOOKS = itertools.count()

    def __init__(self) -> None:
        self._seen: dict[Tensor, int] = {}
        self._stored: dict[Tensor, tuple[Tensor, int]] = {}
        self._excluded: set[Tensor] = set()

    def __bool__(self) -> bool:
        """Whether there is, or has been, any of them."""
        return bool(self._stored or self._seen)

    def select(self, rows: Iterable[Any], is_direction: Callable[[dict[str, Any]], bool], enabled: bool) -> set[Tensor]:
        """Forget the directions that were gradients and have been changed, and tell which gradients of this step can be kept.

        Args:
            rows: the tensors with a gradient (``products.Row``).
            suits: whether the tensors of a param group have their gradient for a direction.
            takes: whether gradients may be kept.
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
                f"the gradients of {len(modified)} parameters were changed after a step that kept them, since zero_grad() had set them to "
                "None before: they do not count in this step's hypergradient, and are copied from now on",
                stacklevel=9,
            )
        return {row.p for row in candidates if row.grad.numel() >= SMALL and self.can_store(row.p)} if enabled else set()

    def exclude(self, params: Iterable[Tensor]) -> None:
        """Keep no gradient of these from now on."""
        self._excluded.update(params)

    def can_store(self, p: Tensor) -> bool:
        """Whether the gradient of ``p`` can be kept; it is to be asked once a step."""
        g: Any = p.grad
        if p in self._excluded or type(g) is not Tensor or g.requires_grad or g._is_view() or g.untyped_storage().nbytes() != g.nbytes:
            return False
        if p in self._stored:
            return g is not self._stored[p][0]
        last, self._seen[p] = self._seen.get(p), next(self.LOOKS)
        fresh = last is not None and getattr(g, self.MARK, None) != last
        if not fresh:  # nothing is left on a gradient that is kept, since it gets into checkpoints
            setattr(g, self.MARK, self._seen[p])
        return fresh

    def store(self, p: Tensor, state: dict[str, Any]) -> None:
        """Put the gradient into the state."""
        assert p.grad is not None
        state["direction"] = p.grad
        self._stored[p] = p.grad, p.grad._version

    def release(self, p: Tensor, state: dict[str, Any]) -> None:
        """Take what has been kept out of the state, where it is not to be written to."""
        stored = self._stored.pop(p, None)
        if stored is not None and state.get("direction") is stored[0]:
            del state["direction"]

    def was_modified(self, p: Tensor, state: dict[str, Any]) -> bool:
        """Whether what stands in the state was kept, and has been written to since; no gradient of ``p`` is kept from then on."""
        if p not in self._stored:
            return False
        g, version = self._stored[p]
        if state.get("direction") is not g or g._version == version:
            return False
        self._excluded.add(p)
        self.release(p, state)
        return True
