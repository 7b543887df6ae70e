"""Which runs a comparison needs (tuned learning rates by bracketing, tuning-free methods as they are), and scheduling them."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from threading import Event

from ..runs.engine import StoppedError
from ..runs.peers import PEER_CLASSES
from ..workloads import WORKLOADS
from .methods import PUBLISHED, PUBLISHED_LRS
from .runs import OURS, TUNED, Job, Result
from .workers import Workers

#: The grid for tuning, from 1e-6 to 100, three learning rates per decade; and the index at which a search starts: at 1e-3, at 0.046.
GRID = tuple(10 ** (i / 3) for i in range(-18, 7))
GUESS = {"adam": 9, "adamw": 9, "sgdn": 14}

#: The initial learning rates from which HD also runs, in full and with --quick.
START_LRS = tuple(10.0**power for power in range(-6, 0))
QUICK_START_LRS = (1e-6, 1e-1)

#: The peers based on SGD.
SGD_LIKE = ("dadapt-sgd", "dog", "dowg")

#: A generator that yields the jobs it needs, is sent their results once all are there, and yields more.
Plan = Generator[list[Job], Mapping[Job, Result], None]


def peers_of(workload: str, base: str) -> list[str]:
    """The peers compared with a base. Each runs once per workload: those based on SGD with SGD if the workload has it, others never."""
    bases = WORKLOADS[workload].bases
    alike, others = "sgdn" if "sgdn" in bases else bases[0], next((name for name in bases if name != "sgdn"), None)
    return [name for name in PEER_CLASSES if base == (alike if name in SGD_LIKE else others)]


def bracket(job: Callable[[float], Job], guess: int) -> Generator[list[Job], Mapping[Job, Result], list[int]]:
    """The indices on GRID of the lowest training and validation loss: search outwards from a guess until both have worse neighbours."""
    found: dict[int, Result] = {}
    wanted = [i for i in (guess - 1, guess, guess + 1) if 0 <= i < len(GRID)]
    while wanted:
        results = yield [job(GRID[i]) for i in wanted]
        found |= {i: results[job(GRID[i])] for i in wanted}
        low, high = min(found), max(found)
        best = [min(range(low, high + 1), key=lambda i: getattr(found[i], loss)) for loss in ("train", "valid")]
        wanted = [low - 1] * (low in best and low > 0) + [high + 1] * (high in best and high < len(GRID) - 1)
    return best


def tuned_plan(workload: str, base: str, seeds: int) -> Plan:
    """The baselines: bracket with seed 1, then run the best learning rates with the other seeds."""
    guess, winners = GUESS[base], []
    for method in TUNED:
        best = yield from bracket(lambda lr, method=method: Job(workload, base, method, lr, 1), guess)  # type: ignore[misc]
        winners += [(method, GRID[i]) for i in sorted({*best})]
        guess = best[0]
    yield [Job(workload, base, method, lr, seed) for method, lr in winners for seed in range(2, seeds + 1)]


def untuned_plan(workload: str, base: str, seeds: int, given: Iterable[float]) -> Plan:
    """HD and the peers without a learning rate, and HD from given initial ones with seed 1."""
    methods = [*OURS, *peers_of(workload, base)]
    jobs = [Job(workload, base, method, None, seed) for method in methods for seed in range(1, seeds + 1)]
    yield jobs + [Job(workload, base, "given", lr, 1) for lr in given]


def published_plan(workload: str, base: str, seeds: int) -> Plan:
    """The published methods from their own initial learning rate, and HD; with seed 1 all of them from PUBLISHED_LRS too."""
    starts = {"ours": None} | {name: method.lr for name, method in PUBLISHED.items() if base in method.bases}
    jobs = [Job(workload, base, name, lr, seed) for name, lr in starts.items() for seed in range(1, seeds + 1)]
    jobs += [Job(workload, base, "given" if name == "ours" else name, lr, 1) for name in starts for lr in PUBLISHED_LRS]
    yield [*dict.fromkeys(jobs)]


def plans(workloads: Iterable[str], seeds: int, quick: bool = False, methods: bool = False) -> Iterator[Plan]:
    """All plans for some workloads, with the peers or, for ``methods``, with the published methods."""
    for name in workloads:
        for base in WORKLOADS[name].bases:
            yield tuned_plan(name, base, seeds)
            yield published_plan(name, base, seeds) if methods else untuned_plan(name, base, seeds, QUICK_START_LRS if quick else START_LRS)


def advance(plan: Plan, known: Mapping[Job, Result], answer: Mapping[Job, Result] | None = None) -> list[Job] | None:
    """Send a plan all known results; return the jobs it still waits for, or None if it has ended."""
    with suppress(StopIteration):
        wanted = plan.send(answer)  # type: ignore[arg-type]
        while all(job in known for job in wanted):
            wanted = plan.send({job: known[job] for job in wanted})
        return wanted
    return None


def run_plans(
    plans: Iterable[Plan], known: dict[Job, Result], workers: Workers, done: Callable[[Result, int], None], stopped: Event | None = None
) -> None:
    """Run the jobs that plans ask for. Results go to ``known``, and to ``done`` with the number of plans that have ended.

    A new plan starts when the queue has fewer jobs than there are free workers; later requests of started plans take precedence.

    Raises:
        StoppedError: ``stopped`` was set.
    """
    left, waiting, queue = iter(plans), list[tuple[Plan, list[Job]]](), deque[Job]()
    asked, running, ended = set(known), 0, 0

    def ask(plan: Plan, answer: Mapping[Job, Result] | None = None) -> int:
        wanted = advance(plan, known, answer)
        if wanted is None:
            return 1
        waiting.append((plan, wanted))
        queue.extendleft(reversed([job for job in wanted if job not in asked]))
        asked.update(wanted)
        return 0

    while True:
        while len(queue) < workers.free and (plan := next(left, None)):
            ended += ask(plan)
        while queue and workers.free:
            workers.submit(queue.popleft())
            running += 1
        if not running:
            return
        for result in workers.collect(0.5):
            known[result.job] = result
            running -= 1
            for plan, wanted in [*waiting]:
                if result.job in wanted and all(job in known for job in wanted):
                    waiting.remove((plan, wanted))
                    ended += ask(plan, {job: known[job] for job in wanted})
            done(result, ended)
        if stopped and stopped.is_set():
            raise StoppedError(len(known))
