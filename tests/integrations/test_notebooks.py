"""docs/notebooks.py: an executed notebook as the Markdown of a page."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from mkdocs.exceptions import PluginError

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.filterwarnings("default")  # of Jupyter's


@pytest.fixture
def notebooks() -> Any:
    spec = importlib.util.spec_from_file_location("notebooks", DOCS / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def source(*codes: str, hidden: bool = False) -> str:
    """A notebook with a title and cells of code."""
    v4 = nbformat.v4
    cells = [v4.new_code_cell(code, metadata={"jupyter": {"source_hidden": hidden}}) for code in codes]
    return str(nbformat.writes(v4.new_notebook(cells=[v4.new_markdown_cell("# Title"), *cells])))


def test_a_notebook_as_markdown(notebooks: Any, tmp_path: Path) -> None:
    figure = "import plotly.express as px\npx.line(x=[1, 2], y=[3, 4], title='A \"line\"').show()"
    page = notebooks.markdown(source("print(6 * 7)\nprint('<b>')", figure), "page", "page/", str(tmp_path))
    assert page.startswith('# Title\n\n<a class="md-button" href="page.ipynb" download>')
    assert "```python\nprint(6 * 7)\n" in page
    assert '``` { .text .no-copy title="Output" }\n42\n<b>\n```' in page
    assert '<div class="plot" role="img" aria-label="A &quot;line&quot;" data-figure="{' in page
    assert page.count("<div") == 1
    assert page.endswith('<script src="../assets/plotly.min.js" defer></script><script src="../assets/plots.js" defer></script>')


def test_a_hidden_cell_is_folded(notebooks: Any, tmp_path: Path) -> None:
    page = notebooks.markdown(source("print('answer')", hidden=True), "page", "page/", str(tmp_path))
    start, end = page.index("<details"), page.index("</details>")
    assert start < page.index("print('answer')") < page.index("answer\n```") < end


def test_a_cell_that_raises_ends_the_build(notebooks: Any, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"(?s)page\.ipynb: .*assert 1 == 2"):
        notebooks.markdown(source("assert 1 == 2"), "page", "page/", str(tmp_path))


def test_the_tutorial_is_committed_without_outputs() -> None:
    cells = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    assert codes
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in codes)
