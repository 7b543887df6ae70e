"""One run of a comparison: a workload trained by one method with one seed."""

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
from ..runs.peers import NEED_LOSS, PEER_CLASSES, make_peer, take_step
from ..runs.store import Folder
from ..workloads import WORKLOADS, Problem, Workload
from .methods import PUBLISHED, PUBLISHED_LRS

#: The base optimizers: torch's class, ours, and the options of both.
BASE_OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "adam": (torch.optim.Adam, AdamHD, {}),
    "adamw": (torch.optim.AdamW, AdamWHD, {}),
    "sgdn": (torch.optim.SGD, SGDHD, {"momentum": 0.9, "nesterov": True}),
}

#: The methods as stored in results: "constant" and "cosine" are torch's optimizer at each learning rate of a grid; "ours" is tuning-free,
#: "ours-cosine" the same with cosine decay, "given" from a given initial learning rate; then the peers and the published methods.
TUNED = ("constant", "cosine")
OURS = ("ours", "ours-cosine")
METHODS = (*TUNED, *OURS, "given", *PEER_CLASSES, *PUBLISHED)

#: The file of results in a comparison's folder.
RUNS = "runs.jsonl"

#: The fraction of steps for warm-up before cosine decay; and the number of learning rates recorded of an HD run.
WARM_UP, ALPHA_POINTS = 0.05, 100

#: Number of steps for which torch's optimizer is timed.
TIMED_STEPS = 40

#: Held-out minibatches are those of this many steps later; that of the next step is what the learning rate follows anyway.
AHEAD = 2


#: The types of numbers in a stored result; floats are limited to float32's range.
NonNegative = Annotated[float, Field(strict=True, ge=0, le=3.5e38)]
PositiveInt = Annotated[int, Field(strict=True, ge=1, le=2**32)]


@dataclass(frozen=True)
class Job:
    """A run to be done: names from WORKLOADS, BASE_OPTIMIZERS and METHODS; ``lr`` is None if the method takes none."""

    workload: str
    base: str
    method: str
    lr: NonNegative | None
    seed: PositiveInt

    @property
    def supported(self) -> bool:
        """Whether this version can run it."""
        there = self.workload in WORKLOADS and self.base in WORKLOADS[self.workload].bases and self.method in METHODS
        return there and (self.lr is None) == (self.method in (*OURS, *PEER_CLASSES))

    @property
    def pair(self) -> tuple[str, str]:
        return self.workload, self.base

    @property
    def from_own_lr(self) -> bool:
        """Whether it starts from the method's own default learning rate (or from none)."""
        return self.lr == (PUBLISHED[self.method].lr if self.method in PUBLISHED else None)

    @property
    def spread(self) -> bool:
        """Whether it is one of the runs that measure a method's sensitivity to the initial learning rate."""
        return self.seed == 1 and (self.from_own_lr or self.lr in PUBLISHED_LRS)


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Args:
        job: the run.
        train: final training loss, infinite if it diverged or failed.
        valid: final validation loss, likewise.
        seconds: duration of the whole run.
        bytes: bytes of optimizer state per trained parameter.
        error: the error of a failed run.
        alpha: for HD, some steps (from 1) and the learning rates at those steps.
        pace: median seconds per training step.
        pace_torch: the same for torch's optimizer, measured right after; only for one timed run per method.
        digest: digest of its data files, if known.
    """

    job: Job
    train: NonNegative = math.inf
    valid: NonNegative = math.inf
    seconds: NonNegative | None = None
    bytes: NonNegative | None = None
    error: str | None = None
    alpha: tuple[list[PositiveInt], list[NonNegative]] | None = None
    pace: NonNegative | None = None
    pace_torch: NonNegative | None = None
    digest: str | None = None

    @property
    def failed(self) -> bool:
        return math.isinf(self.train) or math.isinf(self.valid)

    def matches(self, digests: Mapping[str, str]) -> bool:
        """Whether it was trained on data with these digests (by name), or its data is unknown."""
        present = digests.get(WORKLOADS[self.job.workload].data or "")
        return not present or self.digest in (None, present)

    def as_dict(self) -> dict[str, Any]:
        """A line of runs.jsonl, with null for infinity."""
        found = asdict(self)
        job: dict[str, Any] = found.pop("job")
        return job | found | {name: None if math.isinf(found[name]) else found[name] for name in ("train", "valid")}


RESULT = TypeAdapter(Result)


def parse_result(line: Mapping[str, Any]) -> Result:
    """Parse what ``as_dict`` returned, in earlier versions too, which had fewer fields; raises ValueError for anything else."""
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


def read_results(folder: Folder) -> list[Result]:
    """The results in a comparison's folder, except runs that this version does not support, and runs on other data than its latest.

    Raises:
        LabError: the file is missing, as in folders of earlier versions, or cannot be read.
    """
    file, found = folder.path / RUNS, dict[Job, Result]()
    if not file.exists():
        raise LabError(f"{file} is missing, as in comparisons of earlier versions: run hypergradient compare into another --output")
    present = (folder.read_json("experiment.json") or {}).get("data")
    digests = present if isinstance(present, dict) else {}
    try:
        lines = file.read_bytes().split(b"\n")[:-1]  # the last is empty or incomplete
    except OSError as error:
        raise LabError(f"{file} cannot be read ({first_line(error)}): choose another --output") from None
    for number, line in enumerate(lines, 1):
        try:
            x = parse_result(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise LabError(f"{file} cannot be read (line {number}: {first_line(error)}): remove that line, its run is repeated") from None
        if x.job.supported and x.matches(digests):
            found[x.job] = x
    return [*found.values()]


def run_job(job: Job, data: Path | None) -> Result:
    """Run a job, with the data file if its workload needs one; an exception becomes the error of the result."""
    begun = time.perf_counter()
    try:
        workload, own = WORKLOADS[job.workload], None if data is None else load_data_file(data)
        found = train(job, workload, own)
        if job.seed > 1 or not job.from_own_lr or job.method not in ("ours", *PUBLISHED):
            return found
        torch_run = train(replace(job, method="constant", lr=1e-6), replace(workload, steps=TIMED_STEPS), own)
        return replace(found, pace_torch=torch_run.pace)
    except Exception as error:
        message = f"{type(error).__name__}: {first_line(error)}"
        return Result(job, seconds=round(time.perf_counter() - begun, 3), error=message)


@cache
def load_data_file(file: Path) -> Data:
    """Load the fields of a Data from a file of torch.save, memory-mapped so that all processes share it."""
    return Data(**torch.load(file, mmap=True, weights_only=True))


def train(job: Job, workload: Workload, data: Data | None) -> Result:
    """Train a workload, and evaluate it once at the end: at the average, with recomputed batch norm statistics, if there is one."""
    begun = time.perf_counter()
    torch.manual_seed(job.seed)
    problem = workload.make(job.seed, data)
    held_out = job.method in PUBLISHED and PUBLISHED[job.method].held_out
    validation_loss = twin_losses(problem, workload.make(job.seed, data), workload.steps) if held_out else None
    torch.manual_seed(job.seed + 1000)
    weight_decay = workload.weight_decay if job.base == "adamw" else 0.0
    opt, scheduler = make_optimizer(job, problem.model, groups_of(workload, job.base, problem.model), weight_decay, workload.steps)
    alpha: tuple[list[int], list[float]] | None = ([], []) if job.method in (*OURS, "given") else None
    recorded_steps = {round(workload.steps ** (k / (ALPHA_POINTS - 1))) for k in range(ALPHA_POINTS)}
    problem.model.train()
    times = [time.perf_counter()]
    for i in range(workload.steps):
        loss = step(job, problem, opt, validation_loss, i)
        if scheduler:
            scheduler.step()
        if alpha and i + 1 in recorded_steps:
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


def step(job: Job, problem: Problem, opt: Any, validation_loss: Callable[[int], Tensor] | None, i: int) -> Tensor:
    """One training step, followed by adaptation on held-out data if the method does so; returns the loss."""
    if problem.before:
        problem.before(i)
    opt.zero_grad()
    loss = problem.loss(i)
    torch.autograd.backward(loss, create_graph=job.method in PUBLISHED and PUBLISHED[job.method].graph)
    take_step(opt, loss, PEER_CLASSES.get(job.method) in NEED_LOSS)
    if validation_loss:
        opt.adapt(validation_loss(i))
    return loss


def twin_losses(problem: Problem, twin: Problem, steps: int) -> Callable[[int], Tensor]:
    """Losses on held-out minibatches: those of AHEAD steps later, as no workload has data to spare.

    They come from a twin problem that shares the parameters, so that the problem's own minibatches do not change.
    """
    for own, other in zip(problem.model.modules(), twin.model.modules(), strict=True):
        for name, parameter in own.named_parameters(recurse=False, remove_duplicate=False):
            setattr(other, name, parameter)  # setattr, as recurrent layers also keep lists of their parameters
    twin.model.train()
    for i in range(AHEAD):  # minibatches must be drawn in order
        twin.loss(i)
    return lambda i: twin.loss(min(i + AHEAD, steps - 1))


def make_optimizer(
    job: Job, model: nn.Module, groups: list[dict[str, Any]], weight_decay: float, steps: int
) -> tuple[Any, LambdaLR | None]:
    """The method's optimizer over param groups (peers take weight decay as an option), and its scheduler over ``steps`` steps."""
    torch_class, ours, options = BASE_OPTIMIZERS[job.base]
    if job.method in PEER_CLASSES:
        decouple = {"decouple": True} if job.method == "dadapt-adam" else {}  # as in AdamW
        opt: Any = make_peer(PEER_CLASSES[job.method], model, {"weight_decay": weight_decay, **decouple}, groups)
    elif job.method in PUBLISHED:
        method = PUBLISHED[job.method]
        opt = (method.kind or ours)(groups, **{"lr": job.lr, **({} if method.kind else options), **method.options(job.base)})
    else:
        opt = (torch_class if job.method in TUNED else ours)(groups, lr=job.lr, **options)
    scheduler = LambdaLR(opt, lambda i: cosine(i, steps)) if job.method in ("cosine", "ours-cosine") else None
    return opt, scheduler


def cosine(i: int, steps: int) -> float:
    """The factor at step ``i`` (from 0): linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(WARM_UP * steps))
    return min((i + 1) / warm, (1 + math.cos(math.pi * max(0, i - warm) / max(1, steps - warm))) / 2)


def groups_of(workload: Workload, base: str, model: nn.Module) -> list[dict[str, Any]]:
    """Param groups of all parameters, frozen ones included. Weight decay only for "adamw": of matrices, or of all if ``one_group``."""
    parameters, decay = list(model.parameters()), workload.weight_decay
    if base != "adamw":
        return [{"params": parameters}]
    if workload.one_group:
        return [{"params": parameters, "weight_decay": decay}]
    return decay_groups(parameters, decay)


def decay_groups(parameters: Sequence[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Two param groups: matrices, with weight decay, and everything else, without."""
    parts = [([p for p in parameters if p.dim() >= 2], decay), ([p for p in parameters if p.dim() < 2], 0.0)]
    return [{"params": own, "weight_decay": weight_decay} for own, weight_decay in parts if own]


def state_bytes(opt: Any, model: nn.Module) -> float:
    """Bytes of an optimizer's state, param groups and average, per trained parameter of the model."""
    own = {id(p) for p in model.parameters()}
    averaged = [*opt.averager.av_model.parameters()] if hasattr(opt, "averager") else []
    groups = [{name: value for name, value in group.items() if name != "params"} for group in opt.param_groups]
    leaves = tree_leaves([[*opt.state.values()], groups, averaged])
    seen = {id(x): x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor) and id(x) not in own}
    return sum(seen.values()) / sum(p.numel() for p in model.parameters() if p.requires_grad)
