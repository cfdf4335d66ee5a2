"""Flags over a YAML file over the defaults; what is not possible is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer_example.configuration import Configuration, configuration_of

ROOT = Path(__file__).parents[2]


def test_flags_go_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("steps: 7\nlora_rank: 4\ngradient_checkpointing: true\n")
    configuration = configuration_of(["--config", str(file), "--steps", "9"])
    assert (configuration.steps, configuration.lora_rank, configuration.gradient_checkpointing) == (9, 4, True)
    assert configuration.method == Configuration().method


def test_what_is_kept_makes_the_same_run(tmp_path: Path) -> None:
    configuration = configuration_of(["--run_dir", str(tmp_path / "run"), "--method", "tzsm", "--tensorboard", "false"])
    configuration.save()
    assert configuration_of(["--config", str(tmp_path / "run" / "configuration.yaml")]) == configuration


@pytest.mark.parametrize(
    "file", sorted((ROOT / "trainer_example" / "recipes").glob("*.yaml")), ids=lambda path: path.name
)
def test_recipes_are_configurations(file: Path) -> None:
    configuration = configuration_of(["--config", str(file)])
    for name, value in yaml.safe_load(file.read_text()).items():
        assert getattr(configuration, name) == value
        assert type(getattr(configuration, name)) is type(value), f"{name} is read as {value!r}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps: is 0; must be at least 1"),
        (["--temperature", "0"], "temperature: is 0.0; must be above 0"),
        (["--epochs", "2"], "use clip"),
        (["--colour", "red"], "colour"),
        (["--objective", "sac"], "sac"),
    ],
)
def test_what_is_not_possible_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ValueError)) as refusal:
        configuration_of(arguments)
    assert message in capsys.readouterr().err + str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objective: clipp", "objective: is 'clipp'; must be one of reinforce, clip"),
        ("on_outage: locl", "on_outage: is 'locl'; must be one of stop, local"),
        ("learning_rate: fast", "learning-rate: invalid float value: 'fast'"),
        ("steps: true", "steps: is True; must be of type int"),
        ("evaluation_prompts: 0", "evaluation_prompts: is 0; must be at least 1"),
    ],
)
def test_a_file_is_held_to_the_same(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SystemExit):
        configuration_of(["--config", str(tmp_path / "run.yaml")])
    assert message in capsys.readouterr().err


def test_an_unknown_option_of_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("stepz: 7\n")
    with pytest.raises(SystemExit):
        configuration_of(["--config", str(tmp_path / "run.yaml")])
    assert "no such option: stepz" in capsys.readouterr().err


def test_the_run_is_named_after_its_directory(tiny: dict[str, Any]) -> None:
    assert Configuration(**tiny).name == "run"
    assert Configuration(**{**tiny, "run_id": "other"}).name == "other"
