"""Files that start a run on a cluster of others: a Slurm job, and a RayJob of Kubernetes."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from burnish.errors import ConfigError

_PORT = 6379
_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")  # 47 as KubeRay appends to it
_SAVE_SECONDS = 300  # between the signal that the time is up and its end

# An image need not have pgrep.
_HAS_RAYLET = 'for each in /proc/[0-9]*/comm; do read -r name < "$each" && [ "$name" = raylet ] && exit 0; done; exit 1'

_SLURM = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --output=%x-%j.out
#SBATCH --signal=B:TERM@{save_seconds}
#SBATCH --requeue
{extra}
# One Ray node on each machine of the job, then the run on the first. The signal that Slurm sends before the time is up
# lets the run save. A job that is queued again goes on; so does a new one with BURNISH_RUNS set to its runs folder.
set -euo pipefail
{setup}
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')
export RAY_AUTH_TOKEN

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address_of() {{ srun --nodes=1 --ntasks=1 --nodelist="$1" --overlap bash -c "hostname -I | cut -d' ' -f1"; }}
head_ip=$(address_of "${{hosts[0]}}")
port=$(({port} + SLURM_JOB_ID % 1000))

node() {{
    srun --nodes=1 --ntasks=1 --nodelist="$1" --overlap --exact --cpus-per-task={cpus} \\
        ray start "${{@:2}}" --num-cpus={cpus} --num-gpus={gpus} --disable-usage-stats --block &
}}
node "${{hosts[0]}}" --head --node-ip-address="$head_ip" --port="$port" --include-dashboard=false
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
for host in "${{hosts[@]:1}}"; do
    node "$host" --node-ip-address="$(address_of "$host")" --address="$head_ip:$port"
done

deadline=$((SECONDS + 120))
until ray health-check --address "$head_ip:$port" > /dev/null 2>&1; do
    if ((SECONDS > deadline)); then
        echo "burnish: Ray did not start on ${{hosts[0]}} within 120 s" >&2
        exit 1
    fi
    sleep 2
done

runs=${{BURNISH_RUNS:-{runs_folder}/slurm-$SLURM_JOB_ID}}
where=(--cluster.kind ray --cluster.address "$head_ip:$port" {cluster})
if compgen -G "$runs/*/run.json" > /dev/null; then
    burnish resume last --runs-folder "$runs" "${{where[@]}}" &
else
    burnish train {recipe} --runs_folder "$runs" {settings} "${{where[@]}}" &
fi
run=$!
trap 'kill -TERM $run' TERM
status=0
wait $run || status=$?
while kill -0 $run 2> /dev/null; do  # the signal ended the first wait
    status=0
    wait $run || status=$?
done
exit $status
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What both kinds of file need. `settings` are flags of `burnish train`; those of cluster.* are dropped, for
    `cluster` are all of them, the recipe's own too: a resumed run keeps what is not named. `digest` tells
    this configuration from others of the same name.
    """

    recipe: str
    settings: tuple[str, ...]
    cluster: tuple[str, ...]
    name: str
    digest: str
    runs_folder: str
    nodes: int
    cpus: int
    gpus: int

    def __post_init__(self) -> None:
        """Refuse what could not run.

        Raises:
            ConfigError: a number is not positive.
        """
        for key in ("nodes", "cpus"):
            if getattr(self, key) < 1:
                raise ConfigError(f"--{key}={getattr(self, key)}: give at least 1")
        if self.gpus < 0:
            raise ConfigError(f"--gpus={self.gpus}: give 0 or more")


def slurm_script(job: Job, *, time: str, setup: str, options: tuple[str, ...]) -> str:
    """A script for `sbatch`. `setup` are shell lines that make burnish and ray findable; `options` more of sbatch's."""
    settings = _without_place(job.settings)
    gpus = (f"--gpus-per-node={job.gpus}",) if job.gpus else ()
    return _SLURM.format(
        name=job.name,
        nodes=job.nodes,
        cpus=job.cpus,
        gpus=job.gpus,
        time=time,
        save_seconds=_SAVE_SECONDS,
        extra="\n".join(f"#SBATCH {option}" for option in (*gpus, *options)),
        setup=setup,
        port=_PORT,
        runs_folder=shlex.quote(job.runs_folder),
        recipe=shlex.quote(job.recipe),
        settings=shlex.join(settings),
        cluster=shlex.join(job.cluster),
    )


def ray_job(job: Job, *, image: str, claim: str, ray_version: str) -> str:
    """A RayJob for KubeRay 1.5.1 or newer, which makes the cluster's token. Every node shares the volume of `claim`."""
    if not job.runs_folder.startswith("/"):
        raise ConfigError(f"runs_folder={job.runs_folder}: give the full path at which the claim is to be mounted")
    if not _DNS_LABEL.fullmatch(job.name):
        raise ConfigError(f"name={job.name}: Kubernetes wants a letter, then at most 46 small letters, digits and '-'")
    settings = _without_place(job.settings)
    runs = f"{job.runs_folder}/{job.name}-{job.digest}"  # so that another configuration does not go on with this one
    where = ["--cluster.kind", "ray", "--cluster.address", "auto", *job.cluster]
    train = shlex.join(["burnish", "train", job.recipe, "--runs_folder", runs, *settings, *where])
    resume = shlex.join(["burnish", "resume", "last", "--runs-folder", runs, *where])
    begun = f"ls {shlex.quote(runs)}/*/run.json > /dev/null 2>&1"
    spec: dict[str, Any] = {
        "entrypoint": shlex.join(["sh", "-c", f"if {begun}; then {resume}; else {train}; fi"]),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": 3,  # each with a new cluster, in which the run goes on
        "rayClusterSpec": {
            "rayVersion": ray_version,
            "authOptions": {"mode": "token"},
            "headGroupSpec": {
                "rayStartParams": {"dashboard-host": "0.0.0.0"},
                "template": _pod(job, "head", image, claim),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": job.nodes - 1,
                    "minReplicas": job.nodes - 1,
                    "maxReplicas": job.nodes - 1,
                    "rayStartParams": {},
                    "template": _pod(job, "worker", image, claim),
                }
            ]
            if job.nodes > 1
            else [],
        },
    }
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": job.name}, "spec": spec}
    return yaml.safe_dump(manifest, sort_keys=False)


def _pod(job: Job, role: str, image: str, claim: str) -> dict[str, Any]:
    resources: dict[str, Any] = {"cpu": job.cpus, "memory": f"{4 * job.cpus}Gi"}
    if job.gpus:
        resources["nvidia.com/gpu"] = job.gpus
    container = {
        "name": f"ray-{role}",
        "image": image,
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": [
            {"name": "runs", "mountPath": job.runs_folder},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
        "livenessProbe": {
            "exec": {"command": ["ray", "health-check"] if role == "head" else ["sh", "-c", _HAS_RAYLET]},
            "initialDelaySeconds": 60,
            "periodSeconds": 30,
            "timeoutSeconds": 20,  # the first command starts Python and Ray
            "failureThreshold": 4,
        },
    }
    volumes = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{2 * job.cpus}Gi"}},
    ]
    return {"spec": {"containers": [container], "volumes": volumes}}


def _without_place(settings: tuple[str, ...]) -> list[str]:
    """The flags but for cluster.* and the runs folder; a flag may have its value in the next word."""
    kept: list[str] = []
    is_kept = True
    for word in settings:
        if word.startswith("--"):
            key = word.partition("=")[0]
            if key in ("--cluster.kind", "--cluster.address"):
                raise ConfigError(f"{key}: the file that starts the cluster sets it; leave it out")
            is_kept = not key.startswith("--cluster.") and key not in ("--runs_folder", "--runs-folder")
        if is_kept:
            kept.append(word)
    return kept
