"""The average and what the rule sees, in transformers' Trainer."""

from collections.abc import Iterable
from typing import Any, final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .average import metrics, unwrap, use_average, use_iterate


@final
class HypergradientCallback(TrainerCallback):
    """Evaluates and saves the running average, and logs the learning rate that was applied and what the rule sees.

    The average comes into the parameters for evaluation, for a checkpoint and at the end of an epoch and of ``train()``, and goes before
    the next training step. A checkpoint's model is the average, and its optimizer.pt has all that a resumed run needs: that goes on as if
    it had never stopped. What is logged stands in ``state.log_history``, and in the logs of callbacks after this one: to have it in
    TensorBoard, ``report_to="none", callbacks=[HypergradientCallback(), TensorBoardCallback()]``.

    Args:
        batches: some fifty training batches, a list of what the model takes as keywords, from which batch norm gets the average's
            statistics. Default: batch norm keeps the iterates'.

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
        # Always: the last one is the end of the run, after which the best model may be loaded, and an average put in then would spoil it.
        use_average(kwargs["optimizer"], kwargs["model"], self.batches)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            found = metrics(kwargs["optimizer"])
            logs.update(found)
            state.log_history[-1].update(found)
