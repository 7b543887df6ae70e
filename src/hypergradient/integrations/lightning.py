"""The running average and the values to log, in Lightning's Trainer."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from ..optimizer import HypergradientOptimizer
from .average import averaged, metrics, use_average, use_iterate


@final
class HypergradientCallback(Callback):
    """Validates and saves the running average, and logs the applied learning rate and what the rule sees.

    The average is swapped into the parameters for validation, at the end of each epoch and of ``fit``, and swapped out before the next
    training batch. A checkpoint has the average as its ``state_dict`` and everything that resuming needs in ``optimizer_states``: a resumed
    run equals one that was never interrupted.

    Args:
        batches: some fifty training batches, a DataLoader or list, from which batch norm's statistics are computed for the average; the
            module is called with the first entry of each. Default: batch norm keeps the statistics of the iterates.

    Raises:
        TypeError: at the start of ``fit``, no optimizer of the module is of this library.
        ValueError: a ModelCheckpoint saves weights alone in the middle of an epoch, which Lightning reports to no callback.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> from hypergradient.integrations.lightning import HypergradientCallback
        >>> trainer = Trainer(callbacks=[HypergradientCallback()], accelerator="cpu", logger=False, enable_checkpointing=False)
    """

    def __init__(self, batches: Iterable[Any] | None = None) -> None:
        self.batches = batches
        self.logged: int = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_weights_only:
                for name in ("every_n_train_steps", "train_time_interval"):
                    value = getattr(callback, f"_{name}", None)
                    if value:
                        raise ValueError(
                            f"ModelCheckpoint(save_weights_only=True, {name}={value!r}) would save the iterate instead of its average: "
                            "save after validation or at the end of epochs, or leave save_weights_only out"
                        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not ours_of(trainer):
            names = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
            raise TypeError(f"configure_optimizers() must return an optimizer of hypergradient such as AdamWHD, got {names or 'none'}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for optimizer in ours_of(trainer):
            use_iterate(optimizer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        every: int = getattr(trainer, "log_every_n_steps", 0)
        if not every or trainer.global_step < self.logged + every:
            return
        self.logged = trainer.global_step
        found = metrics(ours_of(trainer))
        trainer.callback_metrics.update(found)  # type: ignore[arg-type]  # as LearningRateMonitor does
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Outside fit the parameters may have been loaded since: they are what is to be validated.
        if trainer.state.fn == TrainerFn.FITTING:
            self._use_average(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use_average(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use_average(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._use_average(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        optimizers = ours_of(trainer)
        with ExitStack() as stack:
            for optimizer, batches in self._with_batches(optimizers):
                stack.enter_context(averaged(optimizer, pl_module, batches))
            if optimizers:
                state = trainer.strategy.lightning_module_state_dict()
                checkpoint["state_dict"] = {name: value.clone() if hasattr(value, "clone") else value for name, value in state.items()}
                states: list[dict[str, Any]] = [trainer.strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers]
                # The dicts of tensors' states are the optimizer's own, and lose the iterate when it is put back.
                checkpoint["optimizer_states"] = [
                    {**state, "state": {p: dict(own) for p, own in state["state"].items()}} for state in states
                ]

    def _use_average(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer, batches in self._with_batches(ours_of(trainer)):
            use_average(optimizer, pl_module, batches)

    def _with_batches(self, optimizers: list[HypergradientOptimizer]) -> list[tuple[HypergradientOptimizer, Iterable[Any] | None]]:
        """Those that have an average; batch norm is refreshed with the last, when all parameters are theirs."""
        averaging = [optimizer for optimizer in optimizers if optimizer.setup.rule.averages]
        return [(optimizer, self.batches if optimizer is averaging[-1] else None) for optimizer in averaging]


def ours_of(trainer: Trainer) -> list[HypergradientOptimizer]:
    """The optimizers of this library; a module may have others beside them."""
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, HypergradientOptimizer)]
