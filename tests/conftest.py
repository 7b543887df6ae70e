"""One thread per test process: the problems are tiny, and threads waiting for each other cost more than they compute."""

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch

from hypergradient import fused

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # no test looks into the cache of whoever runs it, or writes there
torch.set_num_threads(1)
fused.HEADERS = True  # it pays here: the tests compile some twenty kernels


@pytest.fixture(autouse=True)
def denormals_as_before() -> Iterator[None]:
    """The lab's commands turn them off for their process, which is this one."""
    yield
    torch.set_flush_denormal(False)
