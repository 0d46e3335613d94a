"""`burnish render`."""

import hashlib
import json
import os
from collections.abc import Sequence

from burnish.algorithms.session import algorithm_of, schema_for
from burnish.cli.models import environment_for, whole
from burnish.config.loading import resolve, resolve_layers
from burnish.config.schema import RunConfig
from burnish.config.serving import ServeConfig
from burnish.distributed.render import Job, ray_job, slurm_script
from burnish.errors import ConfigError
from burnish.reproducibility.environment import versions
from burnish.serving.render import serving_manifest


def print_slurm(
    recipe: str, settings: Sequence[str], job: dict[str, int], *, time: str, setup: str, sbatch: str
) -> int:
    """Print a script for sbatch."""
    options = tuple(sbatch.split()) if sbatch else ()
    print(slurm_script(_job(recipe, settings, job), time=time, setup=setup, options=options), end="")
    return 0


def print_kubernetes(recipe: str, settings: Sequence[str], job: dict[str, int], *, image: str, claim: str) -> int:
    """Print a RayJob, for the version of Ray that is installed here."""
    ray = versions(["ray"])["ray"]
    if ray is None:
        raise ConfigError(
            "burnish render kubernetes needs Ray, whose version the cluster must have: pip install 'burnish[ray]'"
        )
    print(ray_job(_job(recipe, settings, job), image=image, claim=claim, ray_version=ray), end="")
    return 0


def print_serving(model: str, settings: Sequence[str], where: dict[str, str]) -> int:
    """Print what Kubernetes needs to serve a model. The settings are read as they will be there, but for the file of
    keys, which is there alone.
    """
    flags = [f"--model.path={model}", *map(whole, settings)]
    config = resolve_layers(ServeConfig, [], flags=flags, environment=environment_for(ServeConfig)).config
    print(serving_manifest(config, model, settings, **where), end="")
    return 0


def _job(recipe: str, settings: Sequence[str], job: dict[str, int]) -> Job:
    """The recipe is read as it will be: what is wrong with it is said before the job waits in a queue."""
    config: RunConfig = resolve(
        schema_for(recipe, settings), recipe, flags=[*settings, "--cluster.kind=ray"], environment=os.environ
    ).config
    generators = config.cluster.generators if algorithm_of(config).needs(config).max_rows else 0
    wanted, places = config.cluster.learners + generators, job["nodes"] * (job["gpus"] or job["cpus"])
    if wanted > places:
        raise ConfigError(
            f"cluster: learners and generators need {wanted} places, and {job['nodes']} nodes have {places}: give more "
            "nodes or --cpus, or lower cluster.learners or cluster.generators"
        )
    cluster = config.cluster.model_dump(mode="json", exclude={"kind", "address"})
    typed = {key: each if isinstance(each, str) else json.dumps(each) for key, each in cluster.items()}
    rest = config.model_dump_json(exclude={"cluster", "runs_folder"})
    return Job(
        recipe=recipe,
        settings=tuple(settings),
        cluster=tuple(word for key, value in typed.items() for word in (f"--cluster.{key}", value)),
        name=config.name,
        digest=hashlib.sha256(rest.encode()).hexdigest()[:8],
        runs_folder=str(config.runs_folder),
        **job,
    )
