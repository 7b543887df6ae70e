"""benchmarks.convex in small: the order of methods that HDM's authors found, and that page, data and figure are written."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import convex
from benchmarks.convex_methods import Run, methods
from benchmarks.convex_problems import PROBLEMS, problem


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    docs, threads = tmp_path_factory.mktemp("docs"), torch.get_num_threads()
    convex.main(quick=True, docs=docs)
    torch.set_num_threads(threads)
    return docs


@pytest.fixture(scope="module")
def problems(docs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((docs / "results" / "convex.json").read_text())["problems"]
    return found


def test_the_order_is_hdm_adam_gradient_descent(problems: dict[str, Any]) -> None:
    methods = problems["logistic, rotated 1e2"]["methods"]
    hdm, adam, gd = (methods[name]["evaluations"] for name in ("HDM, tuned", "Adam, tuned", "GD, 1/L"))
    assert hdm < adam < gd < convex.MOST


def test_hdm_is_before_lbfgs_and_adam_where_the_authors_printed_it() -> None:
    this = problem("svm, binary, no ridge")
    rows = [("HDM, untuned", ""), ("L-BFGS, memory 10", ""), ("Adam, tuned", "lr = 1")]
    counts = [Run(this, ends=True).by(methods(this)[name][label]).solved or math.inf for name, label in rows]
    assert counts == sorted(counts)
    assert counts[-1] < convex.MOST


def test_page_and_figure_are_written(docs: Path, problems: dict[str, Any]) -> None:
    page = (docs / "results" / "convex.md").read_text()
    assert all(f"### {name}" in page for name in problems)
    assert (docs / "images" / "convex.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_are_those_of_the_losses_and_newton_finds_their_end(name: str) -> None:
    this = problem(name)
    w = this.start().requires_grad_()
    loss, gradient = this(w)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, w)[0])
    assert this.least() < float(loss)
    assert this.smoothness > (1 - 1e-12) * float(torch.linalg.eigvalsh(this.hessian(w.detach()))[-1])
