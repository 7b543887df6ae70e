"""One run: a workload, trained by one method from one seed."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn
from torch.utils._pytree import tree_leaves

from hypergradient import SGDHD, AdamHD, AdamWHD

from ..errors import LabError, first_line
from ..runs.data import Data
from ..runs.peers import NEED_LOSS, make_peer, take_step
from ..runs.store import Folder
from ..workloads import WORKLOADS, Problem, Workload
from .methods import FIELD, FIELD_GIVEN, OTHERS

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
METHODS = (*TUNED, *OURS, "given", *OTHERS, *FIELD)

#: The file of results in a comparison's folder.
RUNS = "runs.jsonl"

#: Of the budget, for the warm-up of the cosine; and how many learning rates are kept of a run of ours.
WARM_UP, KEPT = 0.05, 100

#: How many steps torch's optimizer is timed for.
TIMED = 40

#: From how many steps later a minibatch is held out: that of the next would be what the learning rate follows without any.
AHEAD = 2


#: What a line of results holds: numbers, none beyond those of float32, and whole ones.
Number = Annotated[float, Field(strict=True, ge=0, le=3.5e38)]
Whole = Annotated[int, Field(strict=True, ge=1, le=2**32)]


@dataclass(frozen=True)
class Job:
    """A run to be made: names of WORKLOADS, of KINDS and of METHODS; ``lr`` None where the method takes none."""

    workload: str
    base: str
    method: str
    lr: Number | None
    seed: Whole

    @property
    def known(self) -> bool:
        """Whether this version can make it."""
        there = self.workload in WORKLOADS and self.base in WORKLOADS[self.workload].bases and self.method in METHODS
        return there and (self.lr is None) == (self.method in (*OURS, *OTHERS))

    @property
    def pair(self) -> tuple[str, str]:
        return self.workload, self.base

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
        digest: of the files that it was trained on, where those are known.
    """

    job: Job
    train: Number = math.inf
    valid: Number = math.inf
    seconds: Number | None = None
    bytes: Number | None = None
    error: str | None = None
    alpha: tuple[list[Whole], list[Number]] | None = None
    pace: Number | None = None
    pace_torch: Number | None = None
    digest: str | None = None

    @property
    def failed(self) -> bool:
        return math.isinf(self.train) or math.isinf(self.valid)

    def on(self, digests: Mapping[str, str]) -> bool:
        """Whether it was trained on data of these digests, by name, or does not know."""
        present = digests.get(WORKLOADS[self.job.workload].data or "")
        return not present or self.digest in (None, present)

    def as_dict(self) -> dict[str, Any]:
        """A line of runs.jsonl, where infinity is null."""
        found = asdict(self)
        job: dict[str, Any] = found.pop("job")
        return job | found | {name: None if math.isinf(found[name]) else found[name] for name in ("train", "valid")}


RESULT = TypeAdapter(Result)


def result(line: Mapping[str, Any]) -> Result:
    """What ``as_dict`` gave, of earlier versions too, which had fewer names; raises ValueError where it is something else."""
    for name in ("workload", "base", "method", "lr", "seed", "train", "valid"):
        if not isinstance(line, dict) or name not in line:
            raise ValueError(f"it has no {name}")
    job = {field.name: line[field.name] for field in fields(Job)}
    try:
        found = RESULT.validate_python({name: value for name, value in line.items() if value is not None} | {"job": job})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{first['loc'][-1]}: {first['msg']}, got {str(first['input'])[:100]!r}") from None
    if found.alpha and len(found.alpha[0]) != len(found.alpha[1]):
        raise ValueError("alpha has more steps than learning rates, or fewer")
    return found


def results_of(folder: Folder) -> list[Result]:
    """The results in a comparison's folder, but for runs that this version does not know, and for those on other data than its last.

    Raises:
        LabError: there are none, as in folders of earlier versions, or they cannot be read.
    """
    file, found = folder.path / RUNS, dict[Job, Result]()
    if not file.exists():
        raise LabError(f"{file} is missing, as in comparisons of earlier versions: run hypergradient compare into another --output")
    present = (folder.read_json("experiment.json") or {}).get("data")
    digests = present if isinstance(present, dict) else {}
    try:
        lines = file.read_bytes().split(b"\n")[:-1]  # the last is empty, or was torn
    except OSError as error:
        raise LabError(f"{file} cannot be read ({first_line(error)}): choose another --output") from None
    for number, line in enumerate(lines, 1):
        try:
            x = result(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise LabError(f"{file} cannot be read (line {number}: {first_line(error)}): remove that line, its run is made again") from None
        if x.job.known and x.on(digests):
            found[x.job] = x
    return [*found.values()]


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
    weight_decay = workload.weight_decay if job.base == "adamw" else 0.0
    opt, scheduler = make_optimizer(job, problem.model, groups_of(workload, job.base, problem.model), weight_decay, workload.steps)
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
    take_step(opt, loss, OTHERS.get(job.method) in NEED_LOSS)
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


def make_optimizer(
    job: Job, model: nn.Module, groups: list[dict[str, Any]], weight_decay: float, steps: int
) -> tuple[Any, LambdaLR | None]:
    """The method's optimizer over param groups, of which the peers are told their weight decay, and its scheduler over so many steps."""
    torchs, ours, options = KINDS[job.base]
    if job.method in OTHERS:
        decouple = {"decouple": True} if job.method == "dadapt-adam" else {}  # as AdamW's
        opt: Any = make_peer(OTHERS[job.method], model, {"weight_decay": weight_decay, **decouple}, groups)
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
    """Param groups of all parameters, frozen ones too; weights decay under "adamw" alone, and there matrices alone, or all in one group."""
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
    own = {id(p) for p in model.parameters()}
    averaged = [*opt.averager.av_model.parameters()] if hasattr(opt, "averager") else []
    groups = [{name: value for name, value in group.items() if name != "params"} for group in opt.param_groups]
    leaves = tree_leaves([[*opt.state.values()], groups, averaged])
    seen = {id(x): x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor) and id(x) not in own}
    return sum(seen.values()) / sum(p.numel() for p in model.parameters() if p.requires_grad)
