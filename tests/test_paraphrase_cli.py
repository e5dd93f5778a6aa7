"""The command that builds and shows contrastive sets."""

from __future__ import annotations

import pathlib

import pytest
from data_files import WEATHER, real_data, weather_rows, write_json, write_jsonl

from coin_jax.config_files import from_json, load_file, to_json
from coin_jax.curation.config import SetConfig, validate
from coin_jax.data.set_format import read_manifest
from coin_jax.paraphrase import main

CONFIGS = pathlib.Path(__file__).parents[1] / "configs" / "data"

CONFIG = """
from coin_jax.config import TaskConfig
from coin_jax.curation.config import SetConfig, SourceConfig

def get_config(arg=""):
    return SetConfig(sources=(SourceConfig(
        files=(arg + "/weather.jsonl",),
        template_files=(arg + "/templates.json",),
        tasks=(TaskConfig("weather", "", {"text": "report"}, {"rain": "wet", "sun": "dry"}),),
    ),))
"""


@pytest.fixture
def config(tmp_path):
    write_jsonl(tmp_path / "weather.jsonl", weather_rows(60))
    write_json(tmp_path / "templates.json", {"weather": WEATHER})
    (tmp_path / "config.py").write_text(CONFIG)
    return f"{tmp_path / 'config.py'}:{tmp_path}"


def test_a_set_is_built_shown_and_rebuilt_only_when_asked(tmp_path, config, capsys):
    output = tmp_path / "set"
    build = ["--config", config, "--output", str(output), "--held-out-share", "0"]
    assert main(build) == 0
    text = capsys.readouterr().out
    assert "weather" in text
    assert "60" in text
    assert read_manifest(output).content_hash in text

    assert main(["--output", str(output), "--inspect", "--pairs-shown", "1"]) == 0
    text = capsys.readouterr().out
    assert "in town number" in text
    assert "hard negative" in text

    assert main(build) == 1
    assert "is there already" in capsys.readouterr().err
    rules = ["--paraphrase.methods", "rules", "--paraphrase.wordings", "2"]
    assert main([*build, "--overwrite", *rules]) == 0
    origins = [wording.origin for wording in read_manifest(output).tasks[0].wordings]
    assert origins.count("rule") == 4  # two of each of the two training wordings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output is empty"),
        (["--output", "x"], "sources: must name at least one"),
        (["--output", "{tmp}", "--inspect"], "manifest"),
        (["--output", "{tmp}/new", "--config", "nothing.py"], "there is no file nothing.py"),
        (["--output", "{tmp}/new", "--config", "{config}", "--pairs", "-1"], "pairs = -1"),
    ],
)
def test_mistakes_end_in_a_sentence(tmp_path, config, capsys, arguments, message):
    arguments = [each.format(tmp=tmp_path, config=config) for each in arguments]
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_unknown_field_ends_with_the_near_ones(tmp_path, config, capsys):
    with pytest.raises(SystemExit):
        main(["--config", config, "--output", str(tmp_path / "set"), "--held-out-wording", "1"])
    assert "held-out-wordings" in capsys.readouterr().err


def test_a_config_goes_through_json(tmp_path, config):
    before = load_file(config, SetConfig)
    assert from_json(to_json(before), "config", SetConfig) == before


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_config_of_data_is_valid(name):
    argument = f":{real_data('tasks').parent}" if name == "tasks" else ""
    assert validate(load_file(f"{CONFIGS / name}.py{argument}", SetConfig)).sources
