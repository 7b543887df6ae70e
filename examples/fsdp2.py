"""FSDP2 on two processes: sharded parameters and distributed checkpoints."""

import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import state_dict
from torch.distributed.fsdp import fully_shard

from hypergradient import AdamWHD


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    return model, AdamWHD(model.parameters())


def train(model, opt, steps):
    for step in steps:
        torch.manual_seed(100 * step + dist.get_rank())  # data of this rank
        x = torch.randn(32, 20)
        y = (x[:, 0] * x[:, 1] > 0).long()
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()


def work(rank, size, store, folder):
    method = f"file://{store}"
    dist.init_process_group("gloo", method, rank=rank, world_size=size)
    torch.set_num_threads(1)
    model, opt = make()
    train(model, opt, range(100))
    weights, state = state_dict.get_state_dict(model, opt)
    dcp.save({"model": weights, "opt": state}, checkpoint_id=folder)
    train(model, opt, range(100, 200))

    resumed, its_opt = make()
    weights, state = state_dict.get_state_dict(resumed, its_opt)
    dcp.load({"model": weights, "opt": state}, checkpoint_id=folder)
    loaded = {"model_state_dict": weights, "optim_state_dict": state}
    state_dict.set_state_dict(resumed, its_opt, **loaded)
    train(resumed, its_opt, range(100, 200))
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p.to_local(), q.to_local())

    opt.eval()
    x = torch.randn(512, 20)
    y = (x[:, 0] * x[:, 1] > 0).long()
    loss = nn.functional.cross_entropy(model(x), y).item()
    assert loss < 0.5
    if rank == 0:
        alpha = float(opt.param_groups[0]["alpha"])
        print(f"loss {loss:.3f}, learning rate {alpha:.2g}, on {size} ranks")
    dist.barrier()  # no rank exits while another waits for it
    dist.destroy_process_group()


if __name__ == "__main__":
    store = f"{tempfile.mkdtemp()}/store"
    torch.multiprocessing.spawn(work, (2, store, tempfile.mkdtemp()), nprocs=2)
