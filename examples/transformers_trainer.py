"""transformers' Trainer: a callback evaluates, saves and loads the average."""

import tempfile

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hypergradient import AdamWHD
from hypergradient.integrations.transformers import HypergradientCallback


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x, labels):
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


torch.manual_seed(0)
rows = [{"x": x, "labels": int(x[0] * x[1] > 0)} for x in torch.randn(1024, 20)]
args = TrainingArguments(
    tempfile.mkdtemp(),
    num_train_epochs=15,
    per_device_train_batch_size=64,
    lr_scheduler_type="cosine",
    warmup_steps=10,
    logging_steps=30,
    eval_strategy="epoch",
    save_strategy="epoch",
    load_best_model_at_end=True,
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
trainer = Trainer(
    Classifier(),
    args,
    train_dataset=rows[:768],
    eval_dataset=rows[768:],
    optimizer_cls_and_kwargs=(AdamWHD, {}),
    callbacks=[HypergradientCallback()],
)
trainer.train()
loss = trainer.evaluate()["eval_loss"]
print(f"evaluation loss {loss:.3f}")
print(f"the best average: {trainer.state.best_model_checkpoint}")
assert loss == trainer.state.best_metric
assert loss < 0.5
