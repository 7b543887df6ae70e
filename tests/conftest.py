"""One thread per test process: the problems are tiny, and threads waiting for each other cost more than they compute."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if not os.environ.get("HYPERGRADIENT_REQUIRE_BROWSER"):
        pytest.importorskip("playwright")
        if path is None:
            pytest.skip("there is no chromium")
    from playwright.sync_api import sync_playwright

    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    with sync_playwright() as playwright:
        options = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
        found = playwright.chromium.launch(executable_path=path, args=options)
        yield found
        found.close()
