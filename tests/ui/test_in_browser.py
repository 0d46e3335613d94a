"""The page in Chromium, from the command itself: what stands in it, what it asks for; hostile text stays text."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from burnish.reproducibility.run_folder import RunFolder

from .browser import CHROMIUM, Browser, browser
from .conftest import Project

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"
SHOWN = "document.querySelector('main[data-shown]') !== null"

pytestmark = pytest.mark.slow
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no browser is here: apt-get install chromium")


@dataclass(frozen=True)
class Page:
    """The command's process, its address, and the folders it shows."""

    process: subprocess.Popen[str]
    address: str
    runs_folder: Path


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that serves, and the address that it says within two minutes; Ctrl-C ends it."""
    command = [sys.executable, "-m", "burnish", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    too_late = threading.Timer(120, process.kill)
    too_late.start()
    try:
        assert process.stderr is not None
        said = next((line for line in process.stderr if "http://" in line), "")
        assert said, f"{command} ended with {process.wait()}"
        too_late.cancel()
        yield process, said[said.index("http://") :].split()[0].removesuffix("/v1")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        too_late.cancel()
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def page(project: Project, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(project.runs_folder, folder / "runs")
    hostile = RunFolder(folder / "runs" / MARKUP.replace("/", "-"))
    shutil.copytree(project.runs[0].path, hostile.path)
    hostile.update_record(status="failed", failure=MARKUP, settings={MARKUP: MARKUP})
    hostile.add_event("alert", name=MARKUP, severity="critical", message=MARKUP, step=2, state="firing")
    lines = hostile.read_step("rollouts", 3)
    lines[0]["prompt"] = lines[0]["messages"][0]["content"] = lines[0]["rollouts"][0]["text"] = MARKUP
    hostile.write_step("rollouts", 3, lines)
    broken = RunFolder.create(folder / "runs", "broken")
    broken.write_record({"created": "2026-01-01", "status": "running"})
    (broken.path / "metrics.jsonl").write_text('{"st\n{}\n')
    serve = ("serve", str(tiny_folder), "--name", "tiny", "--port", "0", "--model.compute_dtype=float32")
    folders = ("--runs-folder", str(folder / "runs"), "--evals-folder", str(project.evals_folder))
    with (
        serving(*serve) as (_, serve_url),
        serving("ui", *folders, "--port", "0", "--serve-url", serve_url) as (process, address),
    ):
        yield Page(process, address, folder / "runs")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as made:
        yield made


@pytest.fixture
def window(page: Page, chromium: Browser) -> Iterator[Browser]:
    """Whatever a test does in it: nothing is asked of another host, and nothing is complained of."""
    chromium.asked.clear()
    chromium.complaints.clear()
    yield chromium
    chromium.value("1")  # lets the last events come
    assert {each for each in chromium.asked if not each.startswith((page.address, "about:"))} == set()
    assert chromium.asked and chromium.complaints == []


def go(window: Browser, page: Page, view: str, **size: object) -> None:
    window.open("about:blank")
    window.open(f"{page.address}/#/{view}", **size)  # type: ignore[arg-type]
    window.wait(SHOWN)


@in_browser
def test_the_table_is_sorted_and_filtered(window: Browser, page: Page) -> None:
    go(window, page, "runs")
    names = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent)"
    everything = sorted(path.name for path in page.runs_folder.iterdir())
    assert sorted(window.value(names)) == everything
    window.value("document.querySelector('[data-sort=name]').click()")
    assert window.value(names) == everything
    window.value("document.querySelector('[data-sort=name]').click()")
    assert window.value(names) == everything[::-1]
    assert window.value("document.activeElement.dataset.sort") == "name"  # the keyboard stays where it was
    assert window.value("document.querySelector('th[aria-sort=descending]').textContent").startswith("Run")
    window.value(
        "const box = document.querySelector('input'); box.value = 'SEED finish'; box.dispatchEvent(new Event('input'))"
    )
    assert [name[:5] for name in window.value(names)] == ["seed2", "seed1"]
    window.value("box.value = 'broken'; box.dispatchEvent(new Event('input'))")
    assert "metrics.jsonl, line 1" in window.value("document.querySelector('td.reason').textContent")


@in_browser
def test_a_run_is_drawn_and_its_completions_stand_side_by_side(window: Browser, page: Page) -> None:
    run = RunFolder.find("seed1", page.runs_folder)
    go(window, page, f"runs/{run.path.name}")
    titles = "[...document.querySelectorAll('figcaption strong')].map(each => each.textContent)"
    assert {"held_out", "reward_mean", "loss"} <= set(window.wait(titles))
    points = "document.querySelectorAll('.points circle.point').length"
    assert window.value(points) == 4  # after 0, 1, 2 and 3 steps
    drawn = "[...document.querySelectorAll('path.line')].map(each => each.getTotalLength())"
    lengths = window.value(drawn)
    assert len(lengths) >= 4 and all(length > 0 for length in lengths)
    window.value("document.querySelector('input[value=tokens_per_second]').click()")
    window.wait(f"{titles}.includes('tokens_per_second')")
    window.value(
        "const pick = document.querySelector('select'); pick.value = 'seeds'; pick.dispatchEvent(new Event('change'))"
    )
    window.wait("document.querySelectorAll('path.band').length > 3")
    assert "lowest to highest over 2 seeds" in window.value("document.querySelector('.chart small').textContent")
    window.value("document.querySelector('.chart svg').focus()")
    window.press("Home", windowsVirtualKeyCode=36)
    assert window.value("document.querySelector('.readout').textContent").startswith("step 0: ")
    window.press("ArrowRight", windowsVirtualKeyCode=39)
    assert window.value("document.querySelector('.readout').textContent").startswith("step 1: ")

    texts = "[...document.querySelectorAll('.completion > pre')].map(each => each.textContent)"
    tops = "new Set([...document.querySelectorAll('.completion')].map(each => each.getBoundingClientRect().top)).size"
    stored = sorted(run.read_step("rollouts", 3)[0]["rollouts"], key=lambda each: -each["reward"])
    shown = [each["text"] or "(empty)" for each in stored]
    assert window.value(texts) == shown and window.value(tops) == 1
    window.value("[...document.querySelectorAll('button')].find(each => each.textContent.includes('earlier')).click()")
    before = sorted(run.read_step("rollouts", 2)[0]["rollouts"], key=lambda each: -each["reward"])
    window.wait("document.querySelector('section[aria-label=Rollouts] select').value === '2'")
    shown = [each["text"] or "(empty)" for each in before]
    window.wait(f"JSON.stringify({texts}) === JSON.stringify({json.dumps(shown)})")


@in_browser
def test_an_alerts_address_leads_to_its_runbook(window: Browser, page: Page) -> None:
    window.open("about:blank")
    window.open(f"{page.address}/runbooks#TrainingSilent", width=360)
    assert window.wait("document.querySelector('section:target h2')?.textContent") == "TrainingSilent"
    assert window.wait("document.querySelector('section:target').getBoundingClientRect().top < innerHeight")
    assert window.value("getComputedStyle(document.body).fontSize") == "15px"  # the style sheet is taken
    assert window.value("document.documentElement.scrollWidth") <= 360


@in_browser
def test_hostile_text_is_text(window: Browser, page: Page) -> None:
    go(window, page, "runs")
    window.value("[...document.querySelectorAll('a')].find(each => each.textContent.includes('<script>')).click()")
    window.wait("document.querySelector('.events') !== null && document.querySelectorAll('.completion').length > 0")
    text = window.value("document.body.textContent")
    assert text.count(MARKUP) >= 6  # failure, setting, name and message of the alert, question, prompt, completion
    assert window.value("document.scripts.length") == 1 and window.value("document.images.length") == 0
    assert window.value("document.querySelector('.events li[data-severity=critical]') !== null")
    refused = "try { document.body.innerHTML = '<b>x</b>'; 'taken' } catch (error) { error.name }"
    assert window.value(refused) == "TypeError"
    window.complaints.clear()  # Chromium says of that refusal that there was one


@in_browser
def test_a_run_in_progress_refreshes_itself(window: Browser, page: Page) -> None:
    run = RunFolder.find("other", page.runs_folder)
    run.update_record(status="running")
    with run.locked():
        go(window, page, f"runs/{run.path.name}")
        step = "document.querySelector('.facts').textContent"
        assert "3 of 3" in window.value(step)
        points = "document.querySelectorAll('.points circle.point').length"
        window.wait(f"{points} === 4")
        run.add_metrics({"step": 4, "loss": 1.0, "reward_mean": 2.0, "new_metric": 1.0})
        run.write_step("evaluations", 4, run.read_step("evaluations", 3))
        run.add_event("alert", name="kl", severity="warning", message="KL rose", step=4, state="firing")
        window.wait(f"{step}.includes('4 of 3') && {points} === 5")
        window.wait("document.querySelector('.events').textContent.includes('KL rose')")
        window.wait("document.querySelector('input[value=new_metric]') !== null")
    window.wait("document.querySelector('h1 .badge').textContent === 'died'")


@in_browser
def test_evaluations_and_their_comparison(window: Browser, page: Page) -> None:
    go(window, page, "evaluations")
    assert window.value("document.querySelectorAll('table')[0].tBodies[0].rows.length") == 2
    window.wait("document.querySelector('.verdict') !== null")
    assert window.value("document.querySelector('.verdict').textContent") == "verdict: undecided"
    window.value("document.querySelector('tbody a').click()")
    window.wait("document.body.textContent.includes('largest gap')")


@in_browser
def test_what_the_server_says(window: Browser, page: Page) -> None:
    go(window, page, "serving")
    text = window.wait(
        "document.querySelector('main').textContent.includes('seconds_since_step') && document.body.innerText"
    )
    assert "tiny" in text and "ready" in text
    asked = len(window.asked)
    until = time.monotonic() + 10
    while len(window.asked) <= asked and time.monotonic() < until:
        window.value("1")
        time.sleep(0.1)
    assert len(window.asked) > asked  # it looks again by itself


@in_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 360])
def test_every_view_fits_and_every_control_has_a_name(window: Browser, page: Page, width: int, dark: bool) -> None:
    run = RunFolder.find("seed1", page.runs_folder)
    for view in ("runs", f"runs/{run.path.name}", "evaluations", "serving"):
        go(window, page, view, width=width, dark=dark)
        window.wait("document.querySelectorAll('table, svg').length > 0")
        assert window.value("document.documentElement.scrollWidth") <= width
        nameless = window.value(
            "[...document.querySelectorAll('input, select, button, svg[tabindex], [role=region]')].filter(each =>"
            " !(each.getAttribute('aria-label') ?? each.labels?.[0]?.textContent ?? each.textContent).trim())"
            ".map(each => each.outerHTML)"
        )
        assert nameless == []
        back, text = window.value("(style => [style.backgroundColor, style.color])(getComputedStyle(document.body))")
        light = [sum(map(int, each.strip("rgb()").split(","))) for each in (back, text)]
        assert (light[0] < light[1]) == dark


def test_faults_of_the_command(tmp_path: Path) -> None:
    def said(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "burnish", "ui", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
        assert done.stdout == "" and done.stderr.count("\n") == 1
        return done.returncode, done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, text = said("--port", port)
        assert status == 3 and f"cannot listen on 127.0.0.1:{port}" in text and "--port" in text
    assert said("--serve-url", "nonsense") == (
        2,
        "burnish: --serve-url nonsense: give a server's address, such as http://127.0.0.1:8000\n",
    )
    assert said("--port", "70000")[0] == 2


def test_it_listens_on_this_machine_alone(page: Page) -> None:
    port = int(page.address.rpartition(":")[2])
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    assert [each for each in listening if each.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
