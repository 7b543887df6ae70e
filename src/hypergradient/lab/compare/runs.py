"""One run: a workload, trained by one method from one seed."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn

from hypergradient import SGDHD, AdamHD, AdamWHD

from ..errors import LabError, first_line
from ..runs.config import PEERS
from ..runs.data import Data
from ..runs.peers import make_peer, step_of
from ..runs.store import Folder
from ..workloads import WORKLOADS, Problem, Workload
from .methods import FIELD, FIELD_GIVEN

#: The base optimizers: torch's class, ours, and what both are given.
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "adam": (torch.optim.Adam, AdamHD, {}),
    "adamw": (torch.optim.AdamW, AdamWHD, {}),
    "sgdn": (torch.optim.SGD, SGDHD, {"momentum": 0.9, "nesterov": True}),
}

#: What is trained: torch's own from each learning rate of a grid; ours without one, without and with a known budget, and from given ones;
#: the others, and the methods of the field.
TUNED = ("constant", "cosine")
OURS = ("ours", "ours-cosine")
METHODS = (*TUNED, *OURS, "given", *PEERS, *FIELD)

#: The file of results in a comparison's folder.
RUNS = "runs.jsonl"

#: Of the budget, for the warm-up of the cosine; and how many learning rates are kept of a run of ours.
WARM_UP, KEPT = 0.05, 100

#: How many steps torch's optimizer is timed for.
TIMED = 40

#: From how many steps later a minibatch is held out: that of the next would be what the learning rate follows without any.
AHEAD = 2


@dataclass(frozen=True)
class Job:
    """A run to be made: names of WORKLOADS, of KINDS and of METHODS; ``lr`` None where the method takes none."""

    workload: str
    base: str
    method: str
    lr: float | None
    seed: int

    @property
    def known(self) -> bool:
        """Whether this version can make it."""
        return self.workload in WORKLOADS and self.base in KINDS and self.method in METHODS

    @property
    def untold(self) -> bool:
        """Whether it starts from where its method does by itself."""
        return self.lr == (FIELD[self.method].lr if self.method in FIELD else None)

    @property
    def spread(self) -> bool:
        """Whether it is one of those that show how much the learning rate matters to a method of the field, or to ours."""
        return self.seed == 1 and (self.untold or self.lr in FIELD_GIVEN)


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Args:
        job: which run.
        train: final training loss, infinite where it diverged or failed.
        valid: final validation loss, the same.
        seconds: of the whole run.
        bytes: of the optimizer's state, per parameter that is trained.
        error: of a run that failed.
        alpha: of ours: some steps, from 1, and the learning rates of those.
        pace: seconds of a step of training, the median.
        pace_torch: the same of torch's optimizer just after it, of one run of a method that is timed.
    """

    job: Job
    train: float = math.inf
    valid: float = math.inf
    seconds: float | None = None
    bytes: float | None = None
    error: str | None = None
    alpha: tuple[list[int], list[float]] | None = None
    pace: float | None = None
    pace_torch: float | None = None

    @property
    def failed(self) -> bool:
        return math.isinf(self.train) or math.isinf(self.valid)

    def as_dict(self) -> dict[str, Any]:
        """A line of runs.jsonl, where infinity is null."""
        found = asdict(self)
        job: dict[str, Any] = found.pop("job")
        return job | found | {name: None if math.isinf(found[name]) else found[name] for name in ("train", "valid")}


def result(line: Mapping[str, Any]) -> Result:
    """What ``as_dict`` gave; raises TypeError, KeyError or ValueError where it is something else."""
    lr = None if line["lr"] is None else float(line["lr"])
    job = Job(str(line["workload"]), str(line["base"]), str(line["method"]), lr, int(line["seed"]))
    train, valid = (math.inf if line[name] is None else float(line[name]) for name in ("train", "valid"))
    names = ("seconds", "bytes", "pace", "pace_torch")  # of which earlier versions had two
    seconds, size, *paces = (None if line.get(name) is None else float(line[name]) for name in names)
    alpha = line["alpha"] and ([int(i) for i in line["alpha"][0]], [float(x) for x in line["alpha"][1]])
    return Result(job, train, valid, seconds, size, None if line["error"] is None else str(line["error"]), alpha or None, *paces)


def results_of(folder: Folder) -> list[Result]:
    """The results in a comparison's folder, but for runs that this version does not know.

    Raises:
        LabError: there are none, as in folders of earlier versions, or they cannot be read.
    """
    file = folder.path / RUNS
    if not file.exists():
        raise LabError(f"{file} is missing, as in comparisons of earlier versions: run hypergradient compare into another --output")
    try:
        found = [result(line) for line in folder.read_lines(RUNS)]
    except (TypeError, KeyError, ValueError, IndexError, AttributeError, OverflowError):
        raise LabError(f"{file} holds lines that are no results: run hypergradient compare into another --output") from None
    return [x for x in found if x.job.known]


def attempt(job: Job, data: Path | None) -> Result:
    """Train, on the data of a file where the workload needs some; a run that fails has an error in its result."""
    begun = time.perf_counter()
    try:
        workload, own = WORKLOADS[job.workload], None if data is None else stored(data)
        found = train(job, workload, own)
        if job.seed > 1 or not job.untold or job.method not in ("ours", *FIELD):
            return found
        beside = train(replace(job, method="constant", lr=1e-6), replace(workload, steps=TIMED), own)
        return replace(found, pace_torch=beside.pace)
    except Exception as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        return Result(job, seconds=round(time.perf_counter() - begun, 3), error=told)


@cache
def stored(file: Path) -> Data:
    """What torch.save wrote of a Data's fields, not read into memory but mapped: all processes share it."""
    return Data(**torch.load(file, mmap=True, weights_only=True))


def train(job: Job, workload: Workload, data: Data | None) -> Result:
    """Train a workload, and evaluate it once, at the end: under the average, with batch norm's statistics of it, where there is one."""
    begun = time.perf_counter()
    torch.manual_seed(job.seed)
    problem = workload.make(job.seed, data)
    held = held_out(problem, workload.make(job.seed, data), workload.steps) if job.method in FIELD and FIELD[job.method].held_out else None
    torch.manual_seed(job.seed + 1000)
    opt, scheduler = optimizer_of(job, workload, problem.model)
    alpha: tuple[list[int], list[float]] | None = ([], []) if job.method in (*OURS, "given") else None
    kept = {round(workload.steps ** (k / (KEPT - 1))) for k in range(KEPT)}
    problem.model.train()
    times = [time.perf_counter()]
    for i in range(workload.steps):
        loss = step(job, problem, opt, held, i)
        if scheduler:
            scheduler.step()
        if alpha and i + 1 in kept:
            alpha[0].append(i + 1)
            alpha[1].append(float(f"{float(opt.param_groups[0]['alpha']):.4g}"))
        if i % 20 == 0 and job.method in TUNED and not math.isfinite(loss.item()):
            return Result(job, seconds=round(time.perf_counter() - begun, 3))
        times.append(time.perf_counter())
    pace = float(f"{statistics.median(after - before for before, after in pairwise(times)):.4g}")
    size = state_bytes(opt, problem.model)
    if hasattr(opt, "eval"):
        opt.eval()
        if problem.inputs:
            update_bn(problem.inputs(), problem.model)
    ended, valid = (x if math.isfinite(x) else math.inf for x in problem.evaluate())
    return Result(job, ended, valid, round(time.perf_counter() - begun, 3), round(size, 2), None, alpha, pace)


def step(job: Job, problem: Problem, opt: Any, held: Callable[[int], Tensor] | None, i: int) -> Tensor:
    """A step of training, and of a method that looks at held-out data what follows it; returns the loss."""
    if problem.before:
        problem.before(i)
    opt.zero_grad()
    loss = problem.loss(i)
    torch.autograd.backward(loss, create_graph=job.method in FIELD and FIELD[job.method].graph)
    step_of(job.method, opt, loss)
    if held:
        opt.adapt(held(i))
    return loss


def held_out(problem: Problem, twin: Problem, steps: int) -> Callable[[int], Tensor]:
    """Losses of minibatches that steps are not made of: as no workload has data to spare, those of AHEAD steps later.

    They come from a twin of the problem, which has its parameters, so that its own minibatches are drawn as ever.
    """
    for own, other in zip(problem.model.modules(), twin.model.modules(), strict=True):
        for name, parameter in own.named_parameters(recurse=False, remove_duplicate=False):
            setattr(other, name, parameter)  # and not in its dictionary alone: recurrent layers keep lists of them
    twin.model.train()
    for i in range(AHEAD):  # they are drawn in turn
        twin.loss(i)
    return lambda i: twin.loss(min(i + AHEAD, steps - 1))


def optimizer_of(job: Job, workload: Workload, model: nn.Module) -> tuple[Any, LambdaLR | None]:
    """The method's optimizer over all parameters, those that are frozen too, and its scheduler."""
    weight_decay = workload.weight_decay if job.base == "adamw" else 0.0
    return make_optimizer(job, model, groups_of(workload, job.base, model), weight_decay, workload.steps)


def make_optimizer(
    job: Job, model: nn.Module, groups: list[dict[str, Any]], weight_decay: float, steps: int
) -> tuple[Any, LambdaLR | None]:
    """The method's optimizer over param groups, of which the peers are told their weight decay, and its scheduler over so many steps."""
    torchs, ours, options = KINDS[job.base]
    if job.method in PEERS:
        opt: Any = make_peer(job.method, model, 0.0, weight_decay, groups)
    elif job.method in FIELD:
        method = FIELD[job.method]
        opt = (method.kind or ours)(groups, **{"lr": job.lr, **({} if method.kind else options), **method.options(job.base)})
    else:
        opt = (torchs if job.method in TUNED else ours)(groups, lr=job.lr, **options)
    scheduler = LambdaLR(opt, lambda i: cosine(i, steps)) if job.method in ("cosine", "ours-cosine") else None
    return opt, scheduler


def cosine(i: int, steps: int) -> float:
    """The factor of a step, from 0: up in a line, then down to zero by half a cosine."""
    warm = max(1, round(WARM_UP * steps))
    return min((i + 1) / warm, (1 + math.cos(math.pi * max(0, i - warm) / max(1, steps - warm))) / 2)


def groups_of(workload: Workload, base: str, model: nn.Module) -> list[dict[str, Any]]:
    """Param groups: weights decay under "adamw" alone, and there matrices alone unless the workload has one group."""
    parameters, decay = list(model.parameters()), workload.weight_decay
    if base != "adamw":
        return [{"params": parameters}]
    if workload.one_group:
        return [{"params": parameters, "weight_decay": decay}]
    return decay_groups(parameters, decay)


def decay_groups(parameters: Sequence[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Two param groups: matrices, which decay, and all else."""
    parts = [([p for p in parameters if p.dim() >= 2], decay), ([p for p in parameters if p.dim() < 2], 0.0)]
    return [{"params": own, "weight_decay": weight_decay} for own, weight_decay in parts if own]


def state_bytes(opt: Any, model: nn.Module) -> float:
    """Bytes of an optimizer's state, its param groups and its average, per parameter of the model that is trained."""
    seen: dict[int, int] = {}
    own = {id(p) for p in model.parameters()}

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if id(value) not in own:
                seen[id(value)] = value.numel() * value.element_size()
        elif isinstance(value, Mapping):
            for x in value.values():
                walk(x)
        elif isinstance(value, list | tuple):
            for x in value:
                walk(x)

    walk([opt.state, [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]])
    if hasattr(opt, "averager"):
        walk([*opt.averager.av_model.parameters()])
    return sum(seen.values()) / sum(p.numel() for p in model.parameters() if p.requires_grad)
