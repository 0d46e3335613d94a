"""The file of an experiment. Each field's description is its only documentation."""

import difflib
import json
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from burnish.config.loading import read_recipe
from burnish.config.schema import NAME_PATTERN, Section
from burnish.errors import ConfigError

MAX_NAME = 48  # a run's name also tells its seed, and has room for 64

Name = Annotated[str, Field(max_length=MAX_NAME, pattern=NAME_PATTERN)]
Seed = Annotated[int, Field(ge=0, strict=True)]
Text = Annotated[str, Field(min_length=1)]


class Metric(Section):
    """A number of a finished run."""

    name: Text
    """held_out: the mean over the held-out items after training; or a key of metrics.jsonl, its value at the end."""
    better: Literal["higher", "lower"] = "higher"
    """Which direction is better."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Factor(Section):
    """What is varied, and how. The first level is what the others are compared with; in an ablation it is `off`."""

    key: Text | None = None
    """The setting that takes the levels as values; `recipe` varies the recipe. Null: each level has its settings."""
    levels: tuple[Any, ...] | dict[str, dict[str, Any]]
    """A list of values of `key`; or, without `key`, named levels with the settings of each."""
    within: dict[str, Any] = Field({})
    """Other factors, listed earlier, and the level of each without which this one has no meaning."""

    @model_validator(mode="after")
    def _levels_fit(self) -> "Factor":
        if (self.key is None) != isinstance(self.levels, dict):
            raise ConfigError("give `key` and a list of levels, or no key and named levels with settings")
        if len(set(self.names)) < 2 or len(set(self.names)) < len(self.names):
            raise ConfigError(f"needs two or more different levels, got {', '.join(self.names) or 'none'}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The levels as text."""
        return tuple(map(level_name, self.levels))

    def settings(self, name: str) -> dict[str, Any]:
        """What a level sets."""
        if self.key is None:
            return dict(self.levels[name])  # type: ignore[call-overload]
        return {self.key: next(value for value in self.levels if level_name(value) == name)}


def level_name(value: Any) -> str:
    """A level as it stands in tables."""
    return value if isinstance(value, str) else json.dumps(value)


class Budget(Section):
    """What the experiment may take."""

    runs: int | None = Field(None, ge=1)
    """A plan of more runs is refused."""
    hours: float | None = Field(None, gt=0)
    """Time of all runs together, by the clock. Then what runs is saved and stopped, and nothing more is started."""
    hours_per_run: float | None = Field(None, gt=0)
    """A run that takes longer is saved and stopped, and counts as lost."""


class Searched(Section):
    """What a setting may be: a range, whole numbers if its ends are, or a list of choices."""

    low: int | float | None = None
    """Lowest value."""
    high: int | float | None = None
    """Highest value."""
    log: bool = False
    """Search the logarithm: for what varies by factors, such as a learning rate."""
    choices: tuple[str | int | float | bool | None, ...] = ()
    """The values, instead of a range."""

    @model_validator(mode="after")
    def _one_kind_of_values(self) -> "Searched":
        ends = [end for end in (self.low, self.high) if end is not None]
        if self.choices and (ends or self.log):
            raise ConfigError("low, high and log would be ignored beside choices: give one or the other")
        if not self.choices and len(ends) < 2:
            raise ConfigError("needs low and high, or choices")
        if ends and not ends[0] < ends[1]:
            raise ConfigError(f"low={ends[0]:g} must be less than high={ends[1]:g}")
        if self.log and not ends[0] > 0:
            raise ConfigError(f"log=true needs a low above 0, not {ends[0]:g}")
        names = list(map(level_name, self.choices))
        if names and len(set(names)) < max(2, len(names)):
            raise ConfigError(f"choices: needs two or more different ones, got {', '.join(names)}")
        return self

    @property
    def text(self) -> str:
        """In words."""
        if self.choices:
            return "{" + ", ".join(map(level_name, self.choices)) + "}"
        return f"[{self.low:g}, {self.high:g}]{' by factors' if self.log else ''}"

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values to check before the first run: the ends of a range, or every choice."""
        return self.choices or (self.low, self.high)


class Sweep(Section):
    """A search over settings, on one half of the held-out items. The best is trained again with `seeds`, beside the
    recipe as it is, and judged on the other half.
    """

    space: dict[Text, Searched] = Field(min_length=1)
    """What is searched: a setting by its dotted key, and what it may be."""
    trials: int = Field(ge=2)
    """How many settings are tried, each by a run of its own."""
    seed: Seed | None = None
    """Seed of every trial and of the search; null takes the first number that is not among `seeds`."""


class ExperimentFile(Section):
    """One experiment: a question, the runs that answer it, and how they will be judged."""

    name: Name
    """The experiment's folder."""
    question: Text
    """What is asked."""
    hypothesis: Text
    """What is expected, and why."""
    recipe: Text
    """Name or path of the recipe that every arm starts from."""
    settings: dict[str, Any] = Field({})
    """Settings of every arm, by dotted key."""
    arms: dict[Name, dict[str, Any]] = Field({})
    """What is compared: a name, and the settings in which it differs from the recipe."""
    baseline: str | None = None
    """The arm that the others are compared with."""
    factors: dict[str, Factor] = Field({})
    """What is varied, instead of arms."""
    design: Literal["full", "fraction", "ablation"] = "full"
    """How factors make arms. full: every combination. fraction: half of them, or fewer, by generators. ablation: all
    factors at their second level, and that without one after the other."""
    generators: dict[str, tuple[str, ...]] = Field({})
    """For a fraction: a factor, and the factors whose product of signs it takes (d: [a, b, c])."""
    sweep: Sweep | None = None
    """What is searched, instead of arms or factors."""
    seeds: Seed | tuple[Seed, ...]
    """How many seeds (0, 1, ...), or a list of them. Every arm gets the same: a seed is a block."""
    primary: Metric = Metric(name="held_out")
    """The one measure that the claim is about."""
    secondary: tuple[Metric, ...] = ()
    """Further measures, to be judged as a group."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Chance of a false claim that is accepted, over all claims about the primary measure together."""
    power: float = Field(0.8, ge=0.5, lt=1)
    """Chance of finding an effect of the size that the plan names as detectable."""
    margin: float | None = Field(None, gt=0)
    """A difference of the primary measure smaller than this counts as none; null claims no equivalence."""
    budget: Budget = Budget()
    """What the experiment may take."""
    stopping: Literal["fixed", "sequential"] = "fixed"
    """fixed: all planned runs, then one look. sequential: a look after every seed, and an arm stops once it is decided;
    needs a baseline."""
    max_parallel: int = Field(1, ge=1)
    """Runs at once. No part of what is frozen."""

    @model_validator(mode="after")
    def _one_kind_of_design(self) -> "ExperimentFile":
        given = [name for name in ("arms", "factors", "sweep") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(f"give one of arms, factors and sweep, got {' and '.join(given) or 'none'}")
        if not self.factors and (self.design != "full" or self.generators):
            raise ConfigError("design and generators would be ignored: they belong to factors")
        if self.design != "fraction" and self.generators:
            raise ConfigError(f"generators would be ignored: they belong to design=fraction, not {self.design}")
        if self.arms:
            self._check_arms()
        elif self.baseline is not None:
            raise ConfigError(f"baseline={self.baseline!r} would be ignored: it belongs to arms")
        if self.sweep:
            self._check_sweep(self.sweep)
        if self.stopping == "sequential" and self.factors and self.design != "ablation":
            raise ConfigError("stopping=sequential compares arms with a baseline: give arms, or design=ablation")
        if self.stopping == "sequential" and len(self.all_seeds) < 2:
            raise ConfigError(f"stopping=sequential looks after every seed: seeds={self.seeds} leaves nothing to stop")
        if self.stopping == "sequential" and self.margin is not None:
            raise ConfigError("margin would be ignored: equivalence is tested at a fixed number of seeds only")
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> "ExperimentFile":
        if len(set(self.all_seeds)) < len(self.all_seeds) or not self.all_seeds:
            raise ConfigError(f"seeds={self.seeds}: needs one or more, all different")
        names = [self.primary.name, *(metric.name for metric in self.secondary)]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"metric {repeated!r} stands twice among primary and secondary")
        return self

    def _check_sweep(self, sweep: Sweep) -> None:
        if self.primary.name != "held_out":
            raise ConfigError(
                f"primary={self.primary.name!r}: a sweep searches on one half of the held-out items and judges on the "
                "other, so it needs held_out"
            )
        if sweep.seed in self.all_seeds:
            raise ConfigError(f"sweep.seed={sweep.seed} is among seeds: the best must be judged on others")
        if given := sorted({*sweep.space} & {*self.settings}):
            raise ConfigError(f"settings.{given[0]} would be ignored: sweep.space searches it")

    def _check_arms(self) -> None:
        if len(self.arms) < 2:
            raise ConfigError("arms: an experiment compares two or more")
        if self.baseline not in self.arms:
            raise ConfigError(f"baseline={self.baseline!r} must name an arm: {_suggest(self.baseline, self.arms)}")

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds, one by one."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def search_seed(self) -> int:
        """The seed of a sweep's trials."""
        given = None if self.sweep is None else self.sweep.seed
        return next(seed for seed in count() if seed not in self.all_seeds) if given is None else given


def load_experiment(path: Path) -> ExperimentFile:
    """Read and check the file of an experiment.

    Raises:
        ConfigError: one line that names the key, the value, and what to do.
    """
    tree = read_file(path)
    try:
        return ExperimentFile.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_in_one_line(error)}") from error


def read_file(path: Path) -> dict[str, Any]:
    """The unchecked content of an experiment's file.

    Raises:
        ConfigError: it is no YAML file that can be read.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: the file of an experiment ends in .yaml")
    return read_recipe(str(path))


def _in_one_line(error: ValidationError) -> str:
    fault = error.errors()[0]
    parts = [str(part) for part in fault["loc"] if not str(part).startswith(("function-", "tuple[", "dict["))]
    key = ".".join(parts)
    if fault["type"] == "missing":
        return f"{key}: is not set; every experiment says it"
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}: {_suggest(parts[-1], _section(parts).model_fields)}"
    message = fault["msg"].removeprefix("Value error, ")
    value = "" if isinstance(fault["input"], dict) else f"={fault['input']!r}"
    return f"{key}{value}: {message[0].lower()}{message[1:]}" if key else message


def _section(parts: Sequence[str]) -> type[Section]:
    """The section in which a key stands."""
    sections: dict[str, type[Section]] = {
        "factors": Factor,
        "primary": Metric,
        "secondary": Metric,
        "budget": Budget,
        "sweep": Searched if len(parts) > 2 else Sweep,
    }
    return ExperimentFile if len(parts) == 1 else sections[parts[0]]


def _suggest(word: str | None, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word or "", known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
