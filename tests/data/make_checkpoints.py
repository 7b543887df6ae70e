"""Writes checkpoints.pt: what an earlier version saved after 7 steps of each row, and what it reached from there in 5 more.

Written by hypergradient 0.1.0 at commit ba9b5a4 with torch 2.13.0 (CPU, AVX512, one thread):

    git worktree add /tmp/before ba9b5a4
    PYTHONPATH=/tmp/before/src:tests .venv/bin/python tests/data/make_checkpoints.py

A later version does not write it again: what is tested is that the runs of this one go on.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hypergradient
from checkpoint_rows import END, ROWS, SAVED, Row, arithmetic, mapped, reached

PATH = Path(__file__).with_name("checkpoints.pt")


def packed(tree: Any) -> Any:
    """The same with all tensors of a dtype in one storage, since each costs a file three times what these hold."""
    found: list[Tensor] = []
    mapped(tree, lambda x: found.append(x))
    dtypes = dict.fromkeys(x.dtype for x in found)
    whole = {dtype: torch.cat([x.reshape(-1) for x in found if x.dtype == dtype]) for dtype in dtypes}
    places = dict.fromkeys(whole, 0)

    def place(x: Tensor) -> Tensor:
        start = places[x.dtype]
        places[x.dtype] += x.numel()
        return whole[x.dtype][start : start + x.numel()].view(x.shape)

    return mapped(tree, place)


def record(row: Row) -> dict[str, Any]:
    problem, opt = row.start()
    row.train(problem, opt, 0, SAVED)
    saved = row.save(problem, opt)
    problem, opt = row.load(saved)
    row.train(problem, opt, SAVED, END)
    return {**saved, "reached": reached(problem, opt)}


def main() -> None:
    torch.set_num_threads(1)
    print(f"{hypergradient.__file__}, {hypergradient.__version__}, torch {torch.__version__}")
    rows = {name: record(row) for name, row in ROWS.items()}
    torch.save(packed({"arithmetic": arithmetic(), "rows": rows}), PATH)
    print(f"{PATH}: {len(rows)} rows, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
