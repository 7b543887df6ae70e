"""A GAN: two optimizers, each with its own learning rate."""

import torch
from torch import nn

from hypergradient import AdamHD

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
critic = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1))
# What either minimises moves with the other, so the paper's rule from a known learning rate, which moves it little.
make = AdamHD(generator.parameters(), lr=2e-3, betas=(0.5, 0.999), hypergrad_lr=1e-7)
judge = AdamHD(critic.parameters(), lr=2e-3, betas=(0.5, 0.999), hypergrad_lr=1e-7)
loss = nn.BCEWithLogitsLoss()
ones, zeros = torch.ones(128, 1), torch.zeros(128, 1)

for _ in range(1000):
    real, fake = 3 + 0.5 * torch.randn(128, 1), generator(torch.randn(128, 4))
    judge.zero_grad()
    (loss(critic(real), ones) + loss(critic(fake.detach()), zeros)).backward()
    judge.step()
    make.zero_grad()
    loss(critic(fake), ones).backward()
    make.step()

with torch.no_grad():
    samples = generator(torch.randn(2000, 4))
print(f"samples have mean {samples.mean():.2f} (3), deviation {samples.std():.2f} (0.5)")
assert abs(samples.mean() - 3) < 0.5
