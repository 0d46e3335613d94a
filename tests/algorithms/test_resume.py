"""A run that is interrupted anywhere ends in the same bits as one that is not, and the test can tell if it does not."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from burnish.algorithms.session import resume, train
from burnish.cli.train import run_config
from burnish.config.loading import config_hash, to_yaml
from burnish.errors import BurnishError, DataError, MachineError, UserError
from burnish.reproducibility.files import sha256_of_file
from burnish.reproducibility.run_folder import RunFolder, read_jsonl
from burnish.rewards.scoring import ScoreFailure

from .conftest import ALGORITHMS

TIMES = ("seconds", "seconds_sample", "seconds_learn", "seconds_evaluate", "tokens_per_second", "peak_memory_bytes")


@dataclass(frozen=True)
class Outcome:
    """Everything that must be equal, bit by bit."""

    parameters: str
    optimizer: str
    state: dict
    metrics: list[str]
    tokens: str
    evaluations: str


def outcome(run: RunFolder) -> Outcome:
    (checkpoint,) = run.checkpoints.glob("step-*")
    metrics = [{key: value for key, value in line.items() if key not in TIMES} for line in run.metrics()]
    exact = [
        json.dumps({key: value.hex() if isinstance(value, float) else value for key, value in line.items()})
        for line in metrics
    ]
    return Outcome(
        parameters="".join(sha256_of_file(path) for path in sorted(checkpoint.glob("*model.safetensors"))),
        optimizer=sha256_of_file(checkpoint / "optimizer.safetensors"),
        state=json.loads((checkpoint / "state.json").read_text()),
        metrics=exact,
        tokens=_hash_files(run.path / "rollouts"),
        evaluations=_hash_files(run.path / "evaluations"),
    )


def _hash_files(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def stop_after(monkeypatch, step: int) -> None:
    """Let a run end as Ctrl-C would end it."""
    from burnish.algorithms.hooks import Hooks

    original = Hooks.after_step

    def after_step(self, state, *arguments, **named) -> None:
        self.should_stop = self.should_stop or state.step == step
        original(self, state, *arguments, **named)

    monkeypatch.setattr(Hooks, "after_step", after_step)


def interrupted(config, quiet, monkeypatch, step: int) -> RunFolder:
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        run = train(config, quiet)
    assert run.record()["status"] == "interrupted"
    assert [path.name for path in run.checkpoints.iterdir()] == [f"step-{step:06d}"]
    return run


@pytest.mark.parametrize("step", [1, 3, 5])
def test_interrupted_and_resumed_equals_unbroken(tiny_config, quiet, monkeypatch, step: int) -> None:
    # 10 questions, 3 a step: step 3 ends in the middle of an epoch, step 5 in the second
    config = tiny_config(train__minibatches_per_step=2, loss__kl_coefficient=0.05)
    run = interrupted(config, quiet, monkeypatch, step)
    assert f"burnish resume {run.path}" in quiet.file.getvalue()
    resume(run, config, quiet)
    assert outcome(run) == outcome(train(config, quiet))


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "grpo"])
@pytest.mark.parametrize("lora", [None, pytest.param({"rank": 2}, marks=pytest.mark.slow)], ids=["full", "lora"])
def test_every_algorithm_resumes_bit_exactly(make_config, quiet, monkeypatch, algorithm: str, lora) -> None:
    config = make_config(algorithm, model__lora=lora)
    run = interrupted(config, quiet, monkeypatch, 3)
    resume(run, config, quiet)
    resumed, unbroken = outcome(run), outcome(train(config, quiet))
    assert resumed == unbroken
    assert len(resumed.metrics) == 6


def test_conversations_resume_bit_exactly(tiny_config, quiet, monkeypatch) -> None:
    task = {"environment": "low_tokens:Twice", "reward": "burnish.rewards.answers:last_number"}
    changes = {f"task__{key}": value for key, value in task.items()}
    config = tiny_config(**changes, train__num_steps=8, checkpoint__every_steps=4, model__compute_dtype="float32")
    run = interrupted(config, quiet, monkeypatch, 3)
    resume(run, config, quiet)
    unbroken = train(config, quiet)
    assert outcome(run) == outcome(unbroken)
    metrics = unbroken.metrics()
    assert all(line["mismatch_mean"] < 1e-5 for line in metrics)
    assert max(line["completion_tokens_mean"] for line in metrics) > 8  # more than one turn's tokens


def test_resumed_twice_in_bfloat16_with_warm_up_and_decay(tiny_config, quiet, monkeypatch) -> None:
    config = tiny_config(model__compute_dtype="bfloat16", optimizer__warmup_steps=3, optimizer__decay="cosine")
    run = interrupted(config, quiet, monkeypatch, 2)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        resume(run, config, quiet)
    resume(run, config, quiet)
    assert outcome(run) == outcome(train(config, quiet))


def _without_optimizer(checkpoint: Path) -> None:
    path = checkpoint / "optimizer.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)


def _without_position(checkpoint: Path) -> None:
    _change_state(checkpoint, data_position=0)


def _without_random_state(checkpoint: Path) -> None:
    """Draws are functions of the root seed; a resume that lost it would draw anew."""
    run = RunFolder(checkpoint.parents[1])
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    run.update_record(config_sha256=config_hash(run_config(run)))


def _without_master_weights(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    rounded = {name: tensor.bfloat16().float() for name, tensor in load_file(path).items()}
    save_file(rounded, path, metadata={"format": "pt"})


def _change_state(checkpoint: Path, **changes: int) -> None:
    path = checkpoint / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("before", ["", "from burnish import loss\n\n@loss()\n"], ids=["plain", "decorated"])
def test_a_changed_loss_is_not_resumed(make_config, quiet, tmp_path, monkeypatch, before: str) -> None:
    own = tmp_path / "changing.py"
    monkeypatch.delitem(sys.modules, "changing", raising=False)
    own.write_text(f"{before}def mine(scored, batch):\n    return -scored.logprobs_S.sum()\n")
    run = interrupted(make_config("sft", loss__own="changing:mine"), quiet, monkeypatch, 3)
    own.write_text(f"{before}def mine(scored, batch):\n    return -2 * scored.logprobs_S.sum()\n")
    with pytest.raises(UserError, match=r"its loss \(changing:mine\) changed since it started"):
        resume(run, make_config("sft", loss__own="changing:mine"), quiet)


def test_a_curriculum_goes_on_where_it_was(make_config, quiet, monkeypatch) -> None:
    config = make_config(
        "grpo", rollout__curriculum="middle", rollout__max_refills=1, evaluation__right_at=0.8, rollout__num_prompts=2
    )
    run = interrupted(config, quiet, monkeypatch, 3)
    resume(run, config, quiet)
    unbroken = train(config, quiet)
    assert outcome(run) == outcome(unbroken)
    chosen = [each for each in unbroken.events() if each["event"] == "prompts_chosen"]
    assert {each["step"] for each in chosen} == set(range(1, 7))
    assert {choice["why"] for each in chosen for choice in each["choices"]} > {"new"}  # rates had a say


@pytest.mark.parametrize(
    ("damage", "must_differ"),
    [
        (_without_optimizer, "parameters"),
        (_without_position, "tokens"),
        (_without_random_state, "tokens"),
        (_without_master_weights, "parameters"),
    ],
)
def test_negative_controls(tiny_config, quiet, monkeypatch, damage, must_differ: str) -> None:
    """Losing any one part of the state is visible in what the tests above compare."""
    config = tiny_config()
    run = interrupted(config, quiet, monkeypatch, 3)
    checkpoint = run.checkpoints / "step-000003"
    damage(checkpoint)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["sha256"] = {name: sha256_of_file(checkpoint / name) for name in manifest["sha256"]}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    resume(run, run_config(run), quiet)
    unbroken = outcome(train(config, quiet))
    assert getattr(outcome(run), must_differ) != getattr(unbroken, must_differ)


def test_a_changed_file_is_refused(tiny_config, quiet, monkeypatch) -> None:
    config = tiny_config()
    run = interrupted(config, quiet, monkeypatch, 3)
    _change_state(run.checkpoints / "step-000003", data_position=0)
    with pytest.raises(BurnishError, match=r"state.json is missing or differs from its manifest"):
        resume(run, config, quiet)


def test_changed_inputs_are_refused(tiny_config, quiet, monkeypatch, tmp_path) -> None:
    config = tiny_config()
    run = interrupted(config, quiet, monkeypatch, 3)
    with (tmp_path / "_tasks.jsonl").open("a") as file:
        file.write('{"prompt": "one more", "answer": "1"}\n')
    with pytest.raises(UserError, match=r"cannot be resumed: its tasks \(train\) and prompts changed since"):
        resume(run, config, quiet)


def test_a_change_that_is_allowed_is_recorded(tiny_config, quiet, monkeypatch, tmp_path) -> None:
    config = tiny_config()
    run = interrupted(config, quiet, monkeypatch, 3)
    with (tmp_path / "_tasks.jsonl").open("a") as file:
        file.write('{"prompt": "one more", "answer": "1"}\n')
    resume(run, config, quiet, allow_changed=True, stop_after=4)
    assert "from here on another run: its tasks (train) and prompts changed" in quiet.file.getvalue()
    (event,) = [each for each in run.events() if each["event"] == "resumed_changed"]
    assert event["changed"] == ["tasks (train)", "prompts"]
    (change,) = run.record()["changes"]
    assert change["changed"] == ["tasks (train)", "prompts"]
    resume(run, config, quiet)  # what was allowed is what it reads now
    assert run.status() == "finished" and len(run.metrics()) == 6


def test_a_changed_chat_template_is_refused(tiny_config, quiet, monkeypatch, tmp_path, tiny_folder) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    config = tiny_config(model__path=str(folder))
    run = interrupted(config, quiet, monkeypatch, 3)
    (template,) = [path for path in folder.iterdir() if "<|im_start|>assistant" in path.read_text(errors="replace")]
    template.write_text(template.read_text().replace("<|im_start|>assistant", "<|im_start|>Assistant"))
    with pytest.raises(UserError, match=rf"its model \({template.name}\) and tokenizer \(chat_template\) and prompts"):
        resume(run, config, quiet)


@pytest.mark.parametrize("step", [3, 7])
def test_stop_after_needs_a_step_that_is_to_come(tiny_config, quiet, monkeypatch, step: int) -> None:
    run = interrupted(tiny_config(), quiet, monkeypatch, 3)
    with pytest.raises(UserError, match=f"--stop-after {step}: the run is at step 3 of 6"):
        resume(run, tiny_config(), quiet, stop_after=step)
    assert run.status() == "interrupted"


def test_a_changed_configuration_is_refused(tiny_config, quiet, monkeypatch) -> None:
    run = interrupted(tiny_config(), quiet, monkeypatch, 3)
    with pytest.raises(UserError, match="cannot be resumed: its config changed since it started"):
        resume(run, tiny_config(optimizer__betas=(0.9, 0.9)), quiet)


@pytest.mark.parametrize("kind", ["adamw_8bit", "adafactor", "muon"])
def test_every_kind_of_optimizer_resumes_bit_exactly(
    make_config, quiet, monkeypatch, tiny_teacher_folder, kind
) -> None:
    if kind == "adamw_8bit":
        pytest.importorskip("torchao", reason="torchao is in the extra `quantized`")
    config = make_config("sft", optimizer__kind=kind, model__path=str(tiny_teacher_folder))
    run = interrupted(config, quiet, monkeypatch, 3)
    resume(run, config, quiet)
    assert outcome(run) == outcome(train(config, quiet))
    has = {
        "adamw_8bit": "exp_avg_sq.codes.model.layers.0.mlp.up_proj.weight",
        "adafactor": "row_var.model.embed_tokens.weight",
        "muon": "momentum_buffer.model.layers.0.mlp.up_proj.weight",
    }
    (saved,) = run.checkpoints.glob("*/optimizer.safetensors")
    assert has[kind] in load_file(saved)


def test_steps_in_the_backward_pass_are_the_same_run(make_config, quiet, monkeypatch) -> None:
    """Also where it is resumed, and where several optimizer steps share a rollout."""
    changes = {"optimizer__max_grad_norm": None, "model__compute_dtype": "bfloat16"}
    sections = {"num_steps": 6, "minibatches_per_step": 2}
    config = make_config("ppo", **changes, train={**sections, "save_memory": ["step_in_backward"]})
    run = interrupted(config, quiet, monkeypatch, 3)
    resume(run, config, quiet)
    one, other = outcome(run), outcome(train(make_config("ppo", **changes, train=sections), quiet))
    assert (one.parameters, one.optimizer, one.tokens) == (other.parameters, other.optimizer, other.tokens)


def test_adapters_resume(tiny_config, quiet, monkeypatch) -> None:
    config = tiny_config(model__lora={"rank": 2}, optimizer__learning_rate=0.02, loss__kl_coefficient=0.05)
    run = interrupted(config, quiet, monkeypatch, 3)
    resume(run, config, quiet)
    resumed, unbroken = outcome(run), outcome(train(config, quiet))
    assert resumed == unbroken and len(resumed.parameters) == 64


def test_half_a_folder_is_no_checkpoint(tiny_config, quiet, monkeypatch) -> None:
    """What a kill in the middle of a removal could leave is replaced, not taken for the saved step."""
    config = tiny_config()
    run = interrupted(config, quiet, monkeypatch, 3)
    half = run.checkpoints / "step-000004"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    resume(run, config, quiet)
    assert outcome(run) == outcome(train(config, quiet))


def test_a_failed_run_says_why_and_can_be_resumed(tiny_config, quiet, tmp_path, monkeypatch) -> None:
    config = tiny_config()
    run = interrupted(config, quiet, monkeypatch, 3)
    with monkeypatch.context() as patch:
        patch.setattr("burnish.rollout.play.score_all", lambda *_, **__: [ScoreFailure("no judge")] * 12)
        with pytest.raises(DataError, match="failed for 12 of 12"):
            resume(run, config, quiet)
    assert run.status() == "failed" and "no judge" in run.record()["failure"]
    resume(run, config, quiet)
    assert outcome(run) == outcome(train(config, quiet))


def start_process(config_file: Path, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "burnish", *command],
        cwd=config_file.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen, status: int) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    return errors


def wait_for(condition, process: subprocess.Popen, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, f"the process ended before {what}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, f"no {what} within 60 s"
        time.sleep(0.002)


@pytest.mark.slow
def test_kill_9_at_random_moments(tiny_config, quiet, tmp_path) -> None:
    """A new process each time, killed anywhere, saving included: KILLS runs end in the bits of the unbroken one."""
    kills = int(os.environ.get("KILLS", "3"))
    config = tiny_config(train__num_steps=60, checkpoint__every_steps=1, evaluation__every_steps=10)
    config_file = tmp_path / "recipe.yaml"
    config_file.write_text(to_yaml(config))
    expected = outcome(train(config, quiet))
    chance = random.Random(int(os.environ.get("KILL_SEED", "0")))
    during_save = 0
    for kill in range(kills):
        runs = tmp_path / f"killed-{kill}"
        process = start_process(config_file, "train", str(config_file), "--runs_folder", str(runs))
        wait_for(lambda: list(runs.glob("*/run.json")), process, "run folder")  # noqa: B023  # used at once
        time.sleep(chance.uniform(0, 1.2))
        process.send_signal(signal.SIGKILL)
        wait(process, -signal.SIGKILL)
        (run,) = RunFolder.all(runs)
        during_save += bool(list(run.path.rglob(".*.tmp")))
        steps = len(read_jsonl(run.path / "metrics.jsonl"))
        wait(start_process(config_file, "resume", str(run.path)), 0)
        assert outcome(run) == expected, f"kill {kill} after step {steps}"
        print(f"kill {kill}: after step {steps}, parameters {outcome(run).parameters[:16]} as unbroken")  # noqa: T201
    print(f"{kills} of {kills} equal; {during_save} were killed in the middle of a write")  # noqa: T201


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_save(tiny_config, quiet, tmp_path) -> None:
    config = tiny_config(train__num_steps=8, checkpoint__every_steps=1)
    config_file = tmp_path / "recipe.yaml"
    config_file.write_text(to_yaml(config))
    expected = outcome(train(config, quiet))
    # Stop the process just before the new checkpoint would get its name: its files are complete, the old one is there.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, signal\n"
        "rename = pathlib.Path.rename\n"
        "def killed(self, target):\n"
        "    if target.name == 'step-000005':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rename(self, target)\n"
        "pathlib.Path.rename = killed\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "burnish", "train", str(config_file), "--runs_folder", str(tmp_path / "killed")]
    killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (run,) = RunFolder.all(tmp_path / "killed")
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-000004"]
    assert list(run.checkpoints.glob(".step-000005*"))
    wait(start_process(config_file, "resume", str(run.path)), 0)
    assert outcome(run) == expected
    assert not list(run.checkpoints.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(tiny_config, quiet, tmp_path, number: signal.Signals) -> None:
    config = tiny_config(train__num_steps=40, checkpoint__every_steps=40)
    config_file = tmp_path / "recipe.yaml"
    config_file.write_text(to_yaml(config))
    expected = outcome(train(config, quiet))
    runs = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "burnish", "train", str(config_file), "--runs_folder", str(runs)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: any(path.stat().st_size for path in runs.glob("*/metrics.jsonl")), process, "step")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    (run,) = RunFolder.all(runs)
    assert f"go on with: burnish resume {run.path}" in output
    assert "Traceback" not in output
    wait(start_process(config_file, "resume", run.path.name, "--runs_folder", str(runs)), 0)
    assert outcome(run) == expected


def test_processes_elsewhere_must_see_the_folder_of_the_run(make_config, quiet, monkeypatch) -> None:
    """A relative runs_folder is another one where a run is resumed by its path from elsewhere."""
    run = interrupted(make_config("sft"), quiet, monkeypatch, 3)
    seen: list[Path] = []

    def ray_roles(config, needs, folder: Path) -> None:
        seen.append(folder)
        raise MachineError("enough")

    monkeypatch.setattr("burnish.distributed.ray_roles.ray_roles", ray_roles)
    config = make_config("sft", cluster={"kind": "ray"})
    for go in (lambda: resume(run, config, quiet), lambda: train(config, quiet)):
        with pytest.raises(MachineError, match="enough"):
            go()
    assert seen == [run.path, config.runs_folder]
