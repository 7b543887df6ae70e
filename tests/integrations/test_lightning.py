"""Lightning's own Trainer with our callback: what it validates, saves, logs, and resumes from."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny import BATCHES, Tiny, X, Y, equal, refreshed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hypergradient import AdamWHD
from hypergradient.integrations.lightning import HypergradientCallback

# All batches are the same: Lightning begins with the first one again where a run is resumed inside an epoch.
TRAIN = DataLoader(TensorDataset(X[:64].repeat(6, 1), Y[:64].repeat(6)), 64)
VALID = DataLoader(TensorDataset(X, Y), 64)


class Module(pl.LightningModule):
    def __init__(self, make: Any = AdamWHD, fails_at: int = -1, schedule: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.make, self.fails_at, self.schedule = Tiny().net, make, fails_at, schedule

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, _: int) -> Any:
        if self.global_step == self.fails_at:
            raise RuntimeError("stopped")
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("valid_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        opt = self.make(self.parameters())
        return ([opt], [torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, 4)]) if self.schedule else opt


def trainer(*callbacks: Any, epochs: int = 4, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "log_every_n_steps": 2}
    quiet |= {"enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks)}
    return pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **{**quiet, **options})


@pytest.mark.parametrize("batches", [None, BATCHES], ids=["", "batch norm"])
@pytest.mark.parametrize("schedule", [False, True], ids=["", "schedule"])
@pytest.mark.parametrize(
    ("when", "name"),
    [
        pytest.param({"every_n_epochs": 1}, "epoch=1-step=12.ckpt", id="epoch"),
        pytest.param({"every_n_train_steps": 9}, "epoch=1-step=9.ckpt", id="inside an epoch"),
        pytest.param({"monitor": "valid_loss"}, "epoch=1-step=12.ckpt", id="validation"),
    ],
)
def test_resumed_equals_never_stopped(tmp_path: Path, when: dict[str, Any], name: str, batches: Any, schedule: bool) -> None:
    whole = Module(schedule=schedule)
    trainer(HypergradientCallback(batches), ModelCheckpoint(tmp_path, save_top_k=-1, **when)).fit(whole, TRAIN, VALID)
    resumed = Module(schedule=schedule)
    trainer(HypergradientCallback(batches)).fit(resumed, TRAIN, VALID, ckpt_path=tmp_path / name)
    assert equal(whole, resumed)
    assert refreshed(whole.state_dict()) is (batches is not None), "the model after fit is the average"


@pytest.mark.parametrize("weights_only", [False, True], ids=["whole", "weights"])
def test_checkpoint_is_the_average_that_was_validated(tmp_path: Path, weights_only: bool) -> None:
    saves = ModelCheckpoint(tmp_path, monitor="valid_loss", save_weights_only=weights_only)
    module, own = Module(), trainer(HypergradientCallback(BATCHES), saves)
    own.fit(module, TRAIN, VALID)
    checkpoint = torch.load(saves.best_model_path)
    assert refreshed(checkpoint["state_dict"])
    if not weights_only:
        iterate = checkpoint["optimizer_states"][0]["state"][0]["iterate"]
        assert not torch.equal(iterate, checkpoint["state_dict"]["net.0.weight"])
    again = trainer().validate(Module(), VALID, ckpt_path=saves.best_model_path, verbose=False)[0]["valid_loss"]
    assert again == float(saves.best_model_score)
    own.fit_loop.epoch_loop._results.clear()
    assert own.validate(module, VALID, ckpt_path=saves.best_model_path, verbose=False)[0]["valid_loss"] == again, "nothing is added to it"


def test_saved_by_hand_in_training(tmp_path: Path) -> None:
    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
            if trainer.global_step == 9:
                before = [p.clone() for p in pl_module.parameters()]
                trainer.save_checkpoint(tmp_path / "by_hand.ckpt")
                assert all(torch.equal(p, q) for p, q in zip(before, pl_module.parameters(), strict=True))

    whole, resumed = Module(), Module()
    trainer(HypergradientCallback(BATCHES), Saves()).fit(whole, TRAIN, VALID)
    assert refreshed(torch.load(tmp_path / "by_hand.ckpt")["state_dict"])
    trainer(HypergradientCallback(BATCHES)).fit(resumed, TRAIN, VALID, ckpt_path=tmp_path / "by_hand.ckpt")
    assert equal(whole, resumed)


class Two(Module):
    """Optimizers for two parts of it, by hand; the one without an average is last."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        last = AdamWHD([self.net[3].bias], lr=1e-2, hypergrad_lr=1e-6)
        return [AdamWHD(self.net[:2].parameters()), AdamWHD([self.net[3].weight]), last]

    def training_step(self, batch: Any, index: int) -> None:
        loss = super().training_step(batch, index)
        for opt in self.optimizers():
            opt.zero_grad()
        self.manual_backward(loss)
        for opt in self.optimizers():
            opt.step()


@pytest.mark.parametrize("name", ["epoch=1-step=27.ckpt", "epoch=1-step=36.ckpt"])
def test_several_optimizers(tmp_path: Path, name: str) -> None:
    when = {"every_n_train_steps": 27} if "27" in name else {"every_n_epochs": 1}
    whole, resumed = Two(), Two()
    own = trainer(HypergradientCallback(BATCHES), ModelCheckpoint(tmp_path, save_top_k=-1, **when))
    own.fit(whole, TRAIN, VALID)
    trainer(HypergradientCallback(BATCHES)).fit(resumed, TRAIN, VALID, ckpt_path=tmp_path / name)
    assert equal(whole, resumed)
    assert refreshed(whole.state_dict())
    assert refreshed(torch.load(tmp_path / name)["state_dict"])
    assert {"0/alpha", "2/alpha"} <= own.callback_metrics.keys()


def test_logs(tmp_path: Path) -> None:
    own = trainer(HypergradientCallback(), logger=CSVLogger(tmp_path))
    own.fit(Module(), TRAIN, VALID)
    with (Path(own.logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["alpha"]]
    assert [int(row["step"]) for row in rows] == list(range(2, 25, 2))
    assert float(rows[-1]["alpha"]) == float(own.optimizers[0].param_groups[0]["alpha"])
    assert {"signal", "noise", "horizon"} <= rows[0].keys()
    assert {"alpha", "signal"} <= own.callback_metrics.keys()


def test_a_run_that_fails_leaves_the_average() -> None:
    module, own = Module(fails_at=9), trainer(HypergradientCallback(BATCHES))
    with pytest.raises(RuntimeError, match="stopped"):
        own.fit(module, TRAIN, VALID)
    assert refreshed(module.state_dict())


@pytest.mark.parametrize(
    ("make", "saves", "error", "match"),
    [
        pytest.param(torch.optim.Adam, {}, TypeError, "such as AdamWHD, got Adam", id="torch's"),
        pytest.param(AdamWHD, {"every_n_train_steps": 5}, ValueError, "every_n_train_steps=5.*save after validation", id="weights"),
    ],
)
def test_errors(tmp_path: Path, make: Any, saves: dict[str, int], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        trainer(HypergradientCallback(), ModelCheckpoint(tmp_path, save_weights_only=True, **saves)).fit(Module(make), TRAIN, VALID)
