"""transformers' own Trainer: the default optimizer under each of its schedules, and our callback."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import BATCHES, Tiny, X, Y, equal, refreshed
from transformers import SchedulerType, Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback

from hypergradient import AdamHD, AdamWHD
from hypergradient.integrations.transformers import HypergradientCallback

ROWS = [{"x": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)]
KWARGS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 20},
}


def averages() -> HypergradientCallback:
    return HypergradientCallback([{"x": x} for x in BATCHES])


def trained(out: Path, callbacks: Any, resume: Path | None = None, optimizer: Any = (AdamWHD, {}), **options: Any) -> Trainer:
    torch.manual_seed(0)
    steps = {"logging_steps": 3, "save_strategy": "steps", "save_steps": 30, "eval_strategy": "steps", "eval_steps": 5}
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 32, "num_train_epochs": 12}
    args = TrainingArguments(str(out), **{**steps, **quiet, **options})
    own = Trainer(Tiny(), args, train_dataset=ROWS, eval_dataset=ROWS, optimizer_cls_and_kwargs=optimizer, callbacks=callbacks)
    own.train(resume_from_checkpoint=None if resume is None else str(resume))
    return own


def logged(own: Trainer, name: str) -> list[float]:
    return [row[name] for row in own.state.log_history if name in row]


@pytest.mark.parametrize("with_callback", [True, False], ids=["callback", "alone"])
@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType])
def test_every_schedule_trains_and_resumes(tmp_path: Path, name: str, with_callback: bool) -> None:
    # The greedy one writes back, as it is loaded, the learning rate of the last evaluation: the checkpoint must be one's.
    options = {"lr_scheduler_type": name, "lr_scheduler_kwargs": KWARGS.get(name, {}), "eval_steps": 5 if name == "greedy" else 7}
    options |= {"warmup_steps": 3} if "warmup" in name or name == "inverse_sqrt" else {}
    callbacks = [averages] if with_callback else []
    whole = trained(tmp_path / "whole", [make() for make in callbacks], **options)
    assert logged(whole, "eval_loss")[-1] < 0.75 * logged(whole, "loss")[0]
    assert whole.evaluate()["eval_loss"] < 0.75 * logged(whole, "loss")[0]
    resumed = trained(tmp_path / "resumed", [make() for make in callbacks], tmp_path / "whole" / "checkpoint-30", **options)
    resumed.evaluate()
    assert equal(whole.model, resumed.model)
    if with_callback:
        assert logged(whole, "alpha/0") == [*logged(whole, "alpha/0")[: -len(tail := logged(resumed, "alpha/0")[10:])], *tail]


@pytest.mark.parametrize(
    "optimizer", [(AdamHD, {"lr": 1e-2, "hypergrad_lr": 1e-6}), (AdamWHD, {"scope": "tensor"})], ids=["paper", "tensor"]
)
def test_other_options(tmp_path: Path, optimizer: Any) -> None:
    whole = trained(tmp_path / "whole", [averages()], optimizer=optimizer)
    resumed = trained(tmp_path / "resumed", [averages()], tmp_path / "whole" / "checkpoint-30", optimizer=optimizer)
    assert equal(whole.model, resumed.model)
    assert logged(whole, "eval_loss")[-1] < 0.75 * logged(whole, "loss")[0]


def test_saved_is_the_average_that_was_evaluated(tmp_path: Path) -> None:
    own = trained(tmp_path, [averages()])
    for step in (30, 60):  # both at an evaluation
        folder = tmp_path / f"checkpoint-{step}"
        weights = load_file(folder / "model.safetensors")
        assert refreshed(weights)
        kept = torch.load(folder / "optimizer.pt")["state"]
        assert not any(torch.equal(own_state["iterate"], weights["net.0.weight"]) for own_state in kept.values())
        model = Tiny()
        model.load_state_dict(weights)
        loss = model.eval()(X, Y)["loss"].item()
        assert loss == pytest.approx(
            next(r["eval_loss"] for r in own.state.log_history if r["step"] == step and "eval_loss" in r), rel=1e-5
        )
    own.save_model(str(tmp_path / "last"))
    assert refreshed(load_file(tmp_path / "last" / "model.safetensors"))


@pytest.mark.parametrize(("eval_steps", "average"), [(30, True), (7, False)], ids=["after evaluation", "elsewhere"])
def test_without_callback_it_saves_what_is_there(tmp_path: Path, eval_steps: int, average: bool) -> None:
    trained(tmp_path, [], eval_steps=eval_steps)
    assert ("iterate" in torch.load(tmp_path / "checkpoint-30" / "optimizer.pt")["state"][0]) is average


@pytest.mark.parametrize("options", [{"save_steps": 5, "eval_steps": 5}, {"save_strategy": "best"}], ids=["steps", "best"])
def test_best_model_is_loaded_and_nothing_is_added_to_it(tmp_path: Path, options: dict[str, Any]) -> None:
    own = trained(tmp_path, [averages()], load_best_model_at_end=True, metric_for_best_model="eval_loss", num_train_epochs=6.5, **options)
    saved = load_file(Path(own.state.best_model_checkpoint) / "model.safetensors")
    assert own.evaluate()["eval_loss"] == own.state.best_metric
    assert all(torch.equal(value, saved[name]) for name, value in own.model.state_dict().items())


def test_logs_reach_tensorboard(tmp_path: Path) -> None:
    own = trained(tmp_path, [averages(), TensorBoardCallback()], logging_steps=6)
    events = EventAccumulator(str(next(tmp_path.rglob("events*")).parent))
    events.Reload()
    assert [row.value for row in events.Scalars("train/alpha/0")] == pytest.approx(logged(own, "alpha/0"))
    assert {"train/signal/0", "train/signal/1"} <= set(events.Tags()["scalars"])
    assert logged(own, "alpha/0")[-1] == own.optimizer.optimizer.param_groups[0]["alpha"]


def test_accumulation_and_clipping(tmp_path: Path) -> None:
    own = trained(tmp_path, [averages()], gradient_accumulation_steps=2, max_grad_norm=0.5, num_train_epochs=8)
    assert logged(own, "eval_loss")[-1] < 0.75 * logged(own, "loss")[0]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="such as AdamWHD"):
        trained(tmp_path, [averages()], optimizer=(torch.optim.SGD, {"lr": 0.1}))
