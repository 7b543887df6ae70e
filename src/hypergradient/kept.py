"""Gradients that are kept as they are for the next step, where the loop leaves them alone; they need no copy then."""

import itertools
from typing import Any, final

from torch import Tensor


@final
class KeptGradients:
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
        self._held: dict[Tensor, tuple[Tensor, int]] = {}
        self._refused: set[Tensor] = set()

    def take(self, p: Tensor) -> bool:
        """Whether the gradient of ``p`` can be kept; it is to be asked once a step."""
        g: Any = p.grad
        if p in self._refused or type(g) is not Tensor or g._is_view() or g.untyped_storage().nbytes() != g.nbytes:
            return False
        if p in self._held:
            return g is not self._held[p][0]
        last, self._seen[p] = self._seen.get(p), next(self.LOOKS)
        fresh = last is not None and getattr(g, self.MARK, None) != last
        if not fresh:  # nothing is left on a gradient that is kept, since it gets into checkpoints
            setattr(g, self.MARK, self._seen[p])
        return fresh

    def hold(self, p: Tensor, state: dict[str, Any]) -> None:
        """Put the gradient into the state."""
        assert p.grad is not None
        state["direction"] = p.grad
        self._held[p] = p.grad, p.grad._version

    def release(self, p: Tensor, state: dict[str, Any]) -> None:
        """Take what has been kept out of the state, where it is not to be written to."""
        held = self._held.pop(p, None)
        if held is not None and state.get("direction") is held[0]:
            del state["direction"]

    def changed(self, p: Tensor, state: dict[str, Any]) -> bool:
        """Whether what stands in the state was kept, and has been written to since; no gradient of ``p`` is kept from then on."""
        if p not in self._held:
            return False
        g, version = self._held[p]
        if state.get("direction") is not g or g._version == version:
            return False
        self._refused.add(p)
        self.release(p, state)
        return True
