"""The API pages name all that is public: classes, methods, functions, keys of param groups and state, errors and warnings."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import hypergradient
from hypergradient import (
    HDM,
    SGDHD,
    AdamHD,
    AdamWHD,
    Adapted,
    Additive,
    Autostep,
    Decay,
    Hypergradient,
    Marthe,
    Multiplicative,
    Signal,
    TuningFree,
    integrations,
)
from hypergradient.optimizer import HypergradientOptimizer

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text() for path in (ROOT / "docs/api").glob("*.md")}
DOCUMENTED = set(re.findall(r"^::: ([\w.]+)$", "\n".join(PAGES.values()), re.M))

PUBLIC = [f"{module.__name__}.{name}" for module in (hypergradient, integrations) for name in module.__all__]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    assert name in DOCUMENTED


@pytest.mark.parametrize("name", [name for name, x in vars(HypergradientOptimizer).items() if inspect.isfunction(x) and name[0] != "_"])
def test_public_methods_are_documented(name: str) -> None:
    assert re.search(rf"members: \[.*\b{name}\b.*\]", PAGES["optimizers"])
    assert inspect.getdoc(getattr(HypergradientOptimizer, name))


OPTIMIZERS = {
    "SGD": lambda p: SGDHD(p, lr=0.1, momentum=0.9, nesterov=True, hypergrad_lr=1e-6),
    "Adam": lambda p: AdamHD(p, lr=1e-3, hypergrad_lr=1e-6, scope="tensor"),
    "tuning-free": lambda p: AdamHD(p, rule=Decay(TuningFree(), total_steps=9)),
    "tower": lambda p: SGDHD(p, lr=0.1, rule=Additive(Adapted(1e-6, Multiplicative(0.1))), horizon=3, scope="global"),
    "betas": lambda p: AdamWHD(p, adapt={"lr": Additive(1e-6), "betas": (Multiplicative(0.01), None)}),
    "HDM": HDM,
    "Autostep": lambda p: SGDHD(p, lr=0.1, rule=Autostep(), scope="element", signal=Signal(1.0, curvature="squares")),
    "Marthe": lambda p: SGDHD(p, lr=0.1, rule=Marthe(auto=True)),
    "wrapper": lambda p: Hypergradient(torch.optim.RMSprop(p, lr=1e-3)),
    "16 bits": lambda p: SGDHD([x.data.bfloat16().requires_grad_() for x in p]),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_keys_are_documented(make) -> None:
    params = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    opt = make(params)
    scheduler = torch.optim.lr_scheduler.ConstantLR(opt, 1.0) if isinstance(opt, SGDHD) and opt.param_groups[0]["lr"] == 0.1 else None
    for _ in range(3):
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        opt.step()
    del scheduler
    own = set(opt.state_dict()["param_groups"][0]) | set(opt.param_groups[0])
    keys = {key for key in own if key not in (*inspect.signature(type(opt)).parameters, *torch_options())}
    keys |= {re.sub("^memory_.*", "memory_NAME", key) for state in opt.state.values() for key in state if key not in ("square_avg",)}
    missing = {key for key in keys if f'`"{key}"`' not in PAGES["attributes"]}
    assert not missing


def torch_options() -> set[str]:
    """Options of torch's own optimizers and of its schedulers."""
    return {*inspect.signature(torch.optim.RMSprop).parameters, "initial_lr", "param_names"}


def messages() -> Iterator[tuple[str, str]]:
    """Each message of an error or warning of the library, and where it stands, with … for what is filled in."""
    for path in sorted((ROOT / "src/hypergradient").glob("*.py")) + sorted((ROOT / "src/hypergradient/integrations").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else node
            if isinstance(call, ast.Call) and call.args and (isinstance(node, ast.Raise) or ast.unparse(call.func) == "warnings.warn"):
                yield f"{path.stem}:{node.lineno}", template(call.args[0])


def template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr), ast.unparse(node)
    return re.sub("…+", "…", "".join(str(x.value) if isinstance(x, ast.Constant) else "…" for x in node.values))


@pytest.mark.parametrize("message", [pytest.param(text, id=place) for place, text in messages()])
def test_errors_are_documented(message: str) -> None:
    assert message.replace("|", "\\|") in PAGES["errors"]
