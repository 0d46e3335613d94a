"""Every condition: a planted fault is found, healthy runs are silent, and an episode is told once."""

import itertools
import math
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from burnish.config.schema import GuardsConfig
from burnish.errors import ConfigError
from burnish.monitoring.conditions import CONDITIONS
from burnish.monitoring.guards import Guards, Watchdog
from burnish.monitoring.webhook import post, read_webhook

Steps = list[dict[str, Any]]
STEPS = 60


def healthy(seed: int, steps: int = STEPS) -> Steps:
    """A run as the quickstart's are: the reward rises, the entropy and the truncated share fall, all of it noisy."""
    rng = random.Random(seed)
    lines = []
    for step in range(1, steps + 1):
        done = min(1.0, step / 40)
        lines.append(
            {
                "step": step,
                "loss": rng.gauss(0, 0.05),
                "reward_mean": min(1.0, max(0.0, 0.1 + 0.6 * done + rng.gauss(0, 0.08))),
                "groups_without_signal": min(0.75, max(0.0, rng.gauss(0.4, 0.15))),
                "entropy": max(0.05, 2.1 - 1.9 * done + rng.gauss(0, 0.15)),
                "grad_norm": math.exp(rng.gauss(0.4 + 0.6 * done, 0.25)),
                "kl_per_completion": max(0.0, 6 * done + rng.gauss(0, 0.3)),
                "mismatch_mean": max(0.005, rng.gauss(0.03, 0.004)),
                "clip_fraction": max(0.0, rng.gauss(0.02, 0.02)),
                "importance_outside": max(0.0, rng.gauss(0.01, 0.01)),
                "truncated_share": min(1.0, max(0.0, 0.5 - 0.45 * done + rng.gauss(0, 0.06))),
                "completion_tokens_mean": 19 - 9 * done + rng.gauss(0, 1),
                "staleness_max": float(rng.randint(0, 2)),
                "prompts_asked": 8,
                "completions_asked": 64,
                "reward_failures": 0,
                "tokens_per_second": rng.gauss(230, 25),
                "idle_learners": max(0.0, rng.gauss(0.3, 0.1)),
                "idle_generators": max(0.0, rng.gauss(0.3, 0.1)),
                "restarts": 0.0,
                **({"held_out": 0.3 + 0.4 * done + rng.gauss(0, 0.02)} if step % 10 == 0 else {}),
            }
        )
    return lines


def guards(**settings: Any) -> Guards:
    return Guards(GuardsConfig(**settings), staleness=2, mismatch=0.15)


def planted(name: str) -> Steps:
    """A healthy run with one fault from step 31 on."""
    lines = healthy(0, 130)
    for line in lines[30:]:
        late = line["step"] - 30
        match name:
            case "not_finite":
                line["loss"] = math.nan
            case "kl_blow_up":
                line["kl_per_completion"] = 60.0
            case "entropy_collapse":
                line |= {"entropy": 0.02, "reward_mean": 0.1}
            case "reward_collapse":
                line["reward_mean"] = 0.0
            case "reward_hacking":
                line["reward_mean"] = min(1.0, line["reward_mean"] + 0.012 * late)
                if "held_out" in line:
                    line["held_out"] = 0.6 - 0.02 * late / 10
            case "mismatch":
                line["mismatch_mean"] = 0.4
            case "grad_spike":
                line["grad_norm"] = 100.0 + late
            case "entropy_explosion":
                line["entropy"] = 7.0
            case "kl_for_nothing":
                line |= {"kl_per_completion": 4.5 + late, "reward_mean": 0.3}
            case "no_signal":
                line["groups_without_signal"] = 1.0
            case "clipping":
                line["clip_fraction"] = 0.4
            case "importance_outside":
                line["importance_outside"] = 0.5
            case "truncation":
                line["truncated_share"] = 1.0
            case "staleness":
                line["staleness_max"] = 3.0
            case "reward_errors":
                line["reward_failures"] = 8
            case "slow":
                line["tokens_per_second"] = 80.0
            case "waiting":
                line |= {"idle_learners": 0.7, "idle_generators": 0.7}
            case "length_drift":
                line["completion_tokens_mean"] = 90.0
            case "reward_plateau":
                line["reward_mean"] = 0.3 if late > 1 else 0.9
            case "restarts":
                line["restarts"] = 2.0
            case _:
                raise AssertionError(name)
    return lines


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda each: each.name)
def test_a_planted_fault_is_found_and_told_once(condition) -> None:
    watch = guards()
    found = [alert for alert in watch.replay(planted(condition.name)) if alert.condition.name == condition.name]
    firing = [alert for alert in found if alert.state == "firing"]
    assert firing and firing[0].step > 30, "not found"
    assert firing[0].step == firing[0].first_step + condition.steps - 1
    states = [alert.state for alert in found]
    assert all(a != b for a, b in itertools.pairwise(states)), "told twice in one episode"
    assert condition.summary in firing[0].text and condition.severity in firing[0].text


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_run_is_silent(seed: int) -> None:
    assert [alert.text for alert in guards().replay(healthy(seed))] == []


def test_an_episode_ends_and_another_one_begins() -> None:
    lines = healthy(3, 60)
    for line in [*lines[20:27], *lines[40:50]]:
        line["clip_fraction"] = 0.9
    found = [(alert.state, alert.step, alert.first_step) for alert in guards().replay(lines)]
    assert found == [("firing", 25, 21), ("resolved", 32, 21), ("firing", 45, 41), ("resolved", 55, 41)]


def test_what_is_off_and_what_is_done() -> None:
    assert guards(off=("not_finite",)).replay(planted("not_finite")[:60]) == []
    (alert,) = guards(actions={"staleness": "stop"}).replay(planted("staleness")[:40])
    assert alert.action == "stop"
    assert guards().replay(planted("staleness")[:40])[0].action == "notify"
    with pytest.raises(ConfigError, match="no condition 'entropy'"):
        guards(off=("entropy",))
    with pytest.raises(ConfigError, match="goes by the clock"):
        GuardsConfig(actions={"slow": "roll_back"})


def test_a_run_that_is_resumed_knows_its_beginning() -> None:
    lines = planted("entropy_collapse")
    whole = guards().replay(lines)
    first = guards()
    before = first.replay(lines[:40])
    second = guards()
    second.replay(lines[:40])
    assert before + second.replay(lines[40:]) == whole


def test_silence_is_noticed_once_until_a_step_ends() -> None:
    now, told = [0.0], list[float]()
    watchdog = Watchdog(told.append, clock=lambda: now[0], shortest_seconds=10)
    now[0] = 1000
    watchdog.look()  # the first step may take its time
    for _ in range(3):
        watchdog.step_ended(4.0, around_seconds=5.0)
    assert watchdog.allowed_seconds == 5 * 4 + 2 * 5
    now[0] += 30
    watchdog.look()
    assert told == []
    now[0] += 1
    watchdog.look()
    watchdog.look()
    assert told == [31]
    watchdog.step_ended(4.0, around_seconds=5.0)
    now[0] += 31
    watchdog.look()
    assert told == [31, 31]


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[bytes]]]:
    """(URL, what was posted there)."""
    posted: list[bytes] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/secret", posted
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_a_webhook(webhook: tuple[str, list[bytes]], tmp_path: Path) -> None:
    url, posted = webhook
    file = tmp_path / "url"
    file.write_text(f"{url}\n")
    failures: list[str] = []
    post(read_webhook(file), {"name": "clipping"}, failures.append).join(10)
    assert posted == [b'{"name": "clipping"}'] and failures == []
    post("http://127.0.0.1:9/secret", {}, failures.append).join(10)
    assert len(failures) == 1 and "secret" not in failures[0]
    file.write_text("ftp://x")
    with pytest.raises(ConfigError, match="must hold a URL alone"):
        read_webhook(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_webhook(tmp_path / "none")


def test_a_step_need_not_have_all_metrics() -> None:
    assert guards().replay([{"step": number} for number in range(1, 80)]) == []


def flat(seed: int) -> Steps:
    """A long run that rises and then stays, with noisy evaluations."""
    rng = random.Random(seed)
    lines = []
    for step in range(1, 401):
        done = min(1.0, step / 200)
        line = {"step": step, "prompts_asked": 8, "reward_mean": 0.2 + 0.5 * done + rng.gauss(0, 0.08)}
        if step % 10 == 0:
            line["held_out"] = 0.3 + 0.4 * done + rng.gauss(0, 0.03)
        lines.append(line)
    return lines


def test_noise_is_no_hacking() -> None:
    told = [alert for seed in range(40) for alert in guards().replay(flat(seed)) if alert.state == "firing"]
    assert [alert.text for alert in told if alert.condition.name == "reward_hacking"] == []


@pytest.mark.parametrize(
    "lines",
    [
        [{"step": s, "kl_per_completion": 0.01 * s * s} for s in range(1, 60)],  # as the square of the steps
        [{"step": s, "grad_norm": 0.0 if s <= 24 else 0.3} for s in range(1, 60)],  # no signal, then some
        [{"step": s, "reward_mean": -0.05 * s} for s in range(1, 60)],  # a reward model's, on no scale
    ],
    ids=["square", "zeros", "reward model"],
)
def test_what_learning_looks_like_elsewhere(lines: Steps) -> None:
    assert guards().replay(lines) == []


def test_a_value_that_is_no_number_does_not_end_the_guards() -> None:
    lines = healthy(0, 40)
    lines[4]["reward_mean"] = math.nan
    assert [alert.condition.name for alert in guards().replay(lines)] == ["not_finite", "not_finite"]


def test_what_is_in_doubt() -> None:
    watch, told = guards(actions={"clipping": "checkpoint"}), guards()
    lines = healthy(0, 60)
    for line in lines[30:]:
        line["clip_fraction"] = 0.9
    told.replay(lines)
    assert told.doubtful_from() is None  # what is only told puts nothing in doubt
    watch.replay(lines[:30])
    assert watch.doubtful_from() is None
    watch.replay(lines[30:32])
    assert watch.doubtful_from() == 31  # before it is told
    watch.replay(lines[32:])
    assert watch.doubtful_from() == 31


def test_a_clock_is_no_reason_to_roll_back() -> None:
    with pytest.raises(ConfigError, match="goes by the clock"):
        GuardsConfig(warning="roll_back")
    GuardsConfig(warning="roll_back", off=("slow", "waiting"))
    with pytest.raises(ConfigError, match="while silent"):
        GuardsConfig(actions={"silent": "stop"})


def test_a_pause_is_no_silence() -> None:
    now, told = [0.0], list[float]()
    watchdog = Watchdog(told.append, clock=lambda: now[0], shortest_seconds=10)
    assert not watchdog.step_ended(1.0, around_seconds=0.0)
    with watchdog.resting():
        now[0] += 1000
        watchdog.look()
    watchdog.look()
    assert told == []
    now[0] += 11
    watchdog.look()
    assert told == [11] and watchdog.step_ended(1.0, around_seconds=0.0)
