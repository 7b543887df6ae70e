"""A GAN: two optimizers, each with its own learning rate."""

import torch
from torch import nn

from hypergradient import AdamHD

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
critic = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1))
# Each loss changes with the other network, so start from a known learning rate;
# at this hypergrad_lr the paper's rule changes it little.
adam = {"lr": 2e-3, "betas": (0.5, 0.999), "hypergrad_lr": 1e-7}
opt_generator = AdamHD(generator.parameters(), **adam)
opt_critic = AdamHD(critic.parameters(), **adam)
loss = nn.BCEWithLogitsLoss()
ones, zeros = torch.ones(128, 1), torch.zeros(128, 1)

for _ in range(1000):
    real, fake = 3 + 0.5 * torch.randn(128, 1), generator(torch.randn(128, 4))
    opt_critic.zero_grad()
    (loss(critic(real), ones) + loss(critic(fake.detach()), zeros)).backward()
    opt_critic.step()
    opt_generator.zero_grad()
    loss(critic(fake), ones).backward()
    opt_generator.step()

with torch.no_grad():
    samples = generator(torch.randn(2000, 4))
print(f"mean of the samples {samples.mean():.2f}, of the data 3")
print(f"deviation of the samples {samples.std():.2f}, of the data 0.5")
assert abs(samples.mean() - 3) < 0.5
