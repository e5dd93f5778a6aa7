"""Configs: what no run can use is refused by name before anything is compiled."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from coin_jax.config import Config, ConfigError, TaskConfig, TokenizerConfig, validate
from coin_jax.config_files import from_json, load, load_file, to_json
from coin_jax.model.t5 import T5
from coin_jax.objective import make_method
from coin_jax.parallel.mesh import make_mesh
from coin_jax.training.logging import check_writers
from coin_jax.training.optimizer import make_optimizer
from coin_jax.training.state import abstract_state
from coin_jax.training.step import make_train_step

ROOT = pathlib.Path(__file__).parent.parent
VALID = Config(tokenizer=TokenizerConfig(kind="bytes"))


def replaced(config, values):
    """`config` with the values of {"section.field" or "field": value} in it."""
    for path, value in values.items():
        section, _, field = path.rpartition(".")
        if section:
            value = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section or field: value})
    return config


def test_the_defaults_can_be_run_once_a_tokenizer_is_named():
    assert validate(VALID) is VALID
    with pytest.raises(ConfigError, match=r"tokenizer\.path = ''"):
        validate(Config())


REFUSED = [
    # values; the field that the message begins with; the value; what is allowed
    *[
        ({path: 0}, path, "0", "at least 1")
        for path in [
            "model.vocabulary_size",
            "model.d_model",
            "model.d_kv",
            "model.d_ff",
            "model.num_heads",
            "model.num_layers",
            "model.num_decoder_layers",
            "batch.rows",
            "batch.encoder_length",
            "batch.decoder_length",
            "batch.segments_per_row",
            "batch.window",
            "batch.shards",
            "batch.prefetch",
            "objective.head_chunk",
            "optimizer.accumulation_steps",
            "evaluation.instances_per_task",
            "evaluation.batch_size",
            "evaluation.suite_sample",
            "checkpoint.keep_last",
            "training.steps",
            "training.log_every",
            "data.builtin_rows",
        ]
        if path not in ("batch.shards", "optimizer.accumulation_steps")
    ],
    *[
        ({path: -1}, path, "-1", "at least 0")
        for path in [
            "model.scan_unroll",
            "model.pad_token_id",
            "model.eos_token_id",
            "model.decoder_start_token_id",
            "data.held_out_wordings",
            "data.rows_per_task",
            "data.mixture_cap",
            "optimizer.warmup_steps",
            "evaluation.every",
            "checkpoint.every",
            "seed",
        ]
    ],
    *[
        ({path: -0.5}, path, "-0.5", "at least 0")
        for path in [
            "objective.contrastive_weight",
            "objective.z_loss",
            "optimizer.weight_decay",
            "optimizer.clip_norm",
        ]
    ],
    *[
        ({path: value}, path, repr(value), "greater than 0")
        for path in [
            "data.mixture_temperature",
            "objective.temperature",
            "optimizer.learning_rate",
            "optimizer.epsilon",
            "model.layer_norm_epsilon",
        ]
        for value in (0.0, float("nan"), float("inf"))
    ],
    *[
        ({path: value}, path, repr(value), "at least 0 and below 1")
        for path in [
            "model.dropout_rate",
            "objective.label_smoothing",
            "optimizer.b1",
            "optimizer.b2",
            "optimizer.ema_decay",
        ]
        for value in (-0.1, 1.0)
    ],
    ({"optimizer.accumulation_steps": -2}, "optimizer.accumulation_steps", "-2", "at least 1"),
    ({"optimizer.accumulation_steps": 0}, "optimizer.accumulation_steps", "0", "at least 1"),
    ({"batch.shards": 0}, "batch.shards", "0", "at least 1"),
    ({"optimizer.accumulation_steps": 3}, "optimizer.accumulation_steps", "3", "divisor of"),
    ({"batch.shards": 3}, "batch.shards", "3", "a divisor of batch.rows (16)"),
    ({"batch.shards": -1}, "batch.shards", "-1", "at least 1"),
    (
        {"batch.shards": 16, "batch.segments_per_row": 5},
        "batch.segments_per_row",
        "5",
        "even, where a shard has an odd number of rows",
    ),
    ({"batch.window": 65}, "batch.window", "65", "at most 64"),
    ({"batch.encoder_length": 7}, "batch.encoder_length", "7", "at least 8"),
    ({"batch.rows": 1, "batch.segments_per_row": 3}, "batch.rows", "1 x 3", "4 sequences"),
    (
        {"optimizer.final_learning_rate_fraction": 1.5},
        "optimizer.final_learning_rate_fraction",
        "1.5",
        "between 0 and 1",
    ),
    *[
        (
            {"data.mixture_weights": {"a": 1.0, "b": bad}},
            "data.mixture_weights",
            str(bad),
            "positive",
        )
        for bad in (0.0, -1.0, float("inf"))
    ],
    *[
        (
            {"data.mixture_weights": {"a": 1.0}, f"data.{field}": other},
            f"data.{field}",
            str(other),
            "data.mixture_weights say the shares already",
        )
        for field, other in (("mixture_cap", 5), ("mixture_temperature", 2.0))
    ],
    *[
        (
            {
                "data.source": "text",
                "data.files": ("x",),
                "objective.method": "cross_entropy",
                field: other,
            },
            field,
            str(other),
            "plain text has no tasks",
        )
        for field, other in (
            ("data.mixture_cap", 5),
            ("data.mixture_temperature", 2.0),
            ("data.mixture_weights", {"a": 1.0}),
        )
    ],
    ({"batch.mode": "one_wording"}, "batch.mode", "'one_wording'", "'pairs' for objective.method"),
    (
        {
            "batch.mode": "mixed_wordings",
            "objective.method": "cross_entropy",
            "data.source": "text",
            "data.files": ("x",),
        },
        "batch.mode",
        "'mixed_wordings'",
        "without wordings",
    ),
    ({"data.noise_density": 1.0}, "data.noise_density", "1.0", "in (0, 1)"),
    ({"data.mean_noise_span_length": 0.5}, "data.mean_noise_span_length", "0.5", "at least 1"),
    (
        {"model.relative_attention_num_buckets": 5},
        "model.relative_attention_num_buckets",
        "5",
        "even and at least 4",
    ),
    (
        {"model.relative_attention_max_distance": 16},
        "model.relative_attention_max_distance",
        "16",
        "greater than half the number of buckets (16)",
    ),
    ({"model.eos_token_id": 32128}, "model.eos_token_id", "32128", "below model.vocabulary_size"),
    ({"mesh.fsdp": 0}, "mesh.fsdp", "0", "at least 1, or -1"),
    ({"mesh.data": -1, "mesh.tensor": -1}, "mesh", "-1", "only one"),
    ({"name": " "}, "name", "' '", "not empty"),
    ({"name": "a/b"}, "name", "'a/b'", "a single folder name"),
    ({"name": ".."}, "name", "'..'", "a single folder name"),
    ({"seed": 2**31}, "seed", str(2**31), "below 2**31"),
    ({"data.source": "tasks"}, "data.files", "()", "'tasks' reads files"),
    ({"data.source": "tasks", "data.files": ("x",)}, "data.template_files", "()", "given"),
    (
        {"data.source": "text", "data.files": ("x",)},
        "objective.method",
        "'coin'",
        "'cross_entropy': plain text holds no pairs",
    ),
    (
        {
            "data.source": "text",
            "data.files": ("x",),
            "objective.method": "cross_entropy",
            "checkpoint.keep_best": True,
        },
        "checkpoint.keep_best",
        "True",
        "nothing is evaluated",
    ),
    (
        {"checkpoint.keep_best": True, "checkpoint.best_metric": "loss"},
        "checkpoint.best_metric",
        "'loss'",
        "a metric of the evaluation",
    ),
    ({"tokenizer.kind": "huggingface"}, "tokenizer.path", "''", "a Hugging Face name"),
    (
        {"tokenizer.kind": "sentencepiece", "tokenizer.vocabulary_size": 32100},
        "tokenizer.vocabulary_size",
        "32100",
        "at most 32028",
    ),
    # Of the wrong type.
    ({"training.steps": "7"}, "training.steps", "'7'", "integer"),
    ({"batch.rows": 16.0}, "batch.rows", "16.0", "integer"),
    ({"batch.rows": True}, "batch.rows", "True", "integer"),
    ({"model.feed_forward": "swish"}, "model.feed_forward", "'swish'", "'gated-silu'"),
    ({"model.compute_dtype": "float16"}, "model.compute_dtype", "'float16'", "'bfloat16'"),
    ({"objective.pooling": "cls"}, "objective.pooling", "'cls'", "'encoder_mean'"),
    ({"optimizer.schedule": None}, "optimizer.schedule", "None", "'cosine'"),
    ({"output": pathlib.Path("runs")}, "output", "runs", "string"),
    ({"data.files": "one.jsonl"}, "data.files", "'one.jsonl'", "array"),
]


@pytest.mark.parametrize(("values", "field", "value", "allowed"), REFUSED)
def test_a_value_that_no_run_can_use_is_refused_with_field_value_and_remedy(
    values, field, value, allowed
):
    with pytest.raises(ConfigError) as caught:
        validate(replaced(VALID, values))
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    about = [line for line in lines if line.startswith(field)]
    assert any(allowed in line and (value in line or field == "mesh") for line in about), lines


def test_every_number_of_the_schema_is_checked():
    named = {path for values, *_ in REFUSED for path in values}
    numbers = {
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(section.default)
        for field in dataclasses.fields(section.default)
        if type(getattr(section.default, field.name)) in (int, float)
    }
    assert numbers - named == set()


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        validate(replaced(VALID, {"batch.rows": 0, "model.d_ff": -3, "optimizer.b1": 1.0}))
    assert all(path in str(caught.value) for path in ("batch.rows", "model.d_ff", "optimizer.b1"))


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"objective\.method = 'con'.*coin, cross_entropy"):
        make_method(replaced(VALID, {"objective.method": "con"}).objective)


def test_a_logger_that_is_not_installed_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"training\.wandb_project = 'p'.*pip install wandb"):
        check_writers(replaced(VALID, {"training.wandb_project": "p"}))


def test_json_carries_every_field_there_and_back():
    config = replaced(
        VALID,
        {
            "seed": 3,
            "output": "over/there",
            "data.files": ("a", "b"),
            "data.tasks": (TaskConfig("cola", fields={"a": "b"}, answers={"0": "no"}),),
            "optimizer.learning_rate": 0.1 + 0.2,
            "model.num_layers": 3,
            "checkpoint.keep_best": True,
        },
    )
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (["modle"], {}, "unknown field 'modle'; did you mean 'model'?"),
        (["model", "num_layer"], 2, "unknown field 'model.num_layer'; did you mean 'num_layers'?"),
        (["data", "tasks"], [{"nam": "x"}], "unknown field 'data.tasks.0.nam'; did you mean"),
        (["mesh", "qqq"], 1, "fields: data, fsdp, tensor"),
        (["model"], 3, "model must be an object"),
        (["training", "steps"], "7", "training.steps: Input should be a valid integer, found '7'"),
        (["data", "tasks"], [{"name": 1}], "data.tasks.0.name"),
        (["optimizer", "name"], "sgd", "optimizer.name: Input should be 'adamw' or 'adafactor'"),
    ],
)
def test_json_with_unknown_or_ill_typed_fields_is_refused_by_name(path, value, complaint):
    tree = json.loads(to_json(VALID))
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        from_json(json.dumps(tree), where="run/config.json")
    assert str(caught.value).startswith("run/config.json: ")
    assert complaint in str(caught.value)


def test_text_that_is_not_json_is_refused():
    with pytest.raises(ConfigError, match=r"c\.json is not JSON.*line 1"):
        from_json("{", where="c.json")
    with pytest.raises(ConfigError, match="config must be an object"):
        from_json("[]")


def test_the_command_line_lays_over_the_config_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from coin_jax.config import *\n"
        "def get_config(arg='none'):\n"
        "    return Config(name=arg, seed=5, tokenizer=TokenizerConfig(kind='bytes'))\n"
    )
    config = load([f"--config={file}:this", "--training.steps", "3", "--model.d-model", "7"])
    assert (config.name, config.seed, config.training.steps) == ("this", 5, 3)
    assert config.model.d_model == 7
    assert load(["--config", str(file)]).name == "none"
    saved = tmp_path / "config.json"
    saved.write_text(to_json(config))
    assert load(["--config", str(saved)]) == config
    assert load(["--data.files", "a", "b", "--config", str(file)]).data.files == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--training.stepz", "3"], "--training.steps"),
        (["--steps", "3"], "--training.steps"),
        (["--model.d_modell", "3"], "--model.d-model"),
        (["--training.steps", "many"], "--training.steps"),
        (["--objective.negatives", "soft"], "'batch'"),
    ],
)
def test_an_unknown_or_ill_typed_option_ends_the_program_and_names_the_nearest(
    arguments, hint, capsys
):
    with pytest.raises(SystemExit) as caught:
        load(arguments)
    assert caught.value.code == 2
    assert hint in capsys.readouterr().err


def test_the_help_explains_fields_in_whole_sentences(capsys):
    with pytest.raises(SystemExit):
        load(["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--config FILE[:ARGUMENT] comes first" in text
    for option in ("--model.d-model INT", "--objective.negatives {hard,batch}", "--mesh.fsdp INT"):
        assert option in text
    assert "A run that finds its own checkpoint there goes on from it. (default: runs)" in text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("def get_config(arg='')\n", "does not run: SyntaxError"),
        ("import nothing_like_it\n", "does not run: ModuleNotFoundError"),
        ("x = 1\n", "defines no get_config"),
        ("def get_config(arg=''): return 3\n", "must return a Config, not int"),
        ("def get_config(arg=''): raise ValueError('sizes: a, b')\n", "failed: sizes: a, b"),
        ("def get_config(arg=''): return {}['size']\n", "failed: KeyError: 'size'"),
        ("def get_config(): return 3\n", "failed: TypeError"),
    ],
)
def test_a_config_file_that_does_not_work_is_refused_with_the_reason(tmp_path, text, complaint):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_file(f"{file}:argument")
    assert str(file) in str(caught.value)
    assert complaint in str(caught.value)


def test_a_config_file_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    (tmp_path / "there.py").touch()
    with pytest.raises(ConfigError, match=r"no file .*here\.py; this folder has .*there\.py"):
        load(["--config", str(tmp_path / "here.py")])
    with pytest.raises(ConfigError, match="needs a file"):
        load(["--config"])
    with pytest.raises(ConfigError, match="no file"):
        load(["--config", str(tmp_path / "no" / "such.json")])


ARGUMENTS = {
    "quickstart": [""],
    "flan_t5": ["small", "base", "large", "xl", "xxl"],
    "t5_from_scratch": ["tiny", "mini", "small"],
    "pretrain": [""],
    "tasks": ["data"],
}
# config.json and the published parameter counts of google/flan-t5-*, in millions.
FLAN_T5_PARAMETERS = {"small": 77, "base": 248, "large": 783, "xl": 2850, "xxl": 11135}


def test_every_config_file_is_tested():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, arguments in ARGUMENTS.items() for argument in arguments],
)
def test_every_config_builds_a_model_a_state_and_a_train_step(name, argument):
    """Shapes only: nothing is allocated, so that the largest fits as well as the smallest."""
    file = ROOT / "configs" / f"{name}.py"
    config = validate(load_file(f"{file}:{argument}" if argument else str(file)))
    batch = config.batch
    mesh = make_mesh(config.mesh, jax.devices())
    model = T5(config.model)
    optimizer = make_optimizer(config.optimizer, config.training.steps, model.logical_axes())
    method = make_method(config.objective)
    train_step = make_train_step(model, method, optimizer, config, mesh)
    state = abstract_state(model, optimizer, config)
    slots = batch.rows * batch.segments_per_row // 2
    shapes = {
        "encoder_tokens": (batch.rows, batch.encoder_length),
        "encoder_segment_ids": (batch.rows, batch.encoder_length),
        "decoder_inputs": (batch.rows, batch.decoder_length),
        "decoder_targets": (batch.rows, batch.decoder_length),
        "decoder_segment_ids": (batch.rows, batch.decoder_length),
        "pair_members": (slots, 2),
        "pair_sets": (slots,),
        "pair_contents": (slots,),
    }
    after, metrics = jax.eval_shape(
        train_step,
        state,
        {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()},
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {"loss", "generation_loss", "gradient_norm", "learning_rate"} <= metrics.keys()
    assert all(m.shape == () and m.dtype == jnp.float32 for m in metrics.values())
    if name == "flan_t5":
        count = sum(x.size for x in jax.tree.leaves(state.params))
        assert round(count / 1e6) == FLAN_T5_PARAMETERS[argument]
