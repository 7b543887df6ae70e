"""Nothing is downloaded, deprecations within the trainers' packages are ignored, and each test has a fresh Accelerate state."""

import os
from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore"))
        item.add_marker(pytest.mark.filterwarnings("error:lr=.* was written over"))


@pytest.fixture(autouse=True)
def accelerate_afresh() -> Iterator[None]:
    """It keeps precision and device for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
