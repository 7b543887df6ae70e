"""The running average and the values to log, in the Trainer of transformers."""

from collections.abc import Iterable
from typing import Any, final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .average import metrics, unwrap, use_average, use_iterate


@final
class HypergradientCallback(TrainerCallback):
    """Evaluates and saves the running average, and logs the applied learning rate and what the rule sees.

    The average is swapped into the parameters for evaluation, for checkpoints, and at the end of each epoch and of ``train()``, and swapped
    out before the next training step. The model in a checkpoint is the average, and optimizer.pt has everything that resuming needs: a
    resumed run equals one that was never interrupted. Values are logged to ``state.log_history``, and to callbacks after this one; to have
    them in TensorBoard, use ``report_to="none", callbacks=[HypergradientCallback(), TensorBoardCallback()]``.

    Args:
        batches: some fifty training batches, a list of what the model takes as keyword arguments, from which batch norm's statistics are
            computed for the average. Default: batch norm keeps the statistics of the iterates.

    Raises:
        TypeError: at the start of ``train()``, the optimizer is not of this library.

    Examples:
        >>> from transformers import Trainer
        >>> from hypergradient import AdamWHD
        >>> from hypergradient.integrations.transformers import HypergradientCallback
        >>> options = {"optimizer_cls_and_kwargs": (AdamWHD, {}), "callbacks": [HypergradientCallback()]}  # Trainer(model, ..., **options)
    """

    def __init__(self, batches: Iterable[Any] | None = None) -> None:
        self.batches = batches

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        unwrap(kwargs["optimizer"])

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        use_iterate(kwargs["optimizer"], kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_evaluate or control.should_save:
            use_average(kwargs["optimizer"], kwargs["model"], self.batches)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Unconditional: after the last epoch the best model may be loaded, which a later swap would overwrite.
        use_average(kwargs["optimizer"], kwargs["model"], self.batches)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            found = metrics(kwargs["optimizer"])
            logs.update(found)
            state.log_history[-1].update(found)
