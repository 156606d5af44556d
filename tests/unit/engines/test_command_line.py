"""Options that no configuration knows are caught; those that it knows pass."""

from __future__ import annotations

import functools
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser
from safetensors import SafetensorError

from monai_vqgen import bundles
from monai_vqgen.engines import check_command_line, command_line
from monai_vqgen.errors import DatalistError, InputError, in_one_line, root_cause

PROGRAM = "/usr/lib/python3/site-packages/monai/bundle/__main__.py"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "train.json"
    content = {
        "max_epochs": 3,
        "model": None,
        "output_dir": "out",
        "device": "cpu",
        "prior_defs": [{"_target_": "monai_vqgen.networks.GatedPixelCNN", "num_codes": 8}],
        "free": {"a": 1, "on": False, "rate": 0.1},
        "clock": "wall",
        "initialize": ["$monai_vqgen.engines.check_command_line()"],
        "imports": ["$import monai_vqgen", "$import pathlib"],
        "run": ["$pathlib.Path(@written).write_text(repr([@output_dir, @model, @free::a]))"],
        "written": str(tmp_path / "written"),
        "dataset_dir": "my slices",
    }
    path.write_text(json.dumps(content))
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
        ["--free::rate", "1"],
        ["--free::rate", "$1/3"],
        ["--device", "cpu"],
        ["--device", "$torch.device('cpu')"],
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
        (["--free::a", "false"], "expected a whole number, such as --free::a 1"),
        (["--max_epochs", "four"], "--max_epochs four: expected a whole number, such as --max_epochs 3"),
        (["--max_epochs", "2.5"], "expected a whole number"),
        (["--free::rate", "fast"], "--free::rate fast: expected a number"),
        (["--output_dir"], "--output_dir True: expected text"),
        (["--device", "gpu"], "is no device: expected cpu, cuda or cuda:1"),
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


def test_a_gpu_that_is_not_there_is_refused_with_what_to_do(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="no GPU that torch can use; leave --device out, or give --device cpu"):
        check(config, "--device", "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check(config, "--device", "cuda:1")
    with pytest.raises(InputError, match="has 2 GPUs"):
        check(config, "--device", "cuda:2")


# --- the call of MONAI's, from Python or as a program


def from_python(config: str, **options) -> list:
    """What arrives of an output folder, a model and a number."""
    monai.bundle.run(config_file=config, logging_file=False, **options)
    return eval(Path(ConfigParser.load_config_file(config)["written"]).read_text())


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_a_call_from_python_is_checked_as_the_command_line_is(config, tmp_path):
    assert from_python(config, model="m.pt", **{"free::a": 2}) == ["out", "m.pt", 2]
    assert from_python(config, output_dir=tmp_path / "a#b") == [str(tmp_path / "a#b"), None, 1]
    for options, message in (
        ({"max_epoch": 2}, "^max_epoch is no option.*did you mean max_epochs?"),
        ({"max_epochs": "4"}, "^max_epochs 4"),
    ):
        with pytest.raises(RuntimeError) as caught:
            from_python(config, **options)
        with pytest.raises(InputError, match=message):
            raise root_cause(caught.value)


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_a_run_leaves_the_words_of_the_program_as_they_were(config, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = sys.argv
    command_line.run_bundle(["--config_file", config, "--logging_file", "False"])
    assert sys.argv is before
    assert from_python(config, model="m.pt") == ["out", "m.pt", 1]


@pytest.mark.parametrize(
    "text", ["run#2", "20240131", "1e5", "a,b", "[x]", "a@b#c", "'run#2'", "~/x", "$'a' + 'b'", "@free#a"]
)
@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_a_path_arrives_as_it_was_typed(config, monkeypatch, text):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "--config_file", config, f"--output_dir={text}", "--model", text])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(command_line, "_show_errors_plainly", lambda config: None)
    command_line.fire.Fire(monai.bundle.run, command=[*sys.argv[2:], "--logging_file", "False"])
    expected = {"'run#2'": "run#2", "~/x": "/home/me/x", "$'a' + 'b'": "ab", "@free#a": 1}.get(text, text)
    assert eval(Path(ConfigParser.load_config_file(config)["written"]).read_text()) == [expected, expected, 1]


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_a_path_with_signs_is_refused_where_tracking_has_written_to_another_already(config, monkeypatch):
    words = ["--config_file", config, "--output_dir=run#2", "--tracking", "mlflow", "--logging_file", "False"]
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", *words])
    monkeypatch.setattr(command_line, "_show_errors_plainly", lambda config: None)
    monkeypatch.setattr("monai.bundle.workflows.ConfigWorkflow.patch_bundle_tracking", lambda *_, **__: None)
    with pytest.raises(RuntimeError) as caught:
        command_line.fire.Fire(monai.bundle.run, command=sys.argv[2:])
    with pytest.raises(InputError, match="--output_dir cannot be read together with --tracking"):
        raise root_cause(caught.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no --config_file is given: give one, such as "),
        (["--config_file", "{folder}/tran.json"], "there is no configuration file .*: did you mean .*train.json?"),
        (["--config_file", "{config}", "--tracking", "wandb"], "--tracking wandb is neither mlflow nor a file"),
    ],
)
def test_what_monai_would_not_find_is_told_before_anything_is_loaded(config, monkeypatch, words, told):
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(InputError, match=told):
        command_line.run_bundle([word.format(config=config, folder=Path(config).parent) for word in words])


def test_of_an_error_in_a_worker_of_a_loader_the_line_is_its_last():
    text = """Caught RuntimeError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "x.py", line 7, in load
monai_vqgen.errors.ScanError: a.nii: unreadable
"""
    assert in_one_line(RuntimeError(text)) == "ScanError: a.nii: unreadable"


def program(config: str, *words: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "monai_vqgen", "run", "--config_file", config, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})


@pytest.mark.slow
def test_any_error_of_a_program_is_one_line_and_a_variable_shows_the_traceback(config):
    failing = ["--run", "$[1 / 0]"]
    ended = program(config, *failing)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero (MONAI_VQGEN_TRACEBACK=1 shows where)"
    assert "Traceback" not in ended.stderr
    assert "Traceback" in program(config, *failing, MONAI_VQGEN_TRACEBACK="1").stderr


@pytest.mark.slow
def test_a_file_that_is_not_there_and_a_tracking_that_is_unknown_are_one_line(config):
    for words, message in (
        (
            [config.replace("train", "tran")],
            f"there is no configuration file {config.replace('train', 'tran')}: did you mean {config}?",
        ),
        ([config, "--tracking", "wandb"], "--tracking wandb is neither mlflow nor a file"),
    ):
        ended = program(*words)
        assert ended.returncode == 1
        assert message in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_an_interrupted_program_says_how_to_go_on(config):
    content = {
        **ConfigParser.load_config_file(config),
        "resume": False,
        "run": ["$print('at work', flush=True)", "$time.sleep(60)"],
    }
    content["imports"] = ["$import monai_vqgen", "$import time"]
    Path(config).write_text(json.dumps(content))
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config]
    as_in_a_terminal = functools.partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # jobs in the background ignore it
    pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, preexec_fn=as_in_a_terminal) as process:
        while "at work" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert errors.splitlines()[-1] == "Interrupted; go on with --resume True"
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "SaveImage cannot find a suitable writer for a.nii.gz. Please install\n  File 1\nOSError: [Errno 28] No"
        ),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["MONAI", "safetensors"],
)
def test_a_full_disk_is_named_whatever_others_make_of_it(error, tmp_path):
    assert in_one_line(error, tmp_path).startswith(f"OSError: the disk of {tmp_path} is full (")


@pytest.mark.parametrize(
    "heard", ["[/a/gloo/transport/tcp/pair.cc:537] Read error [::1]:5", "Connection closed by peer"]
)
def test_of_several_processes_the_others_say_that_one_has_ended(heard):
    assert in_one_line(RuntimeError(heard)).startswith("StageError: this process stops because another one has ended")


def test_of_a_picture_that_could_not_be_written_the_reason_is_told():
    text = "SaveImage cannot find a suitable writer for a. Please install\n F\nOSError: [Errno 5] Input/output error"
    assert in_one_line(RuntimeError(text)) == "OSError: [Errno 5] Input/output error"


def test_a_full_disk_is_named_and_the_log_file_keeps_the_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", None)
    log = logging.FileHandler(tmp_path / "train.log")
    logging.getLogger().addHandler(log)
    try:
        command_line._show_errors_plainly({"output_dir": str(tmp_path / "run"), "resume": True})
        try:
            try:
                raise OSError(28, "No space left on device")
            except OSError as error:
                raise RuntimeError("Failed to evaluate $__local_refs['train']") from error
        except RuntimeError as error:
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        logging.getLogger().removeHandler(log)
        log.close()
    shown = capsys.readouterr().err
    assert shown.startswith(f"\nOSError: the disk of {tmp_path} is full (")
    assert shown.endswith("MB left): make room; go on with --resume True\n")
    assert "Traceback" in (tmp_path / "train.log").read_text()


@pytest.mark.slow
def test_a_stage_ends_with_what_it_wrote_and_the_next_command(config, tmp_path):
    (tmp_path / "earlier").touch()
    os.utime(tmp_path / "earlier", (1, 1))
    told = program(config, f"--output_dir={tmp_path}").stderr.splitlines()
    assert told[-1] == f"Written to {tmp_path}: written", "where the next configuration is not there"
    (tmp_path / "extract_codes.json").touch()
    os.utime(tmp_path / "extract_codes.json", (1, 1))
    told = program(config, f"--output_dir={tmp_path}").stderr.splitlines()[-2:]
    assert told == [
        f"Written to {tmp_path}: written",
        f"Next: python -m monai.bundle run --config_file {tmp_path}/extract_codes.json --dataset_dir 'my slices' "
        f"--model {tmp_path}/model.pt",
    ]
    (tmp_path / "evaluate.json").touch()
    os.utime(tmp_path / "evaluate.json", (1, 1))
    *_, good, following = program(config, f"--output_dir={tmp_path}").stderr.splitlines()
    assert good == (
        f"How good it is: python -m monai.bundle run --config_file {tmp_path}/evaluate.json --dataset_dir 'my slices' "
        f"--model {tmp_path}/model.pt --with_priors false --split validation"
    )
    assert following == told[-1]
    for ending in ("sys.exit(143)", "1 / 0"):
        ended = program(config, f"--output_dir={tmp_path}", "--run", f"$[{ending} for sys in [__import__('sys')]]")
        assert ended.returncode == (143 if "exit" in ending else 1)
        assert "Next:" not in ended.stderr
        assert "Written to" not in ended.stderr


def test_an_apple_gpu_that_is_not_there_is_refused(config, monkeypatch):
    for available in (False, True):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda available=available: available)
        if available:
            check(config, "--device", "mps")
        else:
            with pytest.raises(InputError, match="--device mps: this machine has no GPU of Apple's"):
                check(config, "--device", "mps")


def test_where_mlflow_writes_is_said_when_the_environment_decides(config, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    check(config, "--free::a", "2")
    assert not caplog.records
    check(config, "--tracking", "mlflow", "--tracking_uri", "mine")
    (record,) = caplog.records
    assert "MLflow writes to http://elsewhere:5000, whatever --tracking_uri says" in record.getMessage()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    check(config, "--tracking", "mlflow")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("sign", "$@%")
@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_the_name_of_a_file_is_not_run_whatever_it_begins_with(config, tmp_path, monkeypatch, sign):
    """MONAI takes an option that begins with a dollar for an expression, and names come from anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(command_line, "_show_errors_plainly", lambda config: None)
    name = f"{sign}__import__('os').mkdir('made')"
    Path(name).touch()
    command_line.run_bundle(["--config_file", config, "--model", name, "--logging_file", "False"])
    assert Path("written").read_text() == repr(["out", f"./{name}", 1])
    monkeypatch.setattr(sys, "argv", [])
    if sign != "%":  # of the contents of other files, which MONAI puts in before anything of ours runs
        assert from_python(config, model=name) == ["out", f"./{name}", 1]
    assert not Path("made").exists()


def test_a_stage_run_from_python_does_not_run_the_name_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "$__import__('os').mkdir('made')"
    Path(name).mkdir()
    assert f"./{name}" in shlex.split(bundles.stage_command("extract_slices", options={"dataset_dir": Path(name)}))
    with pytest.raises(DatalistError, match="holds no scans"):
        bundles.run_stage("extract_slices", options={"dataset_dir": name, "output_dir": "o"})
    assert not (tmp_path / "made").exists()
