"""The documentation as a reader meets it: each page in a browser, on a phone and a desktop, light and dark, and every link."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS) for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb"))
DESKTOP, PHONE = {"width": 1300, "height": 900}, {"width": 390, "height": 844}


def address(page: Path) -> str:
    """Of a page's source, relative to the site."""
    folder = page.parent if page.stem == "index" else page.with_suffix("")
    return "" if folder == Path() else f"{folder.as_posix()}/"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does, or what that has built, which HYPERGRADIENT_SITE names."""
    if built := os.environ.get("HYPERGRADIENT_SITE"):
        return ROOT / built
    path = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", path]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return path


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as found:
        Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/"
        found.shutdown()


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    """One for all pages, so that scripts and fonts are read once."""
    found = browser.new_context(viewport=DESKTOP, color_scheme="light")
    yield found
    found.close()


@pytest.fixture
def page(context: Any, server: str) -> Iterator[Any]:
    """A tab; at the end it may have complained of nothing, and have asked nobody but the site."""
    found = context.new_page()
    found.set_default_timeout(10_000)
    complaints: list[str] = []
    found.on("console", lambda message: complaints.append(message.text))
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("request", lambda request: request.url.startswith((server, "data:", "blob:")) or complaints.append(request.url))
    found.on("requestfailed", lambda request: complaints.append(f"{request.url} failed"))
    found.on("response", lambda response: response.status < 400 or complaints.append(f"{response.url}: {response.status}"))
    yield found
    found.close()
    assert complaints == []


#: What a reader would stumble over, in the text of a page.
STUMBLES = """async () => {
  const article = document.querySelector("article"), found = [];
  for (const image of article.querySelectorAll("img")) {
    image.loading = "eager";
    await image.decode().catch(() => found.push("image " + image.src));
  }
  for (const math of article.querySelectorAll(".arithmatex")) {
    if (!math.querySelector(".katex")) found.push("not rendered: " + math.textContent);
  }
  for (const error of document.querySelectorAll(".katex-error")) found.push(error.title);
  for (const code of article.querySelectorAll("[class^=language-py] pre > code")) {
    if (!code.querySelector("span[class]:not([class*=__span])")) found.push("no colours: " + code.textContent);
  }
  for (const pre of article.querySelectorAll(".highlight pre")) {
    const button = pre.parentElement.querySelector("[data-md-type=copy], .md-clipboard, clipboard-copy");
    if (!button && !pre.closest(".no-copy")) found.push("no copy button: " + pre.textContent);
  }
  const texts = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const { parentElement: parent, data } = texts.currentNode;
    if (!parent.closest("code, pre, script, style, .katex") && /\\$\\$|\\\\[([]|\\\\[a-z]{2}/.test(data)) found.push("raw: " + data);
  }
  return found;
}"""

#: Elements beyond the right edge that no box of their own lets one scroll to, once the menu has slid aside.
CUT_OFF = """async () => {
  const scrolls = element => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
  const inBox = element => element && (scrolls(element) || element.matches(".katex-mathml, svg") || inBox(element.parentElement));
  let found;
  for (let tries = 0; tries < 20; tries++) {
    const out = [...document.querySelectorAll("article *")].filter(
      element => element.getBoundingClientRect().right > innerWidth + 1 && element.checkVisibility() && !inBox(element));
    const wide = document.documentElement.scrollWidth > innerWidth ? ["the page"] : [];
    found = [...wide, ...out.map(element => element.outerHTML.slice(0, 200))];
    if (!found.length) break;
    await new Promise(resolve => setTimeout(resolve, 100));
  }
  return found;
}"""

SCHEME = "document.body.dataset.mdColorScheme"


@pytest.mark.parametrize("source", PAGES, ids=lambda source: source.as_posix())
def test_page(page: Any, server: str, source: Path) -> None:
    page.goto(server + address(source))
    for scheme, name in (("light", "default"), ("dark", "slate")):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"{SCHEME} === '{name}'")
        for viewport in (DESKTOP, PHONE):
            page.set_viewport_size(viewport)
            assert page.evaluate(CUT_OFF) == []
    page.wait_for_load_state("networkidle")
    assert page.evaluate(STUMBLES) == []


def test_search(page: Any, server: str) -> None:
    page.goto(server)
    page.locator(".md-search__input").click()
    page.keyboard.type("momentum")
    hit = page.locator(".md-search-result__link", has_text="momentum").first
    hit.click()
    page.wait_for_url(re.compile("[?&]h=momentum"))
    assert page.locator("article mark", has_text=re.compile("momentum", re.I)).count()


def test_dark_mode(page: Any, server: str) -> None:
    page.goto(server)
    colours = {}
    for button, scheme in (("Always light", "default"), ("Always dark", "slate")):
        page.locator(f"label[title='{button}']").click()
        page.wait_for_function(f"{SCHEME} === '{scheme}'")
        colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colours["default"] != colours["slate"]
    page.goto(f"{server}start/")
    assert page.evaluate(SCHEME) == "slate", "it is remembered"
    page.locator("label[title='As the system']").click()
    page.wait_for_function(f"{SCHEME} === 'default'")


class Page(HTMLParser):
    """The links and anchors of a built page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.links: set[str] = set()
        self.anchors = {"", "__skip"}
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")
            elif name in ("href", "src"):
                self.links.add(value or "")


@pytest.fixture(scope="module")
def built(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_links(site: Path, built: dict[str, Page]) -> None:
    assert len(built) == len(PAGES)
    broken = set()
    for name, page in built.items():
        for link in page.links:
            url = urlsplit(urljoin(f"site:/{name}".replace("site:", "http://site"), link))
            if url.netloc != "site" or url.scheme != "http":
                continue
            target = unquote(url.path).lstrip("/")
            target += "index.html" if target.endswith("/") or not target else ""
            if not (site / target).is_file() or (target in built and unquote(url.fragment) not in built[target].anchors):
                broken.add((name, link))
    assert broken == set()


def test_no_markup_is_eaten(built: dict[str, Page]) -> None:
    """An underscore or a star of an equation that became <em>: in the middle of a word, or beside what only TeX has."""
    eaten = re.compile(
        r"[\w}\u0300-\u036f]<(?:em|strong)>[^<]{0,80}|<(?:em|strong) .{0,80}|<em>[^<]*[\\^{}][^<]*|</(?:em|strong)>[\w{][^<]{0,80}"
    )
    found = {}
    for name, page in built.items():
        article = page.text[page.text.index("<article") : page.text.index("</article")]
        assert not re.search(r'class="arithmatex">[^<]*<(em|strong|a)\b', article), name
        text = re.sub(r"(?s)<(code|pre|script|style)\b.*?</\1>", "", article)
        if hits := eaten.findall(text):
            found[name] = hits
    assert found == {}


def test_gallery_has_each_figure_and_its_command() -> None:
    cards = (DOCS / "gallery.md").read_text().split("\n-   ")[1:]
    shown = [re.findall(r"\]\((\S+\.png)\)", card) for card in cards]
    figures = [path.relative_to(DOCS).as_posix() for folder in ("images", "results") for path in (DOCS / folder).glob("*.png")]
    assert sorted(figure for figures in shown for figure in figures) == sorted(figures)
    assert [card for card in cards if not re.search(r"```sh\n    (hypergradient|python -m benchmarks)", card)] == []
