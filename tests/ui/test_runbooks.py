"""The page that alerts lead to."""

from html.parser import HTMLParser
from pathlib import Path

from burnish.monitoring.rules import DEFAULT_RUNBOOKS, training_rules
from burnish.monitoring.runbooks import sections
from burnish.monitoring.serving_rules import SERVING_RULES
from burnish.monitoring.slo import DEFAULT_OBJECTIVES, burn_rules

from .conftest import client_of


class Read(HTMLParser):
    """The text of each section by its anchor, and every tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.tags: set[str] = set()
        self._at = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "section":
            self._at = dict(attrs)["id"] or ""

    def handle_data(self, data: str) -> None:
        self.texts[self._at] = self.texts.get(self._at, "") + data


def test_every_alerts_default_address_is_a_section_with_its_words(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    answer = client.get("/runbooks")
    assert answer.status_code == 200 and "script-src 'self'" in answer.headers["content-security-policy"]
    read = Read(answer.text)
    rules = [*training_rules(), *SERVING_RULES, *(rule for each in DEFAULT_OBJECTIVES for rule in burn_rules(each))]
    for rule in rules:
        address, _, name = rule.as_yaml(DEFAULT_RUNBOOKS)["annotations"]["runbook_url"].partition("#")
        assert address == f"{client.base_url}/runbooks"
        words = sections()[name].replace("`", "").split()
        assert read.texts[name].split() == [name, *words]
    assert "script" not in read.tags and "code" in read.tags


def test_what_looks_like_markup_is_text(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("burnish.ui.runbooks.sections", lambda: {"Own": "a < b & `<b>c</b>`\nDo: \\1 nothing."})
    read = Read(client_of(tmp_path).get("/runbooks").text)
    assert read.texts["Own"].split() == ["Own", "a", "<", "b", "&", "<b>c</b>", "Do:", "\\1", "nothing."]
    assert "b" not in read.tags
