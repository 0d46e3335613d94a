"""The command as a user meets it: what it prints, where, and with which status."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from burnish.cli.app import run
from burnish.config.schema import ClusterConfig, RunConfig

DEMO = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import reasoning_gym"], capture_output=True, timeout=60).returncode != 0,
    reason="reasoning-gym is in the extra `demo`",
)


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"question {i}", "answer": str(i)} for i in range(10)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "algorithm": "grpo",
        "model": {"path": str(tiny_folder), "compute_dtype": "float32"},
        "task": {"source": "tasks.jsonl", "num_held_out": 4},
        "rollout": {"num_prompts": 2, "group_size": 2, "max_tokens": 4},
        "train": {"num_steps": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def fails(capsys, status: int, *arguments: str) -> str:
    """The one line on standard error of a command that must fail with this status."""
    assert run(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("burnish: ") and captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_misspelt_setting_of_the_quickstart(capsys) -> None:
    error = fails(capsys, 2, "train", "quickstart", "--train.num_stepz", "5")
    assert "'train.num_stepz'" in error and "did you mean 'train.num_steps'?" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "quickstart"], "trian"),
        (["train"], "train: RECIPE is missing"),
        (["show", "nothing"], "no run begins with 'nothing'"),
        (["resume", "nothing"], "no run begins with 'nothing'"),
        (["model", "get", "gpt-5"], "no model 'gpt-5': known are smollm2-135m"),
        (["train", "quikstart"], "did you mean 'quickstart'?"),
    ],
)
def test_mistakes_on_the_command_line(capsys, tmp_path, monkeypatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, 2, *arguments)


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _only_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _corrupt(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _missing_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _recurrent_layer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    changes = {"layer_types": ["full_attention", "linear_attention"]}
    (folder / "config.json").write_text(json.dumps(config | changes))


def _no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_weights, "has no weights (*.safetensors)"),
        (_only_pickled_weights, "pytorch_model.bin is not read: only safetensors are"),
        (_truncated, "model.safetensors is damaged"),
        (_corrupt, "model.safetensors is damaged"),
        (_no_config, "has no config.json"),
        (_broken_config, "cannot load"),
        (_missing_tensor, "model.layers.1.mlp.up_proj.weight"),
        (_recurrent_layer, "is not supported: it has layers of type linear_attention"),
        (_no_tokenizer, "cannot load"),
        (shutil.rmtree, "no folder"),
    ],
)
def test_unusable_models(capsys, recipe: Path, tiny_folder: Path, tmp_path: Path, damage, message: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    damage(folder)
    assert message in fails(capsys, 2, "train", str(recipe), "--model.path", str(folder))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "a", "ans', "line 11: not valid JSON"),
        ('{"prompt": "", "answer": "1"}', "line 11: the prompt is empty"),
        ('{"prompt": "a"}', "line 11: field 'answer'"),
        (json.dumps({"prompt": "long " * 200, "answer": "1"}), "exceed the model's context of 512"),
    ],
)
def test_unusable_data(capsys, recipe: Path, tmp_path: Path, row: str, message: str) -> None:
    with (tmp_path / "tasks.jsonl").open("a") as file:
        file.write(row + "\n")
    assert message in fails(capsys, 2, "train", str(recipe))
    assert not (tmp_path / "runs").exists()


def test_dry_run_loads_no_weights_and_writes_nothing(capsys, recipe: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("burnish.distributed.local.load_policy", None)
    before = sorted(os.listdir(tmp_path))
    for arguments in (["train", str(recipe), "--dry-run"], ["config", "check", str(recipe)]):
        assert run(arguments) == 0
        assert "ok: 6 questions to train on, 4 held out" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == before


def test_a_reader_that_has_enough_is_no_fault() -> None:
    command = [sys.executable, "-m", "burnish", "monitor", "metrics"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 128 + signal.SIGPIPE


def test_train_runs_show(capsys, recipe: Path, tmp_path: Path) -> None:
    assert run(["train", str(recipe), "--name", "first", "--seed", "4"]) == 0
    out = capsys.readouterr().out
    assert "step 1/2" in out and "exact McNemar p" in out.splitlines()[-1]

    assert run(["runs"]) == 0
    assert "first-" in (out := capsys.readouterr().out) and "finished" in out

    assert run(["show", "last", "--groups", "1", "--step", "1"]) == 0
    out = capsys.readouterr().out
    assert "reward_mean" in out and "step 1, group 0: question" in out
    assert out.count("advantage") == 2

    assert run(["show", "last", "--step", "9"]) == 2
    assert "--step 9: no rollouts are stored for it; stored are 1 to 2" in capsys.readouterr().err

    name = os.listdir(tmp_path / "runs")[0]
    assert run(["config", "diff", str(recipe), "first"]) == 0
    out = capsys.readouterr().out
    assert "seed" in out and "name" in out and "num_steps" not in out

    assert run(["config", "show", "first"]) == 0
    assert f"recipe runs/{name}/config.yaml" in capsys.readouterr().out
    error = fails(capsys, 2, "config", "show", "second")
    assert "no recipe 'second' (" in error and "and no run begins with 'second'" in error

    (tmp_path / "runs" / name / "run.json").chmod(0o444)
    assert run(["runs"]) == 0
    capsys.readouterr()
    assert "is finished" in fails(capsys, 2, "resume", "last")


def test_config_show_names_origins(capsys, recipe: Path, monkeypatch) -> None:
    monkeypatch.setenv("BURNISH_SEED", "5")
    assert run(["config", "show", str(recipe), "--train.num_steps", "3"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["seed"] == ["5", "environment"]
    assert lines["train.num_steps"] == ["3", "flag"]
    assert lines["rollout.group_size"][:2] == ["2", "recipe"]
    assert lines["rollout.temperature"] == ["1.0", "default"]
    assert len(lines["sha256"][0]) == 64


def test_config_show_prints_values_as_they_are(capsys, recipe: Path) -> None:
    prompt = "use [b]bold[/b], and [/INST] " + "long " * 60
    assert run(["config", "show", str(recipe), "--rollout.stop", '["[/INST]"]', "--task.system_prompt", prompt]) == 0
    out = capsys.readouterr().out
    assert '["[/INST]"]' in out and json.dumps(prompt) in out


def test_config_diff_of_recipes(capsys) -> None:
    assert run(["config", "diff", "quickstart", "grpo"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["train.num_steps"] == ["20", "100"]
    assert "model.path" not in lines


def test_places_that_cannot_be_written_or_read(capsys, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in fails(capsys, 2, "train", str(recipe), "--runs_folder", str(tmp_path / "file"))
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    assert "it is not UTF-8" in fails(capsys, 2, "train", str(tmp_path / "latin.yaml"))


def test_config_schema(capsys) -> None:
    assert run(["config", "schema", "grpo"]) == 0
    out = capsys.readouterr().out
    assert "train.num_steps  (integer, default 100)\n    Steps: each takes one batch" in out
    assert "model.path  (text, required)" in out
    assert "rollout.stop  (list of text, default [])" in out
    assert run(["config", "schema", "grpo", "--json"]) == 0
    assert "train" in json.loads(capsys.readouterr().out)["properties"]


def test_a_full_disk_is_status_3_and_keeps_what_was_saved(capsys, recipe: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, timeout=30).returncode != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    try:
        assert run(["train", str(recipe), "--runs_folder", str(small)]) == 3
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "a checkpoint needs" in error and "MB are free" in error
        (folder,) = small.iterdir()
        assert list((folder / "checkpoints").iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True, timeout=30)


@DEMO
def test_the_quickstart_is_valid(capsys, tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "quickstart", "--model.path", str(tiny_folder), "--dry-run"]) == 0
    assert "100 questions to train on, 100 held out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--cluster.learners", "4"], {"kind": "ray", "learners": 4, "timeout_seconds": 99.0}),
        (["--cluster.kind=ray", "--cluster.generators=3"], {"kind": "ray", "generators": 3, "learners": 2}),
        (["--cluster.kind", "local"], {"kind": "local", "learners": 1, "timeout_seconds": None}),
    ],
)
def test_a_resumed_run_stays_where_it_was_but_for_what_is_named(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], expected: dict[str, object]
) -> None:
    run_folder = tmp_path / "runs" / "moved-abc123"
    run_folder.mkdir(parents=True)
    (run_folder / "run.json").write_text(json.dumps({"status": "finished", "created": "2026-01-01T00:00:00Z"}))
    where = {"kind": "ray", "learners": 2, "timeout_seconds": 99.0}
    (run_folder / "config.yaml").write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "cluster": where}))
    resumed: list[RunConfig] = []
    monkeypatch.setattr("burnish.cli.train.resume", lambda run, config, *_, **__: resumed.append(config) or run)
    assert run(["resume", "moved-abc123", *flags]) == 0
    default = ClusterConfig.model_fields["timeout_seconds"].default
    wanted = {key: default if value is None else value for key, value in expected.items()}
    assert {key: getattr(resumed[0].cluster, key) for key in wanted} == wanted
