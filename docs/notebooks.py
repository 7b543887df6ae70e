"""mkdocs calls these: a notebook of docs/ is executed and becomes a page, its cells as Markdown, with plotly.js from the installed package.

So equations, code, admonitions, search and colour schemes are those of every other page, and the page asks no other host for
anything. A cell that raises ends the build. A code cell whose source Jupyter hides (``jupyter.source_hidden`` in its metadata)
is folded.
"""

import functools
import html
import json
import os
from typing import Any

import nbclient
import nbformat
import plotly.offline
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url

PLOTLY = "application/vnd.plotly.v1+json"
SCRIPTS = ("assets/plotly.min.js", "assets/plots.js")


class Notebook(File):
    """A notebook that is a page, not a file to copy."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: Any) -> Files:
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = Notebook(file.src_uri, file.src_dir, file.dest_dir, file.use_directory_urls, inclusion=file.inclusion)
        files.remove(file)
        files.append(page)
        files.append(File.generated(config, f"{page.url}{page.name}.ipynb", content=file.content_string))  # to download
    files.append(File.generated(config, SCRIPTS[0], content=plotly.offline.get_plotlyjs()))
    return files


def on_page_read_source(page: Any, config: Any) -> str | None:
    """The Markdown of a notebook; of other pages mkdocs reads it."""
    if not isinstance(page.file, Notebook):
        return None
    return markdown(page.file.content_string, page.file.name, page.url, config.docs_dir)


@functools.cache  # `mkdocs serve` reads a page again whenever another one changes
def markdown(source: str, name: str, url: str, folder: str) -> str:
    notebook = nbformat.reads(source, as_version=4)
    try:
        client = nbclient.NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            coalesce_streams=True,
            startup_timeout=600,
            extra_arguments=["--log-level=ERROR"],  # it warns that its local connection is not encrypted
            resources={"metadata": {"path": folder}},
        )
        client.execute(env={**os.environ, "PLOTLY_RENDERER": "plotly_mimetype"})
    except nbclient.exceptions.CellExecutionError as error:
        raise PluginError(f"{name}.ipynb: {error}") from error
    title, *rest = (text(cell) for cell in notebook.cells)
    download = f'<a class="md-button" href="{name}.ipynb" download>Download this notebook</a>'
    scripts = "".join(f'<script src="{get_relative_url(script, url)}" defer></script>' for script in SCRIPTS)
    return "\n\n".join([title, download, *rest, scripts])


def text(cell: Any) -> str:
    """A cell as Markdown, with its outputs."""
    if cell.cell_type != "code":
        return str(cell.source).replace("<details>", "<details markdown>")
    parts = [f"```python\n{cell.source}\n```", *(shown(output) for output in cell.outputs)]
    if cell.metadata.get("jupyter", {}).get("source_hidden"):
        parts = ['<details class="success" markdown>\n<summary>Solution</summary>', *parts, "</details>"]
    return "\n\n".join(parts)


def shown(output: Any) -> str:
    """An output: a figure for assets/plots.js, or text."""
    data = output.get("data", {})
    if PLOTLY in data:
        figure = data[PLOTLY]
        label = figure["layout"].get("title", {}).get("text", "figure")
        return f'<div class="plot" role="img" aria-label="{html.escape(label)}" data-figure="{html.escape(json.dumps(figure))}"></div>'
    said = output.get("text") or data.get("text/plain", "")
    return f'``` {{ .text .no-copy title="Output" }}\n{said.rstrip()}\n```'
