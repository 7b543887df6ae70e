"""Lightning: the callback validates and saves the average, logs the rule's metrics, and refreshes batch norm."""

import tempfile

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hypergradient import AdamWHD
from hypergradient.integrations.lightning import HypergradientCallback


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("valid_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return AdamWHD(self.parameters())


torch.manual_seed(0)
x = torch.randn(1024, 20)
y = (x[:, 0] * x[:, 1] > 0).long()
train = DataLoader(TensorDataset(x[:768], y[:768]), 64, shuffle=True)
valid = DataLoader(TensorDataset(x[768:], y[768:]), 256)
folder = tempfile.mkdtemp()
best = pl.callbacks.ModelCheckpoint(folder, monitor="valid_loss")
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
trainer = pl.Trainer(max_epochs=15, log_every_n_steps=10, callbacks=[HypergradientCallback(batches=train), best], **quiet)
trainer.fit(Classifier(), train, valid)

found = {name: float(trainer.callback_metrics[name]) for name in ("valid_loss", "alpha", "signal")}
print(f"{found}; the best average is in {best.best_model_path}")
assert best.best_model_score < 0.5
