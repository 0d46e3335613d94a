"""Several rewards as one."""

from collections.abc import Mapping

from burnish.errors import ConfigError
from burnish.rewards.scoring import Reward, WeightedReward, load_reward


def reward_of(setting: str | Mapping[str, float]) -> Reward:
    """The reward that `task.reward` names: one path, or several with their weights, each named by its last part.

    Raises:
        ConfigError: one cannot be imported, or two have the same name.
    """
    if isinstance(setting, str):
        return load_reward(setting)
    names = {path: path.rpartition(":")[2] for path in setting}
    if len(set(names.values())) < len(names):
        raise ConfigError(f"task.reward: two parts have the same name: {', '.join(names.values())}")
    rewards = {names[path]: load_reward(path) for path in setting}
    return weighted(rewards, {names[path]: weight for path, weight in setting.items()})


def weighted(rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> WeightedReward:
    """A reward whose components are `rewards`, each times its weight, under their names; they sum to its value.

        reward = weighted({"right": math_answer, "short": overlong(1024, 256)}, {"right": 1.0, "short": 0.5})

    Plain and coroutine functions mix. A completion for which one of them fails has no score.

    Raises:
        ConfigError: there are none, or a reward has no weight, or a weight no reward.
    """
    if not rewards or rewards.keys() != weights.keys():
        given, named = ", ".join(rewards) or "none", ", ".join(weights) or "none"
        raise ConfigError(f"weighted(): needs one weight for each reward; rewards: {given}; weights: {named}")
    return WeightedReward({name: (weights[name], reward) for name, reward in rewards.items()})
