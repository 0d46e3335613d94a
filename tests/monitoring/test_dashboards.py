"""Every panel's query, run by a real Prometheus that scrapes a real server and a real run: none is empty."""

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.cli.app import run
from burnish.monitoring.dashboards import DASHBOARDS

from .conftest import ADMIN, USER, Watched, watched
from .processes import post, until, with_prometheus

PANELS = [
    (board.uid, panel.title, expr) for board in DASHBOARDS for panel in board.panels for expr in panel.queries.values()
]


def plain(expr: str) -> str:
    """A query as Grafana sends it when everything is chosen."""
    return expr.replace("$__rate_interval", "15s").replace("$run", ".*").replace("$model", ".*")


@pytest.fixture(scope="module")
def busy(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Under traffic of which half goes to a canary, with ratings."""
    with (
        pytest.MonkeyPatch.context() as patch,
        watched(tmp_path_factory.mktemp("busy"), tiny_folder, patch) as (made, _),
    ):
        trial = {"path": "new", "arm": "canary", "share": 0.5, "force": True}
        post(f"http://127.0.0.1:{made.admin_port}/admin/models/tiny/trial", trial, ADMIN)
        over = threading.Event()

        def ask() -> None:
            number = 0
            while not over.wait(0.1):
                answer = made.ask(number)
                rating = {"response_id": answer["id"], "rating": "bad" if number % 3 else "good"}
                post(f"http://127.0.0.1:{made.serve_port}/v1/feedback", rating, USER)
                number += 1

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            seen = 'sum by (arm) (rate(burnish_serve_feedback_total{arm="canary"}[15s])) > 0'
            until(lambda: made.query(seen), 90, made.logs)
            yield made
        finally:
            over.set()
            thread.join(60)


@pytest.mark.slow
@with_prometheus
@pytest.mark.parametrize(("uid", "title", "expr"), PANELS)
def test_a_panel_shows_something(busy: Watched, uid: str, title: str, expr: str) -> None:
    def numbers() -> list[float]:
        values = [float(each["value"][1]) for each in busy.query(plain(expr))]
        return [value for value in values if not math.isnan(value)]

    assert until(numbers, 30, lambda: f"{uid}: {title}: {plain(expr)} is empty\n{busy.logs()}")


@pytest.mark.slow
@with_prometheus
@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_a_variable_has_values(busy: Watched, board) -> None:
    found = busy.query(f"count by ({board.variable}) ({board.values_of})")
    assert [each["metric"][board.variable] for each in found if board.variable in each["metric"]]


def test_what_grafana_imports(tmp_path: Path, capsys) -> None:
    assert run(["monitor", "dashboards", str(tmp_path / "new" / "boards")]) == 0
    said = capsys.readouterr().out.split()
    assert [Path(each).stem for each in said] == [board.uid for board in DASHBOARDS]
    for name, board in zip(said, DASHBOARDS, strict=True):
        tree = json.loads(Path(name).read_text())
        assert (tree["uid"], tree["title"]) == (board.uid, board.title)
        panels = tree["panels"]
        assert [panel["title"] for panel in panels] == [panel.title for panel in board.panels]
        assert len({panel["id"] for panel in panels}) == len(panels)
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
        assert len(set(places)) == len(places)
        known = {variable["name"] for variable in tree["templating"]["list"]} | {"__rate_interval"}
        for panel, written in zip(board.panels, panels, strict=True):
            assert [target["expr"] for target in written["targets"]] == list(panel.queries.values())
            for target in written["targets"]:
                assert target["datasource"]["uid"] == "${source}"
                used = {word.strip("{}") for word in _variables(target["expr"])}
                assert used <= known


def _variables(expr: str) -> list[str]:
    return [part.split('"')[0].split("]")[0] for part in expr.split("$")[1:]]
