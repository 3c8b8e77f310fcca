"""The command line: names, types, what goes before what, and what a person is told."""

import json
import re

import pytest

from diffusers_crosswkv.finetuning.arguments import (
    CHOICES,
    ELSEWHERE,
    FIELDS,
    flat_settings,
    make_parser,
    parse_settings,
)
from diffusers_crosswkv.finetuning.presets import PRESETS

NEEDED = ("--model", "user/name", "--data", "digits", "--output_dir", "runs/x")


def parsed(*arguments):
    return parse_settings([*NEEDED, *arguments])[0]


def test_every_setting_is_explained():
    actions = {action.dest: action for action in make_parser()._actions}
    for name in FIELDS:
        assert len(actions[name].help) > 10, name
    text = make_parser().format_help()
    for group in ("model:", "data:", "training:", "validation:", "records:", "hub:"):
        assert f"\n{group}\n" in text
    assert "(free)" not in text


def test_dashes_and_underscores():
    with_dashes = parsed("--max-train-steps", "7", "--no-train-text-encoder", "--validation-prompts", "a-b_c", "d")
    with_underscores = parsed("--max_train_steps=7", "--no-train_text_encoder", "--validation_prompts", "a-b_c", "d")
    assert with_dashes == with_underscores
    assert with_dashes.validation.validation_prompts == ("a-b_c", "d")
    assert with_dashes.training.max_train_steps == 7


def test_command_line_file_preset_default(tmp_path):
    for name, text in (
        ("a.yaml", "learning-rate: 1e-3\nlora_rank: 4\npreset: lora\nvalidation_prompts: [x, y]\n"),
        ("a.json", '{"learning_rate": 1e-3, "lora_rank": 4, "preset": "lora", "validation_prompts": ["x", "y"]}'),
    ):
        (tmp_path / name).write_text(text)
        config = parsed("--config", str(tmp_path / name), "--lora_rank", "8")
        assert (config.training.lora_rank, config.training.learning_rate, config.training.weights) == (8, 1e-3, "lora")
        assert config.validation.validation_prompts == ("x", "y")
    assert parsed("--preset", "lora").training.learning_rate == 1e-4
    assert parsed().training.learning_rate == 1e-5
    assert parsed("--optimizer", "prodigy").training.learning_rate == 1.0
    assert not parsed().training.train_text_encoder


def test_the_paper():
    config = parse_settings(["--from_scratch", "dir7_s", "--preset", "paper", *NEEDED[2:]])[0]
    training = config.training
    assert (training.optimizer, training.learning_rate) == ("adamw", 1e-4)
    assert (training.batch_size, training.max_train_steps) == (256, 100_000)
    assert config.model.prepend_endoftext


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit(preset):
    start = () if "from_scratch" in PRESETS[preset] else NEEDED[:2]
    assert parse_settings([*start, *NEEDED[2:], "--preset", preset])[0]


def test_settings_are_a_file_of_settings(tmp_path):
    config = parsed(
        "--preset", "state", "--hub_token", "hf_secret", "--validation_prompts", "a", "--data_split", "all"
    )
    (tmp_path / "settings.json").write_text(json.dumps(flat_settings(config)))
    assert "hf_secret" not in (tmp_path / "settings.json").read_text() + repr(config)
    assert flat_settings(parse_settings(["--config", str(tmp_path / "settings.json")])[0]) == flat_settings(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_batch_size", "4"], "no --train_batch_size here; use --batch_size, which counts"),
        (["--resume_from_checkpoint", "latest"], "the same command goes on by itself"),
        (["--learning_rat", "4"], "no setting --learning_rat; did you mean --learning_rate?"),
        (["--no-flop"], "no setting --no-flop; did you mean --flip?"),
        (["--zzz"], "no setting --zzz; --help lists all"),
        (["stray"], "there is no place for 'stray'"),
        (["--optimizer", "sgd"], "invalid choice: 'sgd'"),
        (["--batch_size", "many"], "invalid int value: 'many'"),
    ],
)
def test_arguments_that_are_none(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed(*arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_what_took_the_place_of_diffusers_arguments_exists():
    for old, new in ELSEWHERE.items():
        assert old not in FIELDS
        assert new.startswith(("--", "nothing"))
        for name in re.findall(r"--(\w+)", new):
            assert name in FIELDS, old
        for name, value in re.findall(r"--(\w+) (\w+)", new):
            assert name not in CHOICES or value in CHOICES[name], old


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rate: fast", "`learning_rate` must be float, got 'fast'"),
        ("batch_size: 1.5", "`batch_size` must be int, got 1.5"),
        ("flip: 1", "`flip` must be bool, got 1"),
        ("train_batch_size: 4", "use --batch_size"),
        ("- a\n- b", "must hold settings as {name: value}, got list"),
        ("{a: ", "must be YAML or JSON"),
    ],
)
def test_a_file_that_does_not_fit(content, message, tmp_path):
    (tmp_path / "settings.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"settings\.yaml") as error:
        parsed("--config", str(tmp_path / "settings.yaml"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from_scratch", "dir7_s"], "one of them; got both"),
        (["--vae", "a/b"], "`--vae` goes with `--from_scratch`"),
        (["--zero_terminal_snr", "--prediction_type", "epsilon"], "where there is noise alone"),
        (["--preset", "fast"], "`preset` must be one of paper"),
        (["--config", "nowhere.yaml"], "no file of settings at nowhere.yaml"),
        (["--validation_prompts_file", "nowhere.txt"], "no file of prompts at nowhere.txt"),
        (["--validation_steps", "0"], "`validation_steps` must be at least 1, got 0"),
        (["--report_to", "none", "wandb"], "`report_to` must be trackers or none alone"),
        (["--hub_model_id", "a/b/c"], "`hub_model_id` must be such as 'user/name'"),
        (["--crop", "center", "--lr_warmup_steps", "-1"], "`lr_warmup_steps` must be at least 0"),
    ],
)
def test_settings_that_do_not_fit(arguments, message):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        parsed(*arguments)
    assert message in str(error.value)


def test_settings_that_are_missing():
    with pytest.raises(ValueError, match="--data and --output_dir must be given"):
        parse_settings(["--model", "user/name"])
    with pytest.raises(ValueError, match="got neither"):
        parse_settings(NEEDED[2:])
    with pytest.raises(ValueError, match=r"`from_scratch` must be one of the presets dir7_h.*got 'dir8'"):
        parse_settings(["--from_scratch", "dir8", *NEEDED[2:]])
