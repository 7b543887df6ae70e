"""DistributedDataParallel on two processes: gradients are averaged before the step, so all ranks have the same learning rate."""

import tempfile

import torch
import torch.distributed as dist
from torch import nn

from hypergradient import AdamWHD


def work(rank, size, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    train(rank, size)
    dist.destroy_process_group()  # when nothing of the model is left: torch may wait for ever where a DDP model outlives its group


def train(rank, size):
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2)))
    opt = AdamWHD(model.parameters())
    torch.manual_seed(rank)  # data of its own
    for _ in range(200):
        x = torch.randn(32, 20)
        y = (x[:, 0] * x[:, 1] > 0).long()
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()

    opt.eval()  # on every rank; one saves
    mine = torch.cat([p.detach().flatten() for p in model.parameters()] + [torch.tensor([opt.param_groups[0]["alpha"]])])
    of_all = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(of_all, mine)
    assert all(torch.equal(mine, other) for other in of_all)
    x = torch.randn(512, 20)
    loss = nn.functional.cross_entropy(model.module(x), (x[:, 0] * x[:, 1] > 0).long()).item()
    assert loss < 0.5
    if rank == 0:
        print(f"loss {loss:.3f}; average and learning rate are the same on {size} ranks")


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (2, f"{tempfile.mkdtemp()}/store"), nprocs=2)
