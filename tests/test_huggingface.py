"""Checkpoints in and out: what is read, what is written, and what is said when they do not fit."""

import dataclasses
import json

import jax
import make_golden_activations as golden
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from coin_jax.config import ModelConfig
from coin_jax.model import huggingface
from coin_jax.model.t5 import T5

FLAN = golden.CASES["flan_t5"]

# As published: the keys that matter of the config.json files of the hub.
PUBLISHED = {
    "google-t5/t5-small": (
        {"model_type": "t5", "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6}
        | {"num_heads": 8, "vocab_size": 32128, "decoder_start_token_id": 0},
        {"feed_forward": "relu", "tie_word_embeddings": True, "scale_decoder_outputs": True}
        | {"num_decoder_layers": 6, "relative_attention_max_distance": 128},
    ),
    "google/flan-t5-base": (
        {"model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12}
        | {"num_decoder_layers": 12, "num_heads": 12, "vocab_size": 32128}
        | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"feed_forward": "gated-gelu", "tie_word_embeddings": False}
        | {"scale_decoder_outputs": False, "d_ff": 2048},
    ),
    "google/mt5-small": (
        {"model_type": "mt5", "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8}
        | {"num_decoder_layers": 8, "num_heads": 6, "vocab_size": 250112}
        | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"vocabulary_size": 250112, "scale_decoder_outputs": False, "num_heads": 6}
        | {"tie_word_embeddings": False, "relative_bias_every_layer": False},
    ),
    "google/byt5-small": (
        {"model_type": "t5", "d_model": 1472, "d_kv": 64, "d_ff": 3584, "num_layers": 12}
        | {"num_decoder_layers": 4, "num_heads": 6, "vocab_size": 384}
        | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"num_layers": 12, "num_decoder_layers": 4, "tie_word_embeddings": False},
    ),
    "google/flan-ul2": (
        {"model_type": "t5", "d_model": 4096, "d_kv": 256, "d_ff": 16384, "num_layers": 32}
        | {"num_decoder_layers": 32, "num_heads": 16, "vocab_size": 32128}
        | {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False},
        {"feed_forward": "gated-silu", "d_kv": 256, "scale_decoder_outputs": False},
    ),
    "google/umt5-small": (
        {"model_type": "umt5", "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8}
        | {"num_decoder_layers": 8, "num_heads": 6, "vocab_size": 256384}
        | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"relative_bias_every_layer": True, "scale_decoder_outputs": False}
        | {"tie_word_embeddings": False},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_become_their_architecture(name):
    values, expected = PUBLISHED[name]
    config = dataclasses.asdict(huggingface.config_from_huggingface(values))
    assert {field: config[field] for field in expected} == expected


def test_what_the_run_chose_survives_the_checkpoint_config():
    base = ModelConfig(
        init_from="x", dropout_rate=0.0, compute_dtype="bfloat16", remat="full", scan_unroll=2
    )
    config = huggingface.config_from_huggingface(PUBLISHED["google/flan-t5-base"][0], base)
    for field in ("init_from", "dropout_rate", "compute_dtype", "remat", "scan_unroll"):
        assert getattr(config, field) == getattr(base, field)


def test_a_config_that_is_no_t5_is_refused_with_all_its_faults():
    with pytest.raises(huggingface.CheckpointError) as caught:
        huggingface.config_from_huggingface(
            {"model_type": "bart", "feed_forward_proj": "gelu", "d_model": 8}
        )
    message = str(caught.value)
    for part in ("bart", "umt5", "'gelu'", "vocab_size is missing", "num_heads is missing"):
        assert part in message


def equal_trees(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", golden.CASES)
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 3000], ids=["single", "sharded"])
def test_what_is_saved_is_what_was_published(name, shard_bytes, tmp_path):
    case = golden.CASES[name]
    source = golden.write(case, tmp_path / "source")
    config, params = huggingface.load(source)
    target = tmp_path / "target"
    huggingface.save(target, config, params, tokenizer_from=source, shard_bytes=shard_bytes)
    files = sorted(target.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 3000)
    stored = {name: array for file in files for name, array in load_file(file).items()}
    expected = golden.weights(case)
    assert stored.keys() == expected.keys()
    for tensor, array in expected.items():
        np.testing.assert_array_equal(stored[tensor], array)
    again, params_again = huggingface.load(target)
    assert again == config
    equal_trees(params, params_again)


@pytest.mark.parametrize("name", golden.CASES)
def test_what_is_saved_gives_the_same_logits_in_transformers(name, tmp_path):
    torch = pytest.importorskip("torch", reason="loading in transformers needs torch")
    import transformers

    case = golden.CASES[name]
    source = golden.write(case, tmp_path / "source")
    config, params = huggingface.load(source)
    huggingface.save(tmp_path / "saved", config, params, shard_bytes=3000)
    given = golden.inputs(case)
    encoder = (given["encoder_tokens"], given["encoder_segment_ids"])
    model = T5(config)

    @jax.jit
    def ours(params):
        encoded = model.encode(params, *encoder)
        inputs = given["decoder_inputs"]
        hidden = model.decode(params, inputs, np.ones_like(inputs), encoded, encoder[1])
        return model.logits(params, hidden)

    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved").eval()
    output = theirs(
        input_ids=torch.tensor(encoder[0]),
        attention_mask=torch.tensor(encoder[1]),
        decoder_input_ids=torch.tensor(given["decoder_inputs"]),
    )
    expected = output.logits.detach().numpy()
    error = np.max(np.abs(ours(params) - expected)) / np.max(np.abs(expected))
    assert error < 1e-5


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_every_combination_of_tying_and_scale_survives(tied, scaled, tmp_path):
    config, _ = huggingface.load(golden.write(FLAN, tmp_path / "source"))
    config = dataclasses.replace(config, tie_word_embeddings=tied, scale_decoder_outputs=scaled)
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(
        lambda leaf: draw(leaf.shape, np.float32), T5(config).abstract_parameters()
    )
    huggingface.save(tmp_path / "saved", config, params)
    again, params_again = huggingface.load(tmp_path / "saved")
    if tied and not scaled:
        # transformers 4 cannot say this: the head is written out, and comes back as one.
        assert again == dataclasses.replace(config, tie_word_embeddings=False)
        np.testing.assert_array_equal(params_again.pop("head"), params["embedding"].T)
    else:
        assert again == config
    equal_trees(params, params_again)


def test_files_of_transformers_5_that_claim_tied_heads_are_read_as_they_are(tmp_path):
    """It writes `tie_word_embeddings: true` and `scale_decoder_outputs: false` for Flan-T5."""
    values = FLAN.values | {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    folder = golden.write(dataclasses.replace(FLAN, values=values), tmp_path)
    config, params = huggingface.load(folder)
    assert (config.tie_word_embeddings, config.scale_decoder_outputs) == (False, False)
    np.testing.assert_array_equal(params["head"].T, golden.weights(FLAN)["lm_head.weight"])


def test_old_files_with_copies_of_the_embedding_are_read(tmp_path):
    """T5 1.0's hold four and a table that no model uses; madlad400's hold no shared.weight."""
    case = golden.CASES["t5_1.0"]
    folder = golden.write(case, tmp_path)
    tensors = golden.weights(case)
    _, expected = huggingface.load(folder)
    embedding = tensors.pop("shared.weight")
    tensors |= {f"{stack}.embed_tokens.weight": embedding for stack in ("encoder", "decoder")}
    tensors["lm_head.weight"] = embedding
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors[unused] = np.zeros((8, 3), np.float32)
    save_file(tensors, folder / "model.safetensors")
    config, params = huggingface.load(folder)
    assert config.tie_word_embeddings
    equal_trees(params, expected)


def test_all_mismatches_are_reported_at_once(tmp_path):
    folder = golden.write(FLAN, tmp_path)
    tensors = golden.weights(FLAN)
    del tensors["encoder.block.1.layer.0.SelfAttention.q.weight"]
    del tensors["decoder.final_layer_norm.weight"]
    tensors["encoder.block.0.layer.1.DenseReluDense.wo.weight"] = np.zeros((3, 4), np.float32)
    tensors["encoder.block.2.layer.0.SelfAttention.q.weight"] = np.zeros((15, 16), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(huggingface.CheckpointError) as caught:
        huggingface.load(folder)
    lines = str(caught.value).splitlines()[1:]
    faults = sorted(line.split()[0] for line in lines)
    assert faults == ["missing", "missing", "unexpected", "wrong"]
    text = "\n".join(lines)
    assert "encoder.block.1.layer.0.SelfAttention.q.weight (15, 16)" in text
    assert "decoder.final_layer_norm.weight (16,)" in text
    assert "DenseReluDense.wo.weight (3, 4), expected (16, 20)" in text
    assert "encoder.block.2.layer.0.SelfAttention.q.weight" in text


def test_half_precision_files_are_read_and_written(tmp_path):
    folder = golden.write(FLAN, tmp_path / "source")
    config, params = huggingface.load(folder)
    huggingface.save(tmp_path / "half", config, params, dtype="bfloat16")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    _, rounded = huggingface.load(tmp_path / "half")
    for value, expected in zip(jax.tree.leaves(rounded), jax.tree.leaves(params), strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected, rtol=2**-8)


def test_tokenizer_files_and_other_config_keys_are_carried_along(tmp_path):
    source = golden.write(FLAN, tmp_path / "source")
    (source / "spiece.model").write_bytes(b"pieces")
    (source / "tokenizer_config.json").write_text("{}")
    (source / "generation_config.json").write_text('{"max_length": 7}')
    values = FLAN.values | {"task_specific_params": {"x": 1}, "transformers_version": "4.1"}
    (source / "config.json").write_text(json.dumps(values))
    config, params = huggingface.load(source)
    target = tmp_path / "target"
    huggingface.save(target, config, params, tokenizer_from=source)
    assert (target / "spiece.model").read_bytes() == b"pieces"
    assert (target / "tokenizer_config.json").is_file()
    assert json.loads((target / "generation_config.json").read_text()) == {"max_length": 7}
    written = json.loads((target / "config.json").read_text())
    assert written["task_specific_params"] == {"x": 1}
    assert written["architectures"] == ["T5ForConditionalGeneration"]
    assert "transformers_version" not in written
    assert "init_from" not in written


def test_saving_a_smaller_model_over_a_sharded_one_leaves_no_old_index(tmp_path):
    config, params = huggingface.load(golden.write(FLAN, tmp_path / "source"))
    huggingface.save(tmp_path / "out", config, params, shard_bytes=3000)
    huggingface.save(tmp_path / "out", config, params)
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_arrays_that_do_not_fit_the_config_are_not_saved(tmp_path):
    config, params = huggingface.load(golden.write(FLAN, tmp_path / "source"))
    params["embedding"] = params["embedding"][:-1]
    with pytest.raises(ValueError, match=r"embedding has shape \(52, 16\).*\(53, 16\)"):
        huggingface.save(tmp_path / "out", config, params)


def test_pickles_are_not_read_and_the_error_says_what_to_do(tmp_path):
    folder = golden.write(FLAN, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(huggingface.CheckpointError, match=r"pytorch_model\.bin.*save_pretrained"):
        huggingface.load(folder)


def test_a_missing_shard_is_named(tmp_path):
    config, params = huggingface.load(golden.write(FLAN, tmp_path / "source"))
    huggingface.save(tmp_path / "out", config, params, shard_bytes=3000)
    lost = sorted((tmp_path / "out").glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(huggingface.CheckpointError, match=lost.name):
        huggingface.load(tmp_path / "out")


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "flan"])
def test_what_is_neither_folder_nor_name_is_refused(name):
    with pytest.raises(huggingface.CheckpointError, match="neither a folder nor"):
        huggingface.load(name)


def test_without_a_connection_the_error_says_how_to_go_on(monkeypatch):
    import huggingface_hub

    def unreachable(name, allow_patterns):
        assert not any("bin" in pattern for pattern in allow_patterns)
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(huggingface.CheckpointError, match=r"no route to host.*folder with config"):
        huggingface.load("google/flan-t5-base")
