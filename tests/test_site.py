"""The pages of `make docs`: built without network or warning, whole, and read by a browser that asks no other host."""

import functools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import burnish
from burnish.algorithms.session import schema_for
from burnish.cli.config import OTHER_SCHEMAS
from burnish.config.loading import leaf_fields, shipped_recipes
from burnish.losses.advantages import ADVANTAGES
from burnish.losses.policy_gradient import Surrogate
from burnish.losses.preference import NAMED
from burnish.monitoring.runbooks import sections

from .ui.browser import CHROMIUM, browser

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs" / "guides"
_LOADED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("link", "href"), ("use", "href")}

pytestmark = pytest.mark.slow


def build(config: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does; whatever would be fetched from another host fails."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(to)]
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


@dataclass
class Page(HTMLParser):
    """What a page names: its anchors, where its links lead, what it loads."""

    text: str
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if tag == "a" and name == "href":
                self.links.append(value or "")
            if (tag, name) in _LOADED:
                self.loaded.append(value or "")


def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def broken(site: Path) -> Iterator[str]:
    """Links to a file or an anchor of the site that is not there."""
    found = pages(site)
    for path, page in found.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            base = site if parts.path.startswith("/") else path.parent  # those of the page for what is not there
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            if target.is_dir():
                target = target / "index.html"
            anchors = found[target].anchors if target in found else set()
            if not target.is_file() or (parts.fragment and target in found and unquote(parts.fragment) not in anchors):
                yield f"{path.relative_to(site)}: {link}"


def foreign(site: Path) -> Iterator[str]:
    """What would be loaded from another host."""
    for path, page in pages(site).items():
        yield from (f"{path.relative_to(site)}: {each}" for each in page.loaded if urlsplit(each).netloc)
        (config,) = re.findall(r'<script id="__config" type="application/json">(.*?)</script>', page.text)
        yield from (f"{path.relative_to(site)}: search {json.loads(config)['search']}",) * bool(
            urlsplit(json.loads(config)["search"]).netloc
        )
    for path in site.rglob("*.css"):
        for each in re.findall(r"""(?:@import\s*|url\()\s*["']?([^"')]+)""", path.read_text(encoding="utf-8")):
            if urlsplit(each).netloc:
                yield f"{path.relative_to(site)}: {each}"


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    assert len(pages(site)) > 40
    assert list(broken(site)) == []


def test_every_public_name_has_its_place(site: Path) -> None:
    anchors = {anchor for page in pages(site).values() for anchor in page.anchors}
    assert {name for name, home in burnish._HOMES.items() if f"{home}.{name}" not in anchors} == set()


def test_the_reference_has_every_setting_loss_and_command(site: Path) -> None:
    anchors = {path.stem: page.anchors for path, page in pages(site / "reference").items()}
    schemas = {schema_for(recipe) for recipe in shipped_recipes()}
    keys = {key for schema in schemas for key, _ in leaf_fields(schema)} - {"algorithm"}
    keys |= {f"{name}-{key}" for name, schema in OTHER_SCHEMAS.items() for key, _ in leaf_fields(schema)}
    assert keys - anchors["settings"] == set()
    assert {*NAMED, *(f"advantage-{each}" for each in ADVANTAGES), "kl-k1", "kl-k2", "kl-k3"} <= anchors["maths"]
    assert {f"surrogate-{each}" for each in get_args(Surrogate)} <= anchors["maths"]
    assert {"burnish-train", "burnish-monitor-up", "burnish-experiment-report"} <= anchors["commands"]
    assert {name.lower() for name in sections()} <= anchors["runbooks"]
    assert shipped_recipes().keys() <= anchors["recipes"]


def test_a_runbook_says_how_severe_its_alert_is_and_when_it_fires(site: Path) -> None:
    text = re.sub(r"<.*?>", "", (site / "reference" / "runbooks.html").read_text(encoding="utf-8"))
    assert "ServingSlowFirstToken, warning, once it has held for 5m: 5 % of answers wait more than 5 s" in text
    assert "TrainingKlBlowUp, critical: the policy runs away from the reference" in text
    assert all(f"SloAnswers{pace}, critical" in text for pace in ("Fast", "Steady"))
    assert "$labels" not in text


def test_what_is_for_the_repository_alone_is_left_out(site: Path) -> None:
    mark = "<!-- left out of the site -->"
    marked = [path for path in (ROOT / "docs").rglob("*.md") if mark in path.read_text(encoding="utf-8")]
    assert {path.stem for path in marked} >= {"commands", "maths", "recipes", "runbooks", "settings"}
    for path in marked:
        built = (site / path.relative_to(ROOT / "docs").with_suffix(".html")).read_text(encoding="utf-8")
        assert mark not in built and "In the repository" not in built, path


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    assert list(foreign(site)) == []


def test_these_tests_see_what_is_wrong(tmp_path: Path) -> None:
    config = '<script id="__config" type="application/json">{"search": "https://b.example/s.js"}</script>'
    script = '<script src="https://a.example/x.js"></script><link rel="stylesheet" href="//c.example/f.css">'
    links = '<a href="other.html">1</a><a href="#no">2</a><a href="page.html#there">3</a><p id="there">'
    (tmp_path / "page.html").write_text(config + script + links)
    (tmp_path / "page.css").write_text("@import 'https://d.example/a.css'; p { background: url(//e.example/b.png) }")
    assert [each.partition(": ")[2] for each in broken(tmp_path)][:2] == ["other.html", "#no"]
    assert [each.partition("//")[2] for each in foreign(tmp_path)] == [
        "a.example/x.js",
        "c.example/f.css",
        "b.example/s.js",
        "d.example/a.css",
        "e.example/b.png",
    ]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("[there](there.md)", "there.md"),
        ("[there](#there)", "#there"),
        ("[there](other.md#there)", "does not contain an anchor '#there'"),
        ("::: burnish.there", "burnish.there"),
        ("", "left.md"),
    ],
    ids=["page", "anchor", "anchor elsewhere", "name", "left out"],
)
def test_what_is_wrong_breaks_the_build(text: str, warning: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{text}\n")
    (tmp_path / "docs" / "other.md").write_text("# Another\n")
    if not text:
        (tmp_path / "docs" / "left.md").write_text("# In no menu\n")
    changed = {
        "INHERIT": str(ROOT / "mkdocs.yml"),
        "docs_dir": "docs",
        "hooks": [],
        "nav": [{"A": "index.md"}, {"B": "other.md"}],
        "theme": {"custom_dir": str(ROOT / "docs" / "theme")},
    }
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(changed))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert warning in done.stderr + done.stdout


def test_the_guides_lead_to_each_other_in_the_order_of_the_menu() -> None:
    menu = re.findall(r"- (guides/[a-z-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    order = [Path(each).name for each in menu if not each.endswith("index.md")]
    assert {path.name for path in GUIDES.glob("*.md")} == {*order, "index.md"}
    listed = re.findall(r"^\d+\. \[.*?\]\((.*?)\)", (GUIDES / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == order
    for before, name, after in zip(["../start.md", *order], order, [*order[1:], "index.md"], strict=False):
        last = (GUIDES / name).read_text(encoding="utf-8").splitlines()[-1]
        found = re.match(r"Before: \[.*?\]\((.*?)\)\. Next: \[.*?\]\((.*?)\)", last)
        assert found and found.groups() == (before, after), name


class Handler(SimpleHTTPRequestHandler):
    """As a web server has the page for what is not there."""

    def log_message(self, *args: object) -> None: ...

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        body = (Path(self.directory) / "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.skipif(CHROMIUM is None, reason="no browser is here: apt-get install chromium")
def test_a_reader_searches_and_opens_a_guide_and_no_other_host_is_asked(site: Path, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        with browser(tmp_path) as page:
            page.open(f"{address}/index.html")
            page.wait("document.querySelector('h1')?.innerText.startsWith('burnish')")
            page.wait("document.querySelector('.md-search__input') !== null")
            page.value("document.querySelector('.md-search__input').focus()")
            page.call("Input.insertText", text="Landlock")  # beside a bracket in the text
            page.wait("document.querySelector('.md-search-result__link')?.href.includes('limits.html')")
            page.open(f"{address}/guides/index.html", dark=True)
            page.wait("[...document.links].some(link => link.href.endsWith('guides/serving.html'))")
            page.value(
                "[...document.querySelectorAll('article a')].find(link => link.href.endsWith('serving.html')).click()"
            )
            page.wait("document.querySelector('h1')?.innerText.startsWith('Model serving')")
            assert page.complaints == []
            page.open(f"{address}/no/such/page.html", width=390)
            page.wait("document.querySelector('h1')?.innerText.startsWith('There is no such page')")
            assert page.value("getComputedStyle(document.querySelector('.md-header')).position") == "sticky"  # its CSS
            asked = [each for each in page.asked if not each.startswith(("data:", "blob:", "about:"))]
            assert any(each.endswith("search_index.json") for each in asked)
            assert [each for each in asked if not each.startswith(f"{address}/")] == []
    finally:
        server.shutdown()
        server.server_close()
