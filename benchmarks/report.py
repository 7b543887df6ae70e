"""What every page of results says of itself."""

import platform

import torch

import hypergradient


def sentence(doc: str | None) -> str:
    """The command in a script's docstring, as the page's origin."""
    command = next(line.strip() for line in (doc or "").splitlines() if line.startswith("    python"))
    return f"Made by `{command}`."


def machine() -> str:
    return (
        f"hypergradient {hypergradient.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} threads on {platform.machine()}."
    )
