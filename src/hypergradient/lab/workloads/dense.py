"""Dense prediction: autoencoders, denoising and diffusion, with random noise in the loss."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as binary_cross_entropy
from torch.nn.functional import mse_loss

from ..runs.data import Data
from .image import halved, images
from .problem import ADAM_SGD, ADAMW, Order, Problem, TrainValid, Workload, evaluation, fit, seeded

Noisy = Callable[[Tensor, Generator], Tensor]


def with_noise(model: nn.Module, loss: Noisy, sets: Sequence[Tensor], batch: int, seed: int) -> Problem:
    """A problem on inputs without targets, whose loss draws noise: from the seed in training, always the same in evaluation."""
    train, valid = sets
    order, generator = Order(len(train), batch, seed), Generator().manual_seed(seed)
    evaluate = evaluation(model, lambda x: loss(x[:2000], Generator().manual_seed(0)), ((train,), (valid,)))
    return Problem(model, lambda i: loss(train[order(i)], generator), evaluate)


def ink_vectors(sets: TrainValid) -> list[Tensor]:
    """MNIST's images as vectors in [0, 1], with 0 for paper and 1 for ink."""
    return [(x - x.min()) / (x.max() - x.min()) for x in (x.flatten(1) for x, _ in sets)]


def ink_pairs(data: Data | None) -> TrainValid:
    """MNIST's images as inputs and as targets."""
    train, valid = ink_vectors(images(data))
    return (train, train), (valid, valid)


def network(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def vae(seed: int, data: Data | None) -> Problem:
    """A variational autoencoder of MNIST, 784-128-16-128-784; the loss is the negative ELBO per image, in nats."""
    model = seeded(lambda: nn.ModuleList([network(784, 128, 32), network(16, 128, 784)]), seed)
    encoder, decoder = model.children()

    def loss(x: Tensor, generator: Generator) -> Tensor:
        mean, log_variance = encoder(x).chunk(2, 1)
        code = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator)
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum() / 2
        total: Tensor = binary_cross_entropy(decoder(code), x, reduction="sum") + divergence
        return total / len(x)

    return with_noise(model, loss, ink_vectors(images(data)), 64, seed)


def diffusion(seed: int, data: Data | None) -> Problem:
    """Diffusion: a 228-256-256-196 network predicts the noise in MNIST's images at 14x14 from image and time; cosine noise schedule."""
    model = seeded(lambda: network(196 + 32, 256, 256, 196), seed)
    frequencies = torch.logspace(0, 2, 16)

    def loss(x: Tensor, generator: Generator) -> Tensor:
        time, noise = torch.rand(len(x), 1, generator=generator), torch.randn(x.shape, generator=generator)
        angle = time * torch.pi / 2
        phases = time * frequencies
        noised = angle.cos() * x + angle.sin() * noise
        return mse_loss(model(torch.cat([noised, phases.sin(), phases.cos()], 1)), noise)

    return with_noise(model, loss, [2 * x - 1 for x in ink_vectors(halved(data))], 128, seed)


def denoising(seed: int, data: Data | None) -> Problem:
    """Removing noise of standard deviation 0.5 from the central 16x16 of CIFAR-10's images, by four convolutions of 12 channels."""

    def make() -> nn.Module:
        between = [layer for _ in range(2) for layer in (nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())]
        return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), *between, nn.Conv2d(12, 3, 3, padding=1))

    model = seeded(make, seed)

    def loss(x: Tensor, generator: Generator) -> Tensor:
        noisy = x + torch.randn(x.shape, generator=generator) / 2
        return mse_loss(noisy - model(noisy), x)

    return with_noise(model, loss, [x[:, :, 8:24, 8:24].contiguous() for x, _ in images(data)], 32, seed)


WORKLOADS = {
    "autoencoder": Workload(
        "MNIST, autoencoder", 500, fit(lambda: network(784, 128, 32, 128, 784), ink_pairs, 64, binary_cross_entropy), ADAM_SGD, data="mnist"
    ),
    "vae": Workload("MNIST, variational autoencoder", 500, vae, held_out=True, data="mnist"),
    "diffusion": Workload("MNIST, diffusion", 600, diffusion, data="mnist"),
    "denoising": Workload("CIFAR-10, denoising", 300, denoising, ADAMW, held_out=True, data="cifar10"),
}
