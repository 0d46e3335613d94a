"""`burnish config` and its arguments; what it does is imported when it is called."""

from pathlib import Path

from cyclopts import App

from burnish.cli.arguments import AsJson, Recipe, RecipeOrRun, RunsFolder, Settings, SettingsFile
from burnish.monitoring.console import Waiting

config_app = App(
    name="config",
    help="""Look at a configuration without running it.

    Example: burnish config show quickstart
    """,
)


@config_app.command(name="show")
def config_show(
    recipe: RecipeOrRun,
    *settings: Settings,
    file: SettingsFile = None,
    runs_folder: RunsFolder = Path("runs"),
    as_json: AsJson = False,
) -> int:
    """Print every setting, its value, and where it came from.

    Example: burnish config show grpo --task.source questions.jsonl
    """
    with Waiting("starting"):
        from burnish.cli.config import show_config

    return show_config(recipe, settings, file, runs_folder, as_json=as_json)


@config_app.command
def check(recipe: Recipe, *settings: Settings, file: SettingsFile = None, as_json: AsJson = False) -> int:
    """Check a configuration and what it reads: model, tasks, reward, prompts.

    Example: burnish config check quickstart
    """
    with Waiting("starting"):
        from burnish.cli.train import train_recipe

    return train_recipe(recipe, settings, file=file, is_dry_run=True, as_json=as_json)


@config_app.command
def diff(
    recipe: RecipeOrRun, other: RecipeOrRun, *, runs_folder: RunsFolder = Path("runs"), as_json: AsJson = False
) -> int:
    """Print the settings in which two recipes, or two runs, differ.

    Example: burnish config diff grpo dapo
    """
    with Waiting("starting"):
        from burnish.cli.config import diff_configs

    return diff_configs(recipe, other, runs_folder, as_json=as_json)


@config_app.command
def schema(algorithm: str, *, as_json: AsJson = False) -> int:
    """Print every setting of an algorithm with type, default and meaning; with --json as a JSON schema.

    Example: burnish config schema grpo

    Parameters
    ----------
    algorithm
        grpo, sft, dpo, kto, reward_model, online_dpo, rejection_sampling, distillation or off_policy_distillation, ppo;
        or eval, receivers or serve.
    """
    with Waiting("starting"):
        from burnish.cli.config import print_schema

    return print_schema(algorithm, as_json)
