from pathlib import Path

import pytest
import yaml

from burnish.algorithms.grpo import GRPOConfig
from burnish.algorithms.session import schema_of
from burnish.config.loading import (
    config_hash,
    leaf_fields,
    read_algorithm,
    read_recipe,
    resolve,
    to_yaml,
    visible_settings,
)
from burnish.errors import ConfigError


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {path: some/model}\ntask: {source: data.jsonl}\ntrain: {num_steps: 7}\nseed: 1\n")
    return str(path)


def load(recipe: str, *flags: str, file: Path | None = None, **environment: str):
    return resolve(GRPOConfig, recipe, flags=flags, file=file, environment=environment)


def test_precedence_and_origins(recipe: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 2\ntrain: {num_steps: 8}\noptimizer: {learning_rate: 1e-5}\n")
    resolved = load(
        recipe,
        "--train.num_steps=10",
        file=file,
        BURNISH_TRAIN__NUM_STEPS="9",
        BURNISH_OPTIMIZER__LEARNING_RATE="2e-5",
        BURNISH_CACHE="/somewhere",
        HOME="/root",
    )
    config = resolved.config
    assert (config.train.num_steps, resolved.origin("train.num_steps")) == (10, "flag")
    assert (config.optimizer.learning_rate, resolved.origin("optimizer.learning_rate")) == (2e-5, "environment")
    assert (config.seed, resolved.origin("seed")) == (2, f"file {file}")
    assert (config.model.path, resolved.origin("model.path")) == ("some/model", f"recipe {recipe}")
    assert (config.rollout.group_size, resolved.origin("rollout.group_size")) == (8, "default")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--train.num_stepz", "5"],
            r"unknown setting 'train.num_stepz' \(from flag\): did you mean 'train.num_steps'\?",
        ),
        (["--num_steps", "5"], r"unknown setting 'num_steps' .* did you mean 'train.num_steps'\?"),
        (["--trian.num_steps", "5"], r"did you mean 'train.num_steps'\?"),
        (["--quite_other", "5"], r"unknown setting 'quite_other' \(from flag\): see `burnish config schema ALGORITHM`"),
        (["--train.num_steps", "many"], r"train.num_steps='many' \(from flag\): input should be a valid integer"),
        (["--train.num_steps", "0"], r"train.num_steps='0' \(from flag\): input should be greater than or equal to 1"),
        (["--optimizer.learning_rate", "-1"], r"optimizer.learning_rate='-1' .* greater than 0"),
        (["--optimizer.learning_rate", "nan"], r"optimizer.learning_rate='nan' .* finite"),
        (["--loss.aggregation", "mean"], r"loss.aggregation='mean' .* 'token', 'sequence' or 'constant'"),
        (["--rollout.stop", '["a"'], r"is not valid JSON"),
        (["--train.num_steps"], "--train.num_steps needs a value"),
        (["train.num_steps", "5"], "unexpected argument 'train.num_steps'"),
        (["--train", "5"], r"^train='5' \(from flag\): is a section: --train '{\.\.\.}' as JSON"),
        (["--model.lora", "8"], r"^model.lora='8' \(from flag\): is a section: --model.lora '{\.\.\.}' as JSON"),
        (["--model.lora.rnak", "5"], "did you mean 'model.lora.rank'"),
        (["--name", "a" * 65], r"name=.* at most 64"),
        (["--rollout.stop", '[""]'], r"rollout.stop.0=''.*at least 1"),
        (["--name", "a/b"], r"name='a/b' .* match pattern"),
        (["--train.recompute", "yes"], r"^train.recompute='yes' \(from flag\): .*integer, or 'auto'$"),
        (["--train.micro_batch_tokens", "0"], r"^train.micro_batch_tokens='0' \(from flag\): .*equal to 1, or 'auto'$"),
        # impossible together
        (["--train.minibatches_per_step", "9"], "train.minibatches_per_step=9 exceeds rollout.num_prompts=8"),
        (["--rollout.max_rows", "4"], "rollout.max_rows=4 is less than rollout.group_size=8"),
        (["--train.save_memory", '["step_in_backward"]'], r"optimizer.max_grad_norm=1.0 needs the whole gradient"),
        (["--train.save_memory", '["offload"]'], r"train.save_memory.0='offload'.*'step_in_backward'"),
        # would be ignored
        (["--optimizer.kind", "adafactor", "--optimizer.betas", "[0.9, 0.9]"], "optimizer.betas would be ignored"),
        (["--loss.kl_estimator", "k2"], "loss.kl_estimator would be ignored while loss.kl_coefficient is 0"),
        (["--loss.surrogate", "sapo"], "loss.surrogate would be ignored with train.minibatches_per_step=1"),
        (["--loss.ratio", "sequence"], "loss.ratio would be ignored with train.minibatches_per_step=1"),
        (["--loss.surrogate", "sapoo"], "loss.surrogate"),
        (["--task.options", '{"a": 1}'], "task.options would be ignored"),
        (["--task.source", "reasoning-gym:gcd", "--task.answer_field", "x"], "task.answer_field would be ignored"),
    ],
)
def test_faults_are_one_line_that_names_the_key(recipe: str, flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(recipe, *flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {num_steps: true}", r"train.num_steps=True .*: needs a number, not True"),
        ("train: {num_steps: 1.5}", r"train.num_steps=1.5"),
        ("train: [1]", r"train=\[1\]"),
        ("- a", "must be a mapping of settings, got list"),
        ("a: [", "not valid YAML"),
        ("train: {num_steps: 1, num_steps: 2}", "'num_steps' stands twice"),
        ("seed: 3", "model.path: is not set and has no default; add --model.path VALUE"),
    ],
)
def test_faulty_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(str(path), "--task.source", "x", *([] if "seed" in text else ["--model.path", "x"]))


def test_unknown_recipe_and_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"recipe 'quikstart' is not known: did you mean 'quickstart'\?"):
        read_recipe("quikstart")
    with pytest.raises(ConfigError, match=r"cannot read nowhere\.yaml: No such file"):
        read_recipe("nowhere.yaml")


def test_misspelt_environment_is_refused(recipe: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'train.num_step' \(from environment\)"):
        load(recipe, BURNISH_TRAIN__NUM_STEP="3")


def test_sections_can_be_switched_on_set_and_switched_off(recipe: str, tmp_path: Path) -> None:
    assert load(recipe).config.model.lora is None
    assert load(recipe, "--model.lora.rank", "4").config.model.lora.rank == 4
    assert load(recipe, "--model.lora", "{}").config.model.lora.rank == 16
    file = tmp_path / "lora.yaml"
    file.write_text("model: {lora: {rank: 4}}")
    assert load(recipe, "--model.lora", "null", file=file).config.model.lora is None
    assert load(recipe, "--task.source", "reasoning-gym:gcd", "--task.options", '{"max_n": 9}').config.task.options == {
        "max_n": 9
    }


def test_a_choice_among_numbers_is_read_from_a_flag(recipe: str) -> None:
    lora = load(recipe, "--model.lora.base_bits", "8").config.model.lora
    assert lora is not None and lora.base_bits == 8
    with pytest.raises(ConfigError, match="input should be 16, 8 or 4"):
        load(recipe, "--model.lora.base_bits", "5")


def test_the_resolved_file_gives_the_same_configuration(recipe: str, tmp_path: Path) -> None:
    first = load(recipe, "--loss.kl_coefficient", "0.1", "--loss.kl_estimator", "k2").config
    again = tmp_path / "config.yaml"
    again.write_text(to_yaml(first))
    second = load(str(again)).config
    assert second == first
    assert config_hash(second) == config_hash(first)
    assert config_hash(load(recipe).config) != config_hash(first)


def test_hash_does_not_depend_on_where_values_come_from(recipe: str) -> None:
    assert config_hash(load(recipe, "--seed", "5").config) == config_hash(load(recipe, BURNISH_SEED="5").config)


def test_at_most_sixty_settings_each_documented(recipe: str) -> None:
    # no choice; where and how it runs, until when, and who watches
    elsewhere = ("algorithm", "cluster.", "guards.", "metrics.", "rollout.update_weights", "train.save_before_deadline")
    settings = [key for key in visible_settings(load(recipe).config) if not key.startswith(elsewhere)]
    assert len(settings) <= 60
    for key, field in leaf_fields(GRPOConfig):
        assert field.description, key


def test_shipped_recipes_are_valid() -> None:
    import burnish.recipes

    names = [path.stem for path in Path(burnish.recipes.__file__).parent.glob("*.yaml")]
    assert "quickstart" in names
    for name in names:
        schema = schema_of(read_algorithm(name))
        missing = [key for key in ("task.source", "data.source") if key in dict(leaf_fields(schema))]
        required = [] if name == "quickstart" else [f"--{key}=data.jsonl" for key in missing]
        if "teachers" in dict(leaf_fields(schema)):
            required.append('--teachers=[{"path": "teacher"}]')
        config = resolve(schema, name, flags=required, environment={}).config
        assert yaml.safe_load(to_yaml(config))["name"] == config.name


def test_entries_of_a_mapping_are_merged_and_read_as_yaml() -> None:
    flags = ["--task.options.max_digits", "2", "--task.options.allow_negation", "true"]
    options = resolve(GRPOConfig, "quickstart", flags=flags, environment={}).config.task.options
    assert options == {
        "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2, "size": 4000, "allow_negation": True
    }  # fmt: skip
