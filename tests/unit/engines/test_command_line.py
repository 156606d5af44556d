"""Options that no configuration knows are caught; those that it knows pass."""

from __future__ import annotations

import json

import pytest

from monai_vqgen.engines import check_command_line
from monai_vqgen.errors import InputError

PROGRAM = "/usr/lib/python3/site-packages/monai/bundle/__main__.py"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "train.json"
    network = {"_target_": "monai_vqgen.networks.GatedPixelCNN", "num_codes": 8}
    path.write_text(
        json.dumps({"max_epochs": 3, "model": None, "prior_defs": [network], "free": {"a": 1, "on": False}})
    )
    return str(path)


def check(config: str, *arguments: str) -> None:
    check_command_line([PROGRAM, "run", "training", "--config_file", config, *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max_epochs", "5"],
        ["--max-epochs=5"],
        ["--model", "run/model.pt"],
        ["--prior_defs::0::num_codes", "16"],
        ["--prior_defs#0#num_codes", "16"],
        ["--prior_defs::0::num_layers", "2"],  # not in the file, but an argument of the class
        ["--free::a", "-1"],
        ["--free::a", "false"],  # not a switch: whatever it means, it is not taken for true
        *[["--free::on", text] for text in ("True", "true", "False", "0", "1", "$True", "@off")],
        ["--free::on"],
        ["--meta_file", "metadata.json", "--logging_file", "logging.conf"],
        ["--tracking", "mlflow", "--experiment_name", "first"],
        ["--_meta_::version", "1"],
    ],
)
def test_known_options_pass(config, arguments):
    check(config, *arguments)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--max_epoch", "5"], "--max_epochs"),
        (["--max_epochs", "5", "--modle=x"], "--model"),
        (["--prior_defs::0::num_code", "16"], "--prior_defs::0::num_codes"),
        (["--prior_defs::1::num_codes", "16"], "no option"),
        (["--free::b", "1"], "--free::a"),
        (["--experiment_name", "first"], "no option"),
    ],
)
def test_unknown_options_are_refused_with_what_is_near(config, arguments, hint):
    with pytest.raises(InputError, match=hint):
        check(config, *arguments)


@pytest.mark.parametrize("text", ["false", "no", "off", "None"])
def test_a_switch_that_would_count_as_true_is_refused_with_the_word_that_works(config, text):
    with pytest.raises(InputError, match="--free::on False"):
        check(config, "--free::on", text)


def test_several_files_and_an_args_file_are_read(config, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("# the command\npatience: 3\n")
    both = f"['{config}','{overlay}']"
    check(both, "--patience", "4")
    check(f"{config},{overlay}", "--patience", "4")
    arguments = tmp_path / "args.json"
    arguments.write_text(json.dumps({"config_file": [config], "max_epoch": 5}))
    with pytest.raises(InputError, match="max_epoch"):
        check_command_line([PROGRAM, "run", "--args_file", str(arguments)])


def test_other_programs_are_left_alone():
    check_command_line(["/usr/bin/pytest", "run", "--no_such_option"])
