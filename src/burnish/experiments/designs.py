"""From factors to arms: full and fractional factorials with their aliases, ablations."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from burnish.errors import ConfigError
from burnish.experiments.schema import MAX_NAME, ExperimentFile, Factor, level_name

FULL_ARM = "full"
UNTUNED, WINNER = "untuned", "winner"  # the arms of a sweep: the recipe as it is, and the best that was found


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Settings under a name that can stand in a file's name; `levels` says which of each factor, if made of factors."""

    name: str
    levels: Mapping[str, str]
    settings: Mapping[str, Any]


def arms_of(file: ExperimentFile) -> list[Arm]:
    """The arms of an experiment, in the order of its file.

    Raises:
        ConfigError: the factors do not make a design of the wanted kind.
    """
    if file.sweep is not None:
        return [Arm(name=UNTUNED, levels={}, settings={})]
    if not file.factors:
        return [Arm(name=name, levels={}, settings=settings) for name, settings in file.arms.items()]
    if file.design == "ablation":
        return ablation(file.factors)
    _check_nesting(file.factors)
    if file.design == "fraction":
        return _named(fraction(file.factors, file.generators), file.factors)
    return _named(list(full_factorial(file.factors)), file.factors)


def full_factorial(factors: Mapping[str, Factor]) -> Iterator[dict[str, str]]:
    """Every combination of levels; a factor that lies within others is left out where it has no meaning."""

    def extend(names: Sequence[str], chosen: dict[str, str]) -> Iterator[dict[str, str]]:
        if not names:
            yield chosen
            return
        factor = factors[names[0]]
        if any(chosen.get(parent) != level_name(level) for parent, level in factor.within.items()):
            yield from extend(names[1:], chosen)
            return
        for level in factor.names:
            yield from extend(names[1:], {**chosen, names[0]: level})

    yield from extend(list(factors), {})


def fraction(factors: Mapping[str, Factor], generators: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """A 2^(k-p) fraction: the factors without generator are crossed, the others take a product of signs.

    The second level is +, the first -.

    Raises:
        ConfigError: it is no such fraction, or main effects would be aliased with each other.
    """
    _check_two_levels(factors, "fraction")
    if not generators:
        raise ConfigError("design=fraction needs generators, such as {d: [a, b, c]}")
    basic = [name for name in factors if name not in generators]
    for name, members in generators.items():
        if name not in factors:
            raise ConfigError(f"generators: {name!r} is no factor; factors are {', '.join(factors)}")
        if unknown := [member for member in members if member not in basic]:
            raise ConfigError(f"generators.{name}: {unknown[0]!r} must be a factor without a generator of its own")
        if len(set(members)) < max(2, len(members)):
            raise ConfigError(f"generators.{name}: needs two or more different factors")
    if resolution(generators) < 3:
        raise ConfigError(f"generators: two main effects would be one: {defining_words(generators)[0]}")
    runs = []
    for signs in product((-1, 1), repeat=len(basic)):
        sign = dict(zip(basic, signs, strict=True))
        for name, members in generators.items():
            sign[name] = 1
            for member in members:
                sign[name] *= sign[member]
        runs.append({name: factor.names[(sign[name] + 1) // 2] for name, factor in factors.items()})
    return runs


def ablation(factors: Mapping[str, Factor]) -> list[Arm]:
    """The arm with every factor at its second level, then one arm for each factor at its first."""
    _check_two_levels(factors, "ablation")
    full = {name: factor.names[1] for name, factor in factors.items()}
    arms = [Arm(name=FULL_ARM, levels=full, settings=_settings(full, factors))]
    for name, factor in factors.items():
        levels = {**full, name: factor.names[0]}
        arms.append(Arm(name=_slug(f"without-{name}"), levels=levels, settings=_settings(levels, factors)))
    return arms


def resolution(generators: Mapping[str, Sequence[str]]) -> int:
    """Length of the shortest defining word: 3 mixes main effects with interactions of two, 4 with those of three."""
    return min(map(len, _words(generators)))


def defining_words(generators: Mapping[str, Sequence[str]]) -> list[str]:
    """The products of factors that are constant over a fraction, shortest first."""
    return [_text(word) for word in sorted(_words(generators), key=lambda word: (len(word), sorted(word)))]


def alias_table(names: Sequence[str], generators: Mapping[str, Sequence[str]]) -> list[tuple[str, list[str]]]:
    """For each main effect and each interaction of two factors, what cannot be told from it; each set stands once."""
    words, seen, table = _words(generators), set(), []
    for effect in [frozenset(each) for size in (1, 2) for each in combinations(names, size)]:
        if effect in seen:
            continue
        aliases = sorted((effect ^ word for word in words), key=lambda each: (len(each), sorted(each)))
        seen.update(aliases)
        table.append((_text(effect), [_text(alias) for alias in aliases]))
    return table


def _words(generators: Mapping[str, Sequence[str]]) -> set[frozenset[str]]:
    """The defining contrast subgroup without the identity."""
    single = [frozenset((name, *members)) for name, members in generators.items()]
    words = set()
    for size in range(1, len(single) + 1):
        for chosen in combinations(single, size):
            word: frozenset[str] = frozenset()
            for each in chosen:
                word ^= each
            words.add(word)
    return words


def _text(effect: frozenset[str]) -> str:
    return " x ".join(sorted(effect))


def _check_two_levels(factors: Mapping[str, Factor], design: str) -> None:
    if len(factors) < 2:
        raise ConfigError(f"design={design} needs two or more factors")
    for name, factor in factors.items():
        if len(factor.names) != 2 or factor.within:
            raise ConfigError(f"factors.{name}: design={design} needs two levels, and no `within`")


def _check_nesting(factors: Mapping[str, Factor]) -> None:
    earlier: dict[str, Factor] = {}
    for name, factor in factors.items():
        for parent, level in factor.within.items():
            if parent not in earlier:
                raise ConfigError(f"factors.{name}.within: {parent!r} must be a factor that is listed earlier")
            if level_name(level) not in earlier[parent].names:
                known = ", ".join(earlier[parent].names)
                raise ConfigError(f"factors.{name}.within: {parent} has no level {level_name(level)!r}, only {known}")
        earlier[name] = factor


def _named(runs: Sequence[dict[str, str]], factors: Mapping[str, Factor]) -> list[Arm]:
    names = [_slug("-".join(f"{name}-{level}" for name, level in levels.items())) for levels in runs]
    if len(set(names)) < len(names) or any(len(name) > MAX_NAME for name in names):
        names = [f"arm-{index:02d}" for index in range(1, len(runs) + 1)]
    return [
        Arm(name=name, levels=levels, settings=_settings(levels, factors))
        for name, levels in zip(names, runs, strict=True)
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")


def _settings(levels: Mapping[str, str], factors: Mapping[str, Factor]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, level in levels.items():
        for key, value in factors[name].settings(level).items():
            if key in settings:
                raise ConfigError(f"factors.{name}: {key} is set by another factor too")
            settings[key] = value
    return settings
