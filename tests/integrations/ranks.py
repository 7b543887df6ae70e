"""Results of real gloo processes: each run on several ranks against the same run in one process with the whole batch."""

import gc
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, multiprocessing, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hypergradient import (
    HDM,
    SGDHD,
    AdaGradRule,
    AdamHD,
    AdamRule,
    AdamWHD,
    Adapted,
    Additive,
    Autostep,
    Decay,
    Delayed,
    Hypergradient,
    LionRule,
    Multiplicative,
    Signal,
    TuningFree,
)

#: What takes seconds to import, which one process does for all that are forked from it. It does not find this file.
IMPORTED = ["hypergradient", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"]

STEPS, BATCH = 30, 12
BETAS = (Multiplicative(0.02), Multiplicative(0.02))

#: Every class, rule, scope and option meets a spread.
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "AdamHD": AdamHD,
    "AdamHD-decay": partial(AdamHD, rule=Decay(TuningFree(), total_steps=STEPS)),
    "AdamHD-tensor": partial(AdamHD, scope="tensor"),
    "AdamHD-capturable": partial(AdamHD, capturable=True),
    "AdamHD-horizon": partial(AdamHD, lr=1e-2, hypergrad_lr=1e-4, horizon=5),
    "AdamHD-element": partial(AdamHD, lr=1e-2, rule=Multiplicative(0.05), scope="element"),
    "AdamHD-element-capturable": partial(AdamHD, lr=1e-2, rule=Multiplicative(0.05), scope="element", capturable=True),
    "AdamHD-adapt": partial(AdamHD, lr=1e-2, adapt={"lr": Multiplicative(0.02), "betas": BETAS}),
    "AdamHD-fused": partial(AdamHD, fused=True),
    "AdamWHD": partial(AdamWHD, lr=1e-2, weight_decay=0.1, rule=Multiplicative(0.05)),
    "AdamWHD-adapt": partial(AdamWHD, lr=1e-2, adapt={"lr": Multiplicative(0.02), "betas": BETAS, "eps": Additive(1e-3)}, capturable=True),
    "SGDHD": partial(SGDHD, lr=0.05, hypergrad_lr=1e-3),
    "SGDHD-nesterov": partial(SGDHD, lr=0.05, momentum=0.9, nesterov=True, rule=Multiplicative(0.05), scope="tensor"),
    "SGDHD-tower": partial(SGDHD, lr=0.05, rule=Multiplicative(Adapted(0.05, Multiplicative(0.02)))),
    "AdamWHD-metaoptimize": partial(AdamWHD, lr=1e-3, rule=Delayed(LionRule(0.02, log=True)), signal=Signal(0.99), scope="tensor"),
    "AdamHD-learner-element": partial(
        AdamHD, lr=1e-3, rule=AdamRule(1e-4), signal=Signal(normalized=True), scope="element", capturable=True
    ),
    "SGDHD-autostep": partial(SGDHD, lr=0.05, rule=Autostep(), signal=Signal(1.0, curvature="squares"), scope="element"),
    "SGDHD-normalized": partial(SGDHD, lr=1e-3, rule=AdaGradRule(0.02), signal=Signal(normalized=True), scope="tensor"),
    "HDM": partial(HDM, lr=1e-3, hypergrad_lr=0.02, momentum_lr=0.1),
    "Hypergradient": lambda params, **options: Hypergradient(torch.optim.Adam(params, lr=1e-3), **options),
    "Hypergradient-additive": lambda params, **options: Hypergradient(torch.optim.NAdam(params, lr=1e-2), hypergrad_lr=1e-4, **options),
}


class Model(nn.Module):
    """Of 6 rows four ranks have 2, 2, 2 and none; of 3 they have 1, 1, 1 and none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.norm, self.last = nn.Linear(6, 6), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.second(self.first(x).tanh()).tanh()))


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    return torch.randn(BATCH, 6, generator=generator).double(), torch.randn(BATCH, 3, generator=generator).double()


def mesh(*shape: int, names: tuple[str, ...]) -> Any:
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def in_parts(model: Any, **options: Any) -> Any:
    for layer in (model.first, model.second, model.last):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def tensor_parallel(model: Any, part: Any) -> Any:
    return parallelize_module(model, part, {"second": RowwiseParallel(), "first": ColwiseParallel()})


def both(model: Any) -> Any:
    whole = mesh(2, 2, names=("dp", "tp"))
    return in_parts(tensor_parallel(model, whole["tp"]), mesh=whole["dp"])


def by_pieces(model: Any) -> Any:
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


#: How a model is spread over so many ranks, over how many its batch is, and what its optimizer must be told.
SPREADS: dict[str, tuple[int, int, Callable[[Any], Any], dict[str, Any]]] = {
    "DDP": (2, 2, nn.parallel.DistributedDataParallel, {}),
    "FSDP2": (2, 2, in_parts, {}),
    "FSDP2-one-group": (2, 2, fully_shard, {}),
    "FSDP1": (2, 2, by_pieces, {"process_group": "world"}),
    "TP": (2, 1, lambda model: tensor_parallel(model, mesh(2, names=("tp",))), {}),
    "FSDP2-of-4": (4, 4, in_parts, {}),
    "HSDP": (4, 4, lambda model: in_parts(model, mesh=mesh(2, 2, names=("replicas", "shards"))), {}),
    "TP+FSDP2": (4, 2, both, {}),
}


def train(model: Any, opt: Any, rank: int, of: int, start: int = 0, end: int = STEPS, lost: int | None = None) -> list[list[float]]:
    """The learning rates of each step; rank 0 has a gradient that is not finite in the step ``lost``."""
    found = []
    for t in range(start, end):
        x, y = batch(t)
        own = slice(rank * BATCH // of, (rank + 1) * BATCH // of)
        opt.zero_grad()
        loss = (model(x[own]) - y[own]).square().mean()
        (loss * (float("inf") if t == lost and rank == 0 else 1.0)).backward()
        opt.step()
        found.append([float(x) for group in opt.param_groups for x in (group["alpha"], *group.get("betas", ()))])
    return found


def apart(found: Any) -> float:
    """How far ranks are from each other: 0 where all have the same, to the bit."""
    own = torch.tensor(found, dtype=torch.float64)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    return float(max((x - every[0]).abs().max() for x in every))


def compare(name: str, spread: str) -> dict[str, float]:
    """One optimizer: how far from one process, how far ranks are apart, and what a gradient does that is not finite on one of them."""
    _, over, place, told = SPREADS[spread]
    rank = dist.get_rank() * over // dist.get_world_size() if spread == "TP+FSDP2" else dist.get_rank() % over
    options = {"process_group": dist.group.WORLD} if told else {}
    alone = Model()
    expected = torch.tensor(train(alone, OPTIMIZERS[name](alone.parameters()), 0, 1))
    result = {"edited": 0.0}
    for lost in (None, 7):
        model = place(Model())
        opt = OPTIMIZERS[name](model.parameters(), **options)
        found = train(model, opt, rank, over, lost=lost, end=STEPS if lost is None else 12)
        result[f"apart {lost}"] = apart(found)
        result["edited"] += len(opt.edits.copies)
        if lost is None:
            result["off"] = float(((torch.tensor(found) - expected) / expected).abs().max())
        else:
            result["skipped"] = float(opt.skipped)
    return result


def zero(name: str, spread: str) -> dict[str, float]:
    """ZeroRedundancyOptimizer: each rank has some tensors whole."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # which warns when it is imported

    alone, options = Model(), {"scope": "tensor", "rule": TuningFree()} if name == "tensor" else {}
    twin = AdamHD(alone.parameters(), **options)
    train(alone, twin, 0, 1)
    model = nn.parallel.DistributedDataParallel(Model())
    kind: Any = AdamHD if name == "tensor" else partial(AdamHD, process_group=dist.group.WORLD)
    opt = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, **options)
    for t in range(STEPS):
        x, y = batch(t)
        own = slice(dist.get_rank() * BATCH // 2, (dist.get_rank() + 1) * BATCH // 2)
        opt.zero_grad()
        (model(x[own]) - y[own]).square().mean().backward()
        opt.step()
    values = [p.detach().reshape(-1) for p in model.parameters()]
    expected = torch.cat([p.detach().reshape(-1) for p in alone.parameters()])
    return {"off": float((torch.cat(values) - expected).abs().max()), "apart": apart(torch.cat(values).tolist())}


def checkpoint(name: str, spread: str) -> dict[str, float]:
    """Saved after 10 steps by two ranks, or gone on with by however many there are; the spread is "save" or "load", and where."""
    what, folder = spread.split(maxsplit=1)
    alone = Model()
    expected = torch.tensor(train(alone, OPTIMIZERS[name](alone.parameters()), 0, 1))
    world = dist.get_world_size()
    model = in_parts(Model())
    opt = OPTIMIZERS[name](model.parameters())
    options = StateDictOptions()
    if what == "save":
        train(model, opt, dist.get_rank(), world, end=10)
        weights, states = get_state_dict(model, opt, options=options)
        dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)
        return {}
    weights, states = get_state_dict(model, opt, options=options)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=folder)
    set_state_dict(model, opt, model_state_dict=weights, optim_state_dict=states, options=options)
    found = train(model, opt, dist.get_rank(), world, start=10)
    return {"apart": apart(found), "off": float(((torch.tensor(found) - expected[10:]) / expected[10:]).abs().max())}


def others(name: str, spread: str) -> dict[str, float]:
    """What else people do under FSDP2, and ``adapt()`` under DDP."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if name == "adapt":
        model = nn.parallel.DistributedDataParallel(Model())
        opt = AdamHD(model.parameters(), lr=1e-2, hypergrad_lr=1e-3)
        train(model, opt, rank, world, end=2)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(3):
                opt.adapt(model(batch(0)[0]).square().mean())
        return {"told": float(sum("the gradients of this rank alone" in str(warning.message) for warning in said))}
    if name == "clamped":
        return clamped(rank, world)
    alone = Model()
    expected = torch.tensor(train(alone, AdamHD(alone.parameters()), 0, 1))
    if name == "meta":
        with torch.device("meta"):
            model = in_parts(Model())
        model.to_empty(device="cpu")
        for p, value in zip(model.parameters(), Model().parameters(), strict=True):
            with torch.no_grad():
                p.copy_(torch.distributed.tensor.distribute_tensor(value.detach(), p.device_mesh, p.placements))
        opt = AdamHD(model.parameters())
    else:
        model = in_parts(Model())
        opt = AdamHD(model.parameters())
        if name == "compiled":
            opt.step = torch.compile(opt.step)
        elif name == "refused":
            try:
                AdamHD(by_pieces(Model()).parameters())
            except ValueError as error:
                return {"refused": float("process_group" in str(error))}
            return {"refused": 0.0}
    found = train(model, opt, rank, world)
    return {"apart": apart(found), "off": float(((torch.tensor(found) - expected) / expected).abs().max())}


def clamped(rank: int, world: int) -> dict[str, float]:
    """Shards in bfloat16 that are clamped after each step: how far their average is outside, and how many tensors have a copy."""
    model = in_parts(Model().bfloat16())
    opt = AdamHD(model.parameters())
    alphas = []
    for t in range(60):
        x, y = (z.bfloat16()[rank::world] for z in batch(t))
        opt.zero_grad()
        (model(x) - y).square().mean().backward()
        opt.step()
        alphas.append(float(opt.param_groups[0]["alpha"]))
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() > 1:
                    p.clamp_(-0.0625, 0.0625)
    with opt.averaged():
        outside = max(float(p.detach().full_tensor().abs().max()) for p in model.parameters() if p.dim() > 1)
    return {"apart": apart(alphas), "outside": outside, "edited": float(len(opt.edits.copies)), "alpha": alphas[-1]}


def work(rank: int, world: int, store: str, job: str, names: list[str], spread: str, out: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    jobs = {"compare": compare, "zero": zero, "checkpoint": checkpoint, "others": others}
    found = {name: jobs[job](name, spread) for name in names}
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    gc.collect()
    dist.barrier()
    os._exit(0)  # gloo's threads may abort where one rank takes its groups apart before another does; what is to be found is found


def run(world: int, job: str, names: list[str], spread: str = "") -> dict[str, dict[str, float]]:
    """What rank 0 of so many processes found, by name."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found"
        multiprocessing.set_forkserver_preload(IMPORTED)
        args = (world, str(Path(folder) / "store"), job, names, spread, str(out))
        multiprocessing.start_processes(work, args, nprocs=world, start_method="forkserver")
        found: dict[str, dict[str, float]] = json.loads(out.read_text())
        return found
