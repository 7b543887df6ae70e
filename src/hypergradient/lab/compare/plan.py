"""Which runs are made: learning rates by bracketing, ours and the others without any; and in what order, so that no process waits."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from threading import Event

from ..runs.engine import StoppedError
from ..workloads import WORKLOADS
from .methods import FIELD, FIELD_GIVEN, OTHERS
from .runs import OURS, TUNED, Job, Result
from .workers import Workers

#: The learning rates that are tuned among, from 1e-6 to 100, three a decade; and where on it the search begins: at 1e-3, at 0.046.
GRID = tuple(10 ** (i / 3) for i in range(-18, 7))
GUESS = {"adam": 9, "adamw": 9, "sgdn": 14}

#: Those that are given to ours, and with --quick.
GIVEN = tuple(10.0**power for power in range(-6, 0))
QUICK_GIVEN = (1e-6, 1e-1)

#: The peers whose steps are those of SGD.
SGD_LIKE = ("dadapt-sgd", "dog", "dowg")

#: Asks for runs, is sent their results when all are there, and asks for more.
Plan = Generator[list[Job], Mapping[Job, Result], None]


def peers_of(workload: str, base: str) -> list[str]:
    """The peers that run beside a base: each once on a workload, those like SGD beside SGD where it is there, the others never."""
    bases = WORKLOADS[workload].bases
    alike, others = "sgdn" if "sgdn" in bases else bases[0], next((name for name in bases if name != "sgdn"), None)
    return [name for name in OTHERS if base == (alike if name in SGD_LIKE else others)]


def bracket(job: Callable[[float], Job], guess: int) -> Generator[list[Job], Mapping[Job, Result], list[int]]:
    """Where on GRID training and validation loss are lowest: learning rates about a guess, and on, until both places have neighbours."""
    found: dict[int, Result] = {}
    wanted = [i for i in (guess - 1, guess, guess + 1) if 0 <= i < len(GRID)]
    while wanted:
        results = yield [job(GRID[i]) for i in wanted]
        found |= {i: results[job(GRID[i])] for i in wanted}
        low, high = min(found), max(found)
        best = [min(range(low, high + 1), key=lambda i: getattr(found[i], loss)) for loss in ("train", "valid")]
        wanted = [low - 1] * (low in best and low > 0) + [high + 1] * (high in best and high < len(GRID) - 1)
    return best


def tuned(workload: str, base: str, seeds: int) -> Plan:
    """The baselines: for each method a bracket with seed 1, then its winners with the other seeds."""
    guess, winners = GUESS[base], []
    for method in TUNED:
        best = yield from bracket(lambda lr, method=method: Job(workload, base, method, lr, 1), guess)  # type: ignore[misc]
        winners += [(method, GRID[i]) for i in sorted({*best})]
        guess = best[0]
    yield [Job(workload, base, method, lr, seed) for method, lr in winners for seed in range(2, seeds + 1)]


def untuned(workload: str, base: str, seeds: int, given: Iterable[float]) -> Plan:
    """Ours and the peers without a learning rate, and ours from given ones with seed 1."""
    methods = [*OURS, *peers_of(workload, base)]
    jobs = [Job(workload, base, method, None, seed) for method in methods for seed in range(1, seeds + 1)]
    yield jobs + [Job(workload, base, "given", lr, 1) for lr in given]


def field(workload: str, base: str, seeds: int) -> Plan:
    """The methods of the field from where they start, and ours; all from given learning rates too, with seed 1."""
    starts = {"ours": None} | {name: method.lr for name, method in FIELD.items() if base in method.bases}
    jobs = [Job(workload, base, name, lr, seed) for name, lr in starts.items() for seed in range(1, seeds + 1)]
    jobs += [Job(workload, base, "given" if name == "ours" else name, lr, 1) for name in starts for lr in FIELD_GIVEN]
    yield [*dict.fromkeys(jobs)]


def plans(workloads: Iterable[str], seeds: int, quick: bool = False, methods: bool = False) -> Iterator[Plan]:
    """All of some workloads; with the methods of the field instead of the others."""
    for name in workloads:
        for base in WORKLOADS[name].bases:
            yield tuned(name, base, seeds)
            yield field(name, base, seeds) if methods else untuned(name, base, seeds, QUICK_GIVEN if quick else GIVEN)


def advance(plan: Plan, known: Mapping[Job, Result], answer: Mapping[Job, Result] | None = None) -> list[Job] | None:
    """What a plan waits for when it has been sent all that is known; None where it has ended."""
    with suppress(StopIteration):
        wanted = plan.send(answer)  # type: ignore[arg-type]
        while all(job in known for job in wanted):
            wanted = plan.send({job: known[job] for job in wanted})
        return wanted
    return None


def drive(
    plans: Iterable[Plan], known: dict[Job, Result], workers: Workers, done: Callable[[Result, int], None], stopped: Event | None = None
) -> None:
    """Make the runs that plans ask for. What comes of a run goes to ``known``, and to ``done`` with the number of plans that have ended.

    A plan is begun when there is work for fewer runs than could begin; what plans ask for later, brackets do, comes first.

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
            workers.put(queue.popleft())
            running += 1
        if not running:
            return
        for result in workers.get(0.5):
            known[result.job] = result
            running -= 1
            for plan, wanted in [*waiting]:
                if result.job in wanted and all(job in known for job in wanted):
                    waiting.remove((plan, wanted))
                    ended += ask(plan, {job: known[job] for job in wanted})
            done(result, ended)
        if stopped and stopped.is_set():
            raise StoppedError(len(known))
