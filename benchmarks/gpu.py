"""Without a learning rate on a GPU, compared with tuned ones: GPT-2 small on text of the machine, ResNet-9 on CIFAR-10.

    python -m benchmarks.gpu --data ../shared/data/cifar10

Each part is meant to take less than ten minutes on one H200 (--part gpt, --part resnet). Every finished run adds a line to runs.jsonl in
the folder of --output, a failed one with its error. Running it again completes missing runs; delete a line to repeat its run. gpu.md in the
same folder has the table of all lines. --small runs a tiny version of everything on the CPU.
"""

import gc
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn

from hypergradient.lab.compare.runs import RUNS, TUNED, Job, decay_groups, make_optimizer, state_bytes
from hypergradient.lab.compare.table import fmt, fmt_pair, title_of
from hypergradient.lab.errors import LabError, first_line
from hypergradient.lab.runs.data import Data
from hypergradient.lab.runs.peers import NEED_LOSS, PEER_CLASSES, take_step
from hypergradient.lab.runs.store import Folder
from hypergradient.lab.workloads.problem import Order, seeded

from .gpu_parts import Mixed, Part, gpt, resnet
from .report import command, machine, page, table, write

#: Warm-up steps that are not timed; batches for final losses, and for batch norm's statistics.
WARM, SEEN, REFRESH = 10, 20, 50

#: The fields that identify a run.
KEY = ("workload", "base", "method", "lr", "seed", "steps")


def optimizer_of(part: Part, job: Job, model: nn.Module) -> tuple[Any, LambdaLR | None]:
    """The method's optimizer and scheduler."""
    params = list(model.parameters())
    groups = decay_groups(params, part.weight_decay) if part.base == "adamw" else [{"params": params, "weight_decay": part.weight_decay}]
    return make_optimizer(job, model, groups, part.weight_decay, part.steps)


def seconds(device: torch.device) -> float:
    """The time after synchronising with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train(part: Part, job: Job, data: Data, model: nn.Module, opt: Any, scheduler: LambdaLR | None) -> float:
    """Take all steps, and return tokens or images per second.

    Raises:
        ArithmeticError: the loss of a tuned optimizer is not finite; other methods may recover.
    """
    order, device = Order(len(data.train_y), part.batch, job.seed), data.train_y.device
    warm, begun = min(WARM, part.steps // 2), 0.0
    for i in range(part.steps):
        if i == warm:
            begun = seconds(device)
        x, y = data.batch(order(i).to(device, non_blocking=True))
        opt.zero_grad()
        loss = cross_entropy(model(x), y.flatten(), label_smoothing=part.smoothing)
        torch.autograd.backward(loss)
        take_step(opt, loss, PEER_CLASSES.get(job.method) in NEED_LOSS)
        if scheduler:
            scheduler.step()
        if (i + 1) % max(1, part.steps // 10) == 0:
            print(f"  step {i + 1:,} of {part.steps:,}: {loss.item():.4g}", flush=True)
            if job.method in TUNED and not math.isfinite(loss.item()):
                raise ArithmeticError(f"the loss is {loss.item()} at step {i + 1}")
    return (part.steps - warm) * part.batch * data.train_y[0].numel() / (seconds(device) - begun)


@torch.no_grad()
def evaluate(part: Part, model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy in evaluation mode, over at most SEEN batches."""
    model.eval()
    sums, seen = torch.zeros(2, device=x.device, dtype=torch.float64), 0
    for inputs, targets in [*zip(torch.split(x, part.batch), torch.split(y, part.batch), strict=True)][:SEEN]:
        logits, answers = model(inputs), targets.flatten()
        loss = cross_entropy(logits, answers, reduction="sum", label_smoothing=part.smoothing)
        sums += torch.stack([loss, (logits.argmax(1) == answers).sum()])
        seen += len(answers)
    model.train()
    mean, accuracy = (sums / seen).tolist()
    return mean, accuracy


def run(part: Part, job: Job, data: Data) -> dict[str, Any]:
    """Train, and evaluate once, at the end; at the average, with batch norm's statistics recomputed, if the method has one."""
    device = data.train_x.device
    on_gpu = device.type == "cuda"
    if on_gpu:
        gc.collect()  # the previous run is kept alive by its scheduler's reference cycle, and would count as memory of this one
        torch.cuda.reset_peak_memory_stats(device)
    model = Mixed(seeded(lambda: part.model(data), job.seed)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(job.seed + 1000)
    opt, scheduler = optimizer_of(part, job, model)
    found: dict[str, Any] = {"per_second": round(train(part, job, data, model, opt, scheduler))}
    found["peak"] = torch.cuda.max_memory_allocated(device) if on_gpu else None
    found["bytes"] = round(state_bytes(opt, model), 2)
    found["alpha"] = [float(group["alpha"]) for group in opt.param_groups if "alpha" in group] or None
    found["parameters"] = sum(p.numel() for p in model.parameters())
    if hasattr(opt, "eval"):
        opt.eval()
        update_bn(torch.split(data.train_x, part.batch)[:REFRESH], model)
    found["train"], _ = evaluate(part, model, data.train_x, data.train_y)
    found["valid"], found["accuracy"] = evaluate(part, model, data.valid_x, data.valid_y)
    if not math.isfinite(found["train"] + found["valid"]):
        raise ArithmeticError(f"the final losses are {found['train']} and {found['valid']}")
    return found


def attempt(part: Part, job: Job, data: Data) -> dict[str, Any]:
    """A line of runs.jsonl; for a failed run it has nulls and an error."""
    begun, device = time.perf_counter(), data.train_x.device
    names = ("train", "valid", "accuracy", "seconds", "per_second", "peak", "bytes", "parameters", "alpha", "error")
    line = asdict(job) | {"steps": part.steps, "batch": part.batch, "unit": part.unit} | dict.fromkeys(names)
    try:
        line |= run(part, job, data)
    except Exception as error:
        line["error"] = f"{type(error).__name__}: {first_line(error)}"
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    return line | {"seconds": round(time.perf_counter() - begun, 2), "about": part.about, "machine": f"{machine()[:-1]}, {gpu}."}


def go(part: Part, seed: int, folder: Folder) -> None:
    """Train the missing runs of a part."""
    done = [{name: line[name] for name in KEY} for line in lines_of(folder)]
    missing = [job for job in part.jobs(seed) if asdict(job) | {"steps": part.steps} not in done]
    if not missing:
        print(f"{part.name}: all runs are done", flush=True)
        return
    data = part.load()
    if len(data.train_y) < part.batch:
        raise LabError(f"{part.name}: {len(data.train_y):,} training cases are fewer than a batch of {part.batch}: use a larger data set")
    for i, job in enumerate(missing, 1):
        print(f"{part.name} {i} of {len(missing)}: {title(asdict(job))}", flush=True)
        line = attempt(part, job, data)
        folder.append_json(RUNS, line)
        told = line["error"] or f"{fmt_pair(line['train'], line['valid'], '.4f')}, accuracy {line['accuracy']:.2%}"
        print(f"  {told}, {line['seconds']:.0f} s", flush=True)


def lines_of(folder: Folder) -> list[dict[str, Any]]:
    return folder.read_lines(RUNS) if (folder.path / RUNS).exists() else []


def title(line: dict[str, Any]) -> str:
    """The method and its learning rate."""
    return title_of(line["method"], line["base"]) + ("" if line["lr"] is None else f" {line['lr']:g}")


def cells(line: dict[str, Any]) -> list[str]:
    """A line as table cells."""
    return [
        title(line),
        str(line["seed"]),
        fmt_pair(line["train"], line["valid"], ".4f"),
        fmt(line["accuracy"], ".2%"),
        fmt(line["seconds"], ".1f"),
        "–" if line["per_second"] is None else f"{line['per_second']:,}",
        fmt(line["peak"] and line["peak"] / 2**30, ".2f"),
        fmt(line["bytes"], ".1f"),
        " and ".join(f"{x:.3g}" for x in line["alpha"] or []) or "–",
        line["error"] or "–",
    ]


def page_of(lines: Iterable[dict[str, Any]]) -> str:
    """All lines as Markdown: a table per model, budget and machine."""
    assert __doc__

    def kind(line: dict[str, Any]) -> tuple[str, ...]:
        return f"{line['workload']}, {line['steps']:,} steps of {line['batch']}", line["unit"], line["about"], line["machine"]

    tables = []
    for (heading, unit, about, where), group in groupby(sorted(lines, key=kind), kind):
        own = [*group]
        size = next((f"{line['parameters']:,} parameters" for line in own if line["parameters"]), "all failed")
        heads = ["method", "seed", "training / validation loss", "accuracy", "seconds", f"{unit} per second", "peak, GiB"]
        heads += ["state, bytes per parameter", "last α", "error"]
        tables.append((heading, about, size, where, table(heads, map(cells, own))))
    return page("gpu.md", __doc__, title=__doc__.splitlines()[0], tables=tables)


def main(
    *,
    part: Literal["gpt", "resnet", "all"] = "all",
    data: str | None = None,
    text: list[str] | None = None,
    device: str | None = None,
    small: bool = False,
    steps: int | None = None,
    seed: int = 1,
    output: Path = Path("runs/gpu"),
) -> None:
    """
    Args:
        part: the model to train
        data: CIFAR-10 for resnet: a folder in the Hugging Face Parquet layout, or a Hub id; --small has digits
        text: folders with text for gpt, default those of Debian and Python
        device: default cuda, or cpu with --small
        small: tiny models, 20 steps
        steps: steps per run, default 700 for gpt, 2,900 for resnet
        seed: seed of weights and batches
        output: folder for results
    """
    device = device or ("cpu" if small else "cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        remedy = "use a machine with one, or add --small, which runs a tiny version of everything on the CPU"
        raise LabError(f"--device {device}: torch finds no GPU: {remedy}")
    if steps is not None and steps < 1:
        raise LabError(f"--steps must be at least 1, got {steps}")
    torch.backends.cudnn.benchmark = device.startswith("cuda")
    parts = {"gpt": gpt(text, device, small), "resnet": resnet(data, device, small)}
    folder = Folder(output)
    output.mkdir(parents=True, exist_ok=True)
    for own in parts.values() if part == "all" else [parts[part]]:
        go(replace(own, steps=steps or own.steps), seed, folder)
    write(output / "gpu.md", found := page_of(lines_of(folder)))
    print(found, f"{output / RUNS} and {output / 'gpu.md'}", sep="\n")


if __name__ == "__main__":
    command(main)
