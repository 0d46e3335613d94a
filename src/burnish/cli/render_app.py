"""`burnish render` and its arguments; what it does is imported when it is called."""

from typing import Annotated

from cyclopts import App, Parameter

from burnish.cli.arguments import Recipe, Settings

render_app = App(
    name="render",
    help="""Print files that start a run on a cluster, or a server.

    Example: burnish render slurm quickstart --nodes 2 > train.sh
    """,
)

Nodes = Annotated[int, Parameter(help="Machines.")]
Cpus = Annotated[int, Parameter(help="Processors of each, for Ray to give to learners and generators.")]
Gpus = Annotated[int, Parameter(help="GPUs of each.")]


@render_app.command
def slurm(
    recipe: Recipe,
    *settings: Settings,
    nodes: Nodes = 1,
    cpus: Cpus = 4,
    gpus: Gpus = 0,
    time: Annotated[str, Parameter(help="As sbatch's --time.")] = "04:00:00",
    setup: Annotated[str, Parameter(help="A shell line that makes burnish and ray findable.")] = "",
    sbatch: Annotated[str, Parameter(help="More options of sbatch, such as '--partition=long'.")] = "",
) -> int:
    """Print a script for sbatch that starts Ray on the job's machines and trains a recipe there.

    Example: burnish render slurm quickstart --nodes 2 --cluster.learners 2 > train.sh
    """
    from burnish.cli.render import print_slurm

    job = {"nodes": nodes, "cpus": cpus, "gpus": gpus}
    return print_slurm(recipe, settings, job, time=time, setup=setup, sbatch=sbatch)


@render_app.command
def kubernetes(
    recipe: str,
    *settings: Settings,
    nodes: Nodes = 1,
    cpus: Cpus = 4,
    gpus: Gpus = 0,
    image: Annotated[str, Parameter(help="An image with burnish[ray].")],
    claim: Annotated[str, Parameter(help="A PersistentVolumeClaim that every node shares, for the runs.")],
) -> int:
    """Print a RayJob for KubeRay that trains a recipe.

    Example: burnish render kubernetes grpo.yaml --image registry/burnish --claim runs

    Parameters
    ----------
    recipe
        Name of a recipe that ships with burnish, or path of a YAML file in the image.
    """
    from burnish.cli.render import print_kubernetes

    job = {"nodes": nodes, "cpus": cpus, "gpus": gpus}
    return print_kubernetes(recipe, settings, job, image=image, claim=claim)


@render_app.command(name="serve")
def render_serve(
    model: str,
    *settings: Settings,
    name: Annotated[str, Parameter(help="Of the Deployment and the Service.")] = "burnish",
    image: Annotated[str, Parameter(help="An image that `burnish render containerfile` describes.")],
    claim: Annotated[str, Parameter(help="A PersistentVolumeClaim with the models, mounted at /models.")],
    secret: Annotated[str, Parameter(help="A Secret whose entry `keys` is the file of keys.")],
) -> int:
    """Print a Deployment and a Service of Kubernetes that serve a model.

    Example: burnish render serve /models/sums --image registry/burnish --claim models --secret burnish-keys

    Parameters
    ----------
    model
        Path of the model in the container, below /models.
    """
    from burnish.cli.render import print_serving

    return print_serving(model, settings, {"name": name, "image": image, "claim": claim, "secret": secret})


@render_app.command
def containerfile() -> int:
    """Print a Containerfile whose image serves models.

    Example: burnish render containerfile > Containerfile
    """
    from burnish.serving.render import containerfile as text

    print(text(), end="")
    return 0
