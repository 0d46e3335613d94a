"""What a cluster cannot do is refused before any process starts."""

from __future__ import annotations

import sys

from transformers import AutoConfig

from burnish.config.schema import RunConfig
from burnish.distributed.actors import import_ray
from burnish.distributed.roles import RoleNeeds
from burnish.distributed.sharding import check_tensor_parallel
from burnish.distributed.vllm_server import check_vllm
from burnish.errors import ConfigError
from burnish.models.load import ModelFacts, inspect_model
from burnish.rollout.generators.vllm import check_temperature


def check_cluster(config: RunConfig, needs: RoleNeeds, model: ModelFacts, num_groups: int) -> None:
    """Refuse what cannot be spread, before anything is started; `num_groups` are those of a step's batch.

    Raises:
        ConfigError: a setting, or Ray is not installed.
    """
    import_ray()
    cluster, train = config.cluster, config.train
    for name in ("micro_batch_tokens", "recompute"):
        if getattr(train, name) == "auto":
            raise ConfigError(f"train.{name}: auto is found in one process: give a number with cluster.kind=ray")
    if unfit := [name for name in train.save_memory if name != "return_memory"]:
        raise ConfigError(f"train.save_memory: {unfit[0]} is for one process: leave it out with cluster.kind=ray")
    if config.optimizer.kind != "adamw" and cluster.learners > 1:
        raise ConfigError(
            f"optimizer.kind={config.optimizer.kind} needs whole weights, and {cluster.learners} learners have parts: "
            "set it to adamw, or cluster.learners to 1"
        )
    if not needs.max_rows and cluster.changes("generators"):
        raise ConfigError(f"cluster.generators={cluster.generators} would be ignored: this algorithm samples nothing")
    if cluster.engine == "vllm":
        _check_vllm(config, needs)
    num_shares = cluster.learners // cluster.tensor_parallel
    if num_groups < num_shares:
        raise ConfigError(
            f"{'rollout.num_prompts' if hasattr(config, 'rollout') else 'data.batch_size'}={num_groups} is less than "
            f"the {num_shares} learners that share a batch: raise it, or lower cluster.learners"
        )
    if cluster.tensor_parallel > 1 and config.model.lora is not None:
        raise ConfigError(
            f"cluster.tensor_parallel={cluster.tensor_parallel} and model.lora do not go together: set the first to 1; "
            "the weights are spread over the learners all the same"
        )
    if config.model.lora is not None and config.model.lora.base_bits < 16:
        raise ConfigError(
            f"model.lora.base_bits={config.model.lora.base_bits} is for one process: set it to 16, and the weights are "
            "spread over the learners"
        )
    for each in (model, *map(inspect_model, needs.other_models)):
        check_tensor_parallel(AutoConfig.from_pretrained(each.base or each.source), cluster.tensor_parallel)


def _check_vllm(config: RunConfig, needs: RoleNeeds) -> None:
    cluster = config.cluster
    if not needs.max_rows:
        raise ConfigError("cluster.engine=vllm would be ignored: this algorithm samples nothing")
    if config.model.lora is not None:
        raise ConfigError(
            "cluster.engine=vllm and model.lora do not go together: vLLM is given whole weights; set the "
            "second to null, or the first to native"
        )
    if getattr(getattr(config, "rollout", None), "update_weights", "between") == "during":
        raise ConfigError(
            "rollout.update_weights=during and cluster.engine=vllm do not go together: vLLM takes new weights between "
            "two steps' samples; leave out the first, or set the second to native"
        )
    check_temperature(needs.temperature, "rollout.temperature")
    if cluster.address is None:  # otherwise it need not be on this node
        check_vllm(cluster.vllm_python or sys.executable, "cluster")
