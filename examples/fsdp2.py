"""FSDP2 on two processes: parameters are sharded, and a run resumes from a distributed checkpoint of average and optimizer."""

import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
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
        torch.manual_seed(100 * step + dist.get_rank())  # data of its own
        x = torch.randn(32, 20)
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), (x[:, 0] * x[:, 1] > 0).long()).backward()
        opt.step()


def work(rank, size, store, folder):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    model, opt = make()
    train(model, opt, range(100))
    weights, state = get_state_dict(model, opt)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    train(model, opt, range(100, 200))

    resumed, its_opt = make()
    weights, state = get_state_dict(resumed, its_opt)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(resumed, its_opt, model_state_dict=weights, optim_state_dict=state)
    train(resumed, its_opt, range(100, 200))
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p.to_local(), q.to_local())

    opt.eval()
    x = torch.randn(512, 20)
    loss = nn.functional.cross_entropy(model(x), (x[:, 0] * x[:, 1] > 0).long()).item()
    assert loss < 0.5
    if rank == 0:
        print(f"loss {loss:.3f}, learning rate {float(opt.param_groups[0]['alpha']):.2g}, on {size} ranks")
    dist.barrier()  # no rank goes while another waits for it
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (2, f"{tempfile.mkdtemp()}/store", tempfile.mkdtemp()), nprocs=2)
