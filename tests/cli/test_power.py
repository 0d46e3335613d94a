"""`burnish power` and `burnish watch` as a user meets them."""

import json
import threading
import time
from pathlib import Path

import pytest

from burnish.cli.app import run
from burnish.stats.anytime import anytime_mean_interval


def fails(capsys, *arguments: str) -> str:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("burnish: ")
    return captured.err


def says(capsys, *arguments: str) -> str:
    assert run(arguments) == 0
    return capsys.readouterr().out


def content(capsys, *arguments: str) -> dict:
    return json.loads(says(capsys, *arguments, "--json"))


def test_items_needed_effect_seen_and_power_reached_belong_together(capsys) -> None:
    paired = ("power", "items", "--discordance", "0.2")
    needed = content(capsys, *paired, "--effect", "0.03")
    assert needed["number"] == needed["number_for_asked_power"] and needed["power"] >= 0.8
    items = str(needed["number"])
    assert content(capsys, *paired, "--items", items)["effect"] == pytest.approx(0.03, abs=1e-4)
    fewer = content(capsys, *paired, "--items", "500", "--effect", "0.03")
    assert fewer["power"] < 0.5 and fewer["number_for_asked_power"] == needed["number"]
    out = says(capsys, *paired, "--items", "500", "--effect", "0.03")
    assert "500 items (paired, discordance 0.20, exact McNemar test) find a difference of 3 points with" in out
    assert f"80% power takes {needed['number']:,}" in out


def test_designs_of_items(capsys) -> None:
    out = says(
        capsys, "power", "items", "--effect", "0.05", "--design", "independent", "--cluster-size", "5", "--icc", "0.1"
    )
    assert "items in each arm (from 0.5, z test, design effect 1.4)" in out
    assert "against 0.3, score test" in says(
        capsys, "power", "items", "--effect", "0.05", "--design", "fixed", "--baseline", "0.3"
    )
    assert "give --discordance, from a pilot" in says(capsys, "power", "items", "--items", "200")
    few = ("power", "items", "--items", "60", "--discordance", "0.5", "--cluster-size", "6", "--icc", "0.2")
    assert "10 clusters are few" in says(capsys, *few)
    assert "normal approximation is rough" in says(
        capsys, "power", "items", "--items", "20", "--design", "fixed", "--baseline", "0.1"
    )


def test_seeds(capsys) -> None:
    out = says(capsys, "power", "seeds", "--effect", "1", "--sd", "1")
    assert out.startswith("17 seeds in each arm (t test) find a difference of 1 (1 standard deviations)")
    out = says(capsys, "power", "seeds", "--effect", "1.5", "--sd", "1", "--correlation", "0.5")
    assert out.startswith("6 seeds in each arm (the same for both, paired t test, correlation 0.5)")
    assert "everything hangs on normal results" in says(capsys, "power", "seeds", "--seeds", "3", "--sd", "1")


def test_samples(capsys) -> None:
    spread = ("power", "samples", "--item-sd", "0.333333", "--sample-sd", "0.408248")
    found = content(capsys, *spread, "--effect", "0.03", "--samples", "1")
    assert (found["number"], found["samples"]) == (3876, 1)
    found = content(capsys, *spread, "--effect", "0.03", "--items", "1500")
    assert (found["number"], found["samples"]) == (1500, 6) and found["power"] >= 0.8
    assert "takes" not in found["statement"]
    found = content(capsys, *spread, "--items", "3876", "--samples", "1")
    assert found["effect"] == pytest.approx(0.03, abs=1e-5)


def test_what_it_costs(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "past-1"
    (folder / "evaluations").mkdir(parents=True)
    (folder / "run.json").write_text('{"created": "2026", "status": "finished"}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "seconds": 90.0}\n')
    seeds = ("power", "seeds", "--effect", "1", "--sd", "1", "--from", "past")
    assert "cost: 34 training runs x 90 s (as in past-1) = 51 min" in says(capsys, *seeds)
    items = ("power", "items", "--effect", "0.03", "--discordance", "0.2", "--from", "past")
    assert "cost not known: past-1 did not time its evaluations" in says(capsys, *items)
    assert content(capsys, *items)["seconds"] is None
    (folder / "metrics.jsonl").write_text('{"step": 1, "seconds": 90.0, "seconds_evaluate": 4.0}\n')
    (folder / "evaluations" / "step-000001.jsonl").write_text('{"id": "a", "score": 1}\n{"id": "b", "score": 1}\n')
    found = content(capsys, *items)
    assert found["seconds"] == pytest.approx(2 * found["number"] * 2.0)
    assert "no run begins with 'other'" in fails(capsys, *items[:-1], "other")
    store = make_store(tmp_path / "store", num_items=2)
    add(store, [1.0, 1.0])
    record = json.loads((store / "eval.json").read_text())
    (store / "eval.json").write_text(json.dumps(record | {"efficiency": {"seconds": 6.0}}))
    (store / "batches.jsonl").write_text('{"tokens": 30}\n')
    found = content(capsys, *items[:-1], str(store))
    assert (found["seconds"], found["tokens"]) == (2 * found["number"] * 3.0, 2 * found["number"] * 15.0)
    assert found["cost"].endswith(f", {found['tokens']:,.0f} tokens")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("items", "give --effect, --items, or both"),
        ("items --effect 3", "three points are 0.03"),
        ("items --effect 0", "between 0 and 1"),
        ("items --effect -0.1", "between 0 and 1"),
        ("items --effect 0.2 --baseline 0.9", "an accuracy above 1"),
        ("items --effect 0.1 --baseline 1.2", "an accuracy lies between 0 and 1"),
        ("items --effect 0.2 --discordance 0.1", "impossible: the most is 0.1"),
        ("items --effect 0.1 --discordance 0.9 --baseline 0.9", "cannot be at --baseline 0.9"),
        ("items --effect 0.1 --discordance 0.2 --design fixed", "--discordance belongs to --design paired"),
        ("items --effect 0.1 --icc 0.2", "--icc would change nothing"),
        ("items --effect 0.1 --cluster-size 4", "--cluster-size needs --icc"),
        ("items --effect 0.1 --cluster-size 4 --icc 2", "between 0 and 1, and is 2"),
        ("items --effect 0.1 --alpha 0", "alpha must lie between 0 and 1"),
        ("items --effect 0.1 --power 1", "the power must lie between"),
        ("items --effect 0.1 --power -1", "the power must lie between"),
        ("items --items -5", "-5 are too few"),
        ("items --items 3", "3 are too few: not even the largest"),
        ("seeds --effect 1 --sd 0", "standard deviation must be above 0"),
        ("seeds --sd 1", "give --effect, --seeds, or both"),
        ("seeds --effect 1 --sd 1 --correlation 1", "below 1"),
        ("seeds --seeds 1 --sd 1", "needs at least 2"),
        ("samples --item-sd 0.3 --sample-sd 0.4 --items 9", "give two of --effect, --items and --samples"),
        ("samples --item-sd 0.3 --sample-sd 0.4 --samples 9", "give --effect, --items, or both"),
        ("samples --item-sd 0.3 --sample-sd 0.4 --samples 0 --items 9", "at least one sample"),
        ("samples --item-sd 0.3 --sample-sd 0.4 --items 9 --effect 0.03", "9 items are too few, however often"),
    ],
)
def test_impossible_plans(capsys, arguments: str, message: str) -> None:
    assert message in fails(capsys, "power", *arguments.split())


def make_store(path: Path, *, num_items: int, status: str = "running") -> Path:
    path.mkdir()
    record = {"format": 1, "label": path.name, "settings": {}, "origin": {}, "samples_per_item": 1, "status": status}
    (path / "eval.json").write_text(json.dumps(record))
    items = [json.dumps({"id": str(i), "prompt": str(i), "answer": "1"}) + "\n" for i in range(num_items)]
    (path / "items.jsonl").write_text("".join(items))
    return path


def add(store: Path, scores: list[float], start: int = 0) -> None:
    lines = [json.dumps({"id": str(start + i), "sample": 0, "score": score}) + "\n" for i, score in enumerate(scores)]
    with (store / "samples.jsonl").open("a") as file:
        file.write("".join(lines))


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    return make_store(tmp_path / "base", num_items=40), make_store(tmp_path / "tuned", num_items=40)


def test_watch_once(capsys, stores) -> None:
    a, b = stores
    command = ["watch", str(a), str(b)]
    assert run(command) == 1
    out = capsys.readouterr().out
    assert "0 of 40 items: nothing to compare yet" in out and out.endswith("go on\n")
    add(a, [0.0] * 10)
    add(b, [1.0] * 6)
    with (b / "samples.jsonl").open("a") as file:
        file.write('{"id": "6", "sam')
    assert run([*command, "--json"]) == 1
    look = json.loads(capsys.readouterr().out)
    assert (look["n"], look["only_b"], look["verdict"], look["is_over"]) == (6, 6, "go on", False)
    (b / "samples.jsonl").write_text("")
    add(b, [1.0] * 10)
    assert run(command) == 0  # E = 2^8 / 9 = 28 after eight
    out = capsys.readouterr().out
    assert "10 of 40 items: A 0.000 B 1.000, difference +1.000, 95% confidence sequence" in out
    assert out.endswith("decided after 8 items: B better (tuned)\n")
    assert run(["watch", str(b), str(a)]) == 0
    assert capsys.readouterr().out.endswith("decided after 8 items: A better (tuned)\n")
    assert run([*command, "--alpha", "0.001"]) == 1


def test_watch_one_evaluation(capsys, stores) -> None:
    a, _ = stores
    assert run(["watch", str(a)]) == 0
    assert capsys.readouterr().out == "base: 0 of 40 items: nothing to say yet\n"
    add(a, [1.0] * 15 + [0.0] * 5)
    add(a, [1.0], start=30)
    assert run(["watch", str(a)]) == 0
    assert capsys.readouterr().out == (
        "base: 20 of 40 items (1 more wait for earlier ones): "
        "mean 0.750, 95% confidence sequence [0.422, 0.949]\n"  # as computed for shared/field/evaluation.md
    )
    add(a, [0.5], start=20)  # not right or wrong: by betting
    assert run(["watch", str(a), "--json"]) == 0
    look = json.loads(capsys.readouterr().out)
    low, high = anytime_mean_interval([1.0] * 15 + [0.0] * 5 + [0.5])
    assert (look["n"], look["low"], look["high"], look["is_over"]) == (21, low, high, False)
    assert "--margin needs two evaluations" in fails(capsys, "watch", str(a), "--margin", "0.1")
    add(a, [5.0], start=21)
    assert "base cannot be watched: values must be" in fails(capsys, "watch", str(a))


def test_watch_follows_one_evaluation_to_its_end(capsys, stores) -> None:
    a, _ = stores
    writer = threading.Thread(target=lambda: [(time.sleep(0.1), add(a, [1.0] * 20, start)) for start in (0, 20)])
    writer.start()
    assert run(["watch", str(a), "--follow", "--every-seconds", "0.02", "--timeout-seconds", "20"]) == 0
    writer.join(20)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1 and lines[-1].startswith("base: 40 of 40 items: mean 1.000")


def test_watch_to_the_end(capsys, stores) -> None:
    a, b = stores
    for store in stores:
        add(store, [1.0] * 40)
    assert run(["watch", str(a), str(b), "--follow"]) == 1
    assert "undecided: all 40 items are in" in capsys.readouterr().out
    assert run(["watch", str(a), str(b), "--margin", "0.3"]) == 0
    assert "decided after 40 items: equivalent within 0.3" in capsys.readouterr().out


def test_watch_follows_until_it_is_decided(capsys, stores) -> None:
    a, b = stores

    def write() -> None:
        for start in range(0, 40, 4):
            add(a, [0.0] * 4, start)
            add(b, [1.0] * 4, start)
            time.sleep(0.1)

    writer = threading.Thread(target=write)
    writer.start()
    status = run(["watch", str(a), str(b), "--follow", "--every-seconds", "0.02", "--timeout-seconds", "20"])
    writer.join(20)
    lines = capsys.readouterr().out.splitlines()
    assert status == 0 and lines[-1] == "decided after 8 items: B better (tuned)"
    assert len(lines) > 3 and "e-value" in lines[-2]


def test_watch_stops_at_its_deadline(capsys, stores) -> None:
    began = time.monotonic()
    command = ["watch", *map(str, stores), "--follow", "--every-seconds", "0.05", "--timeout-seconds", "0.3"]
    assert run(command) == 1
    assert 0.3 <= time.monotonic() - began < 10
    assert capsys.readouterr().out.endswith("go on\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alpha", "0"], "alpha must lie between 0 and 1"),
        (["--margin", "0"], "margin must lie between 0 and 1"),
        (["--margin", "-0.1"], "margin must lie between 0 and 1"),
        (["--every-seconds", "0"], "must be above 0"),
        (["--timeout-seconds", "-1"], "must be above 0"),
    ],
)
def test_watch_with_impossible_options(capsys, stores, options: list[str], message: str) -> None:
    assert message in fails(capsys, "watch", *map(str, stores), *options)


def test_watch_what_cannot_be_watched(capsys, stores, tmp_path: Path) -> None:
    a, b = stores
    assert "no run begins with 'nothing'" in fails(capsys, "watch", str(a), "nothing")
    other = make_store(tmp_path / "other", num_items=39)
    assert "not of the same items" in fails(capsys, "watch", str(a), str(other))
    add(a, [5.0])
    add(b, [5.0])
    assert "a score is not between 0 and 1" in fails(capsys, "watch", str(a), str(b))
