"""mkdocs calls these: https://www.mkdocs.org/user-guide/configuration/#hooks."""

from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The changelog is the repository's own, whose links to pages start at its root."""
    if page.file.src_uri != "changelog.md":
        return markdown
    return Path(__file__).parents[1].joinpath("CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
