"""Lightning: a callback validates, saves and logs the average."""

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
        norm = nn.BatchNorm1d(64)
        self.net = nn.Sequential(
            nn.Linear(20, 64), norm, nn.ReLU(), nn.Linear(64, 2)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("valid_loss", loss)

    def configure_optimizers(self):
        return AdamWHD(self.parameters())


torch.manual_seed(0)
x = torch.randn(1024, 20)
y = (x[:, 0] * x[:, 1] > 0).long()
train = DataLoader(TensorDataset(x[:768], y[:768]), 64, shuffle=True)
valid = DataLoader(TensorDataset(x[768:], y[768:]), 256)
folder = tempfile.mkdtemp()
best = pl.callbacks.ModelCheckpoint(folder, monitor="valid_loss")
average = HypergradientCallback(batches=train)  # for batch norm's statistics
trainer = pl.Trainer(
    max_epochs=15,
    callbacks=[average, best],
    log_every_n_steps=10,
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Classifier(), train, valid)

for name in ("valid_loss", "alpha", "signal"):
    print(f"{name} {float(trainer.callback_metrics[name]):.4f}")
print(f"the best average: {best.best_model_path}")
assert best.best_model_score < 0.5
