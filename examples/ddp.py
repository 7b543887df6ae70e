"""DistributedDataParallel on two processes: all ranks adapt alike."""

import tempfile

import torch
import torch.distributed as dist
from torch import nn

from hypergradient import AdamWHD


def work(rank, size, store):
    method = f"file://{store}"
    dist.init_process_group("gloo", method, rank=rank, world_size=size)
    torch.set_num_threads(1)
    train(rank, size)
    # The model is gone: torch may hang if a DDP model outlives its group.
    dist.destroy_process_group()


def train(rank, size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    model = nn.parallel.DistributedDataParallel(model)
    opt = AdamWHD(model.parameters())
    torch.manual_seed(rank)  # each rank has its own data
    for _ in range(200):
        x = torch.randn(32, 20)
        y = (x[:, 0] * x[:, 1] > 0).long()
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()

    opt.eval()  # on every rank; save on one
    alpha = torch.tensor([opt.param_groups[0]["alpha"]])
    weights = [p.detach().flatten() for p in model.parameters()]
    mine = torch.cat([alpha, *weights])
    of_all = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(of_all, mine)
    assert all(torch.equal(mine, other) for other in of_all)
    x = torch.randn(512, 20)
    y = (x[:, 0] * x[:, 1] > 0).long()
    loss = nn.functional.cross_entropy(model.module(x), y).item()
    assert loss < 0.5
    if rank == 0:
        print(f"loss {loss:.3f}, average and alpha equal on {size} ranks")


if __name__ == "__main__":
    store = f"{tempfile.mkdtemp()}/store"
    torch.multiprocessing.spawn(work, (2, store), nprocs=2)
