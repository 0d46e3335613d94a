"""The files for Slurm and Kubernetes: what they start, and what is refused while there is time."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from burnish.algorithms.session import schema_for
from burnish.cli.app import run
from burnish.config.loading import resolve
from burnish.distributed.render import Job, ray_job, slurm_script
from burnish.errors import ConfigError


def job(**changes: Any) -> Job:
    settings = (
        "--train.num_steps",
        "3",
        "--cluster.learners=2",
        "--task.options",
        '{"size": 60}',
        "--cluster.generators",
        "2",
    )
    given = {"recipe": "my recipe.yaml", "settings": settings, "name": "adder", "runs_folder": "/shared/runs"}
    given |= {"cluster": ("--cluster.learners", "2", "--cluster.generators", "2"), "digest": "0123abcd"}
    return Job(**{**given, "nodes": 2, "cpus": 4, "gpus": 0, **changes})


def slurm(**changes: Any) -> str:
    return slurm_script(
        job(**changes), time="01:00:00", setup="source .venv/bin/activate", options=("--partition=long",)
    )


def test_a_script_is_whole_and_quoted(tmp_path: Path) -> None:
    script = slurm()
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True, timeout=10)
    told = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--cpus-per-task=4", "--time=01:00:00", "--partition=long", "--signal=B:TERM@300"} <= set(told)
    assert not any("gpus" in each for each in told)
    (train,) = [line.strip() for line in script.splitlines() if "burnish train" in line]
    words = shlex.split(train.removesuffix(" &"))
    assert words[:3] == ["burnish", "train", "my recipe.yaml"]
    assert json.loads(words[words.index("--task.options") + 1]) == {"size": 60}
    assert not any(word.startswith("--cluster") for word in words)
    (where,) = [line for line in script.splitlines() if line.startswith("where=")]
    assert "--cluster.learners 2 --cluster.generators 2)" in where


def test_gpus_are_asked_for_and_given_to_ray() -> None:
    script = slurm(gpus=8)
    assert "#SBATCH --gpus-per-node=8" in script
    assert "--num-gpus=8" in script


def test_a_ray_job_is_what_kuberay_takes() -> None:
    manifest = yaml.safe_load(ray_job(job(gpus=1), image="registry/burnish:1", claim="runs", ray_version="2.60.0"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    shell, option, script = shlex.split(spec["entrypoint"])
    assert (shell, option) == ("sh", "-c")
    begun, resumed, trained = re.fullmatch(r"if (.*); then (.*); else (.*); fi", script).groups()
    assert "/shared/runs/adder-0123abcd/*/run.json" in begun
    assert shlex.split(resumed)[:5] == ["burnish", "resume", "last", "--runs-folder", "/shared/runs/adder-0123abcd"]
    words = shlex.split(trained)
    assert words[:5] == ["burnish", "train", "my recipe.yaml", "--runs_folder", "/shared/runs/adder-0123abcd"]
    assert words[words.index("--cluster.address") + 1] == "auto"
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 1
    for group in (cluster["headGroupSpec"], workers):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.37", strict=True)
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_runs_are_where_the_file_says(tmp_path: Path) -> None:
    settings = ("--runs_folder", "elsewhere", "--train.num_steps", "3")
    assert "elsewhere" not in slurm(settings=settings, runs_folder="/shared/runs")
    with pytest.raises(ConfigError, match=r"^runs_folder=runs: give the full path at which the claim is to be mounted"):
        ray_job(job(runs_folder="runs"), image="i", claim="c", ray_version="2.60.0")


def test_one_node_is_a_head_alone() -> None:
    manifest = yaml.safe_load(ray_job(job(nodes=1), image="i", claim="c", ray_version="2.60.0"))
    assert manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"] == []


@pytest.mark.parametrize("name", ["My_run.v2", "a" * 48, "1st", "ends-"])
def test_a_name_that_kubernetes_does_not_take(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^name={name}: Kubernetes wants"):
        ray_job(job(name=name), image="i", claim="c", ray_version="2.60.0")


def test_more_processes_than_places_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.source", "rows.jsonl", "--cluster.learners", "9", "--data.batch_size", "9"]
    for sizes, status in ((["--nodes", "2", "--cpus", "4"], 2), (["--nodes", "3", "--cpus", "4"], 0)):
        assert run(["render", "slurm", "sft", *flags, *sizes]) == status
    assert "learners and generators need 9 places, and 2 nodes have 8" in capsys.readouterr().err


def test_a_resumed_job_runs_where_the_recipe_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    cluster = {"kind": "ray", "learners": 8, "tensor_parallel": 2, "timeout_seconds": 99.0}
    recipe.write_text(
        yaml.safe_dump(
            {"algorithm": "sft", "model": {"path": "m"}, "data": {"source": "rows.jsonl"}, "cluster": cluster}
        )
    )
    assert run(["render", "slurm", str(recipe), "--nodes", "2"]) == 0
    (where,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("where=")]
    flags = shlex.split(where.removeprefix("where=(").removesuffix(")").replace("$head_ip:$port", "10.0.0.1:6379"))
    config = resolve(
        schema_for("sft"), "sft", flags=["--model.path=m", "--data.source=rows.jsonl", *flags], environment={}
    ).config
    assert config.cluster.model_dump() == {**config.cluster.model_dump(), **cluster, "address": "10.0.0.1:6379"}


@pytest.mark.parametrize("changes", [{"nodes": 0}, {"cpus": 0}, {"gpus": -1}])
def test_numbers_that_cannot_be(changes: dict[str, int]) -> None:
    (key,) = changes
    with pytest.raises(ConfigError, match=rf"^--{key}={changes[key]}: give"):
        job(**changes)


@pytest.mark.parametrize("flag", ["--cluster.kind=ray", "--cluster.address"])
def test_what_the_file_sets_is_not_set_twice(flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{flag.partition('=')[0]}: the file that starts the cluster sets it"):
        slurm(settings=(flag, "auto"))


def test_a_recipe_that_is_wrong_is_refused_before_it_waits_in_a_queue(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["render", "slurm", "quickstart", "--nodes", "2", "--cluster.learner", "2"]) == 2
    assert "did you mean 'cluster.learners'" in capsys.readouterr().err
    assert run(["render", "slurm", "quickstart", "--nodes", "2", "--cluster.learners", "2"]) == 0
    assert "burnish train quickstart" in capsys.readouterr().out
