"""The command line tells what it can do, hands on what it is told, and lets shells complete it."""

from __future__ import annotations

import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import monai_vqgen
from monai_vqgen.__main__ import PROGRAM, build_parser, main
from monai_vqgen.data import ScanOptions, make_phantoms
from monai_vqgen.demo.plan import Costs
from monai_vqgen.errors import InputError
from monai_vqgen.models import TrainedModel

# verb -> the function it calls
VERBS = {
    "demo": "monai_vqgen.demo.run.run_demo",
    "train": "monai_vqgen.demo.run.run_demo",
    "plan": "monai_vqgen.demo.plan.plan_run",
    "gallery": "monai_vqgen.demo.gallery.write_gallery",
    "compress": "monai_vqgen.models.compress_files",
    "decompress": "monai_vqgen.models.decompress_files",
    "phantoms": "monai_vqgen.data.make_phantoms",
    "download": "monai_vqgen.data.download_openneuro",
    "verify": "monai_vqgen.data.verify.verify_folder",
    "run": "monai_vqgen.engines.command_line.run_bundle",
}
STAGES = ("sample", "reconstruct", "denoise", "anomaly", "slices", "evaluate")
WORDS = {
    "compress": ["compress", "a"],
    "decompress": ["decompress", "a"],
    "train": ["train", "scans"],
    "verify": ["verify", "scans"],
    "plan": ["plan", "scans"],
    "run": ["run", "--seed", "1"],
}


@pytest.fixture(autouse=True)
def models_stay_on_disk(monkeypatch):
    """A model is what names it."""
    monkeypatch.setattr(TrainedModel, "from_bundle", lambda path: path)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """`a` and `scans` are there."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "scans"):
        (tmp_path / name).mkdir()


@pytest.mark.parametrize("line", ["--help", "train --help", "sample --help"])
def test_help_waits_for_no_imports(line):
    code = f"""
import sys
from monai_vqgen.__main__ import main
try:
    main({line.split()})
finally:
    print({{"numpy", "torch", "monai"}} & {{*sys.modules}}, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")
    assert done.stderr == "set()\n"


@pytest.mark.parametrize(
    "line",
    [
        "reconstruct nowhere",
        "reconstruct a --dataset_dir nowhere",
        "evaluate --dataset_dir=nowhere",
        "train nowhere",
        "demo --data nowhere",
        "plan nowhere",
        "verify nowhere",
    ],
)
def test_a_folder_that_is_not_there_is_told_before_anything_is_imported(line):
    code = f"""
import sys
from monai_vqgen.__main__ import main
status = main({line.split()})
sys.exit(9 if {{"numpy", "torch", "monai"}} & {{*sys.modules}} else status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: nowhere does not exist: ")
    assert "Traceback" not in done.stderr


def test_the_command_of_a_stage_is_told_before_anything_is_imported():
    code = """
import io, sys
from monai_vqgen.__main__ import main

class Printed(io.StringIO):
    def write(self, text):
        sys.exit(text + ("imported" if {"numpy", "torch", "monai"} & {*sys.modules} else ""))

sys.stdout = Printed()
main(["sample", "--num_samples", "2"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("python -m monai.bundle run --config_file ")
    assert done.stderr.endswith("--num_samples 2 --output_dir out/samples\n")


@pytest.mark.parametrize("path", ["~/scans", "'20240131'", "$'a' + 'b'", "nowhere --dataset_dir a"])
def test_what_may_well_be_there_is_left_to_the_stage(path, call_of, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "20240131").mkdir()
    words = [path] if "--" not in path else path.split()
    assert words[0] in call_of(main, ["reconstruct", *words], VERBS["run"]).given["words"]


def test_these_are_all_verbs():
    assert set(build_parser()._subparsers._group_actions[0].choices) == {*VERBS, *STAGES}


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"verify", "train", "plan"}))
def test_what_is_not_given_is_what_the_function_takes_by_default(verb, call_of):
    call = call_of(main, WORDS.get(verb, [verb]), VERBS[verb])
    assert call.given == call.defaults | {name: call.given[name] for name in call.required}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "demo --data a --output b --seed 3 --size c",
            {"data": "a", "output": "b", "seed": 3, "size": "c", "dimensions": None},
        ),
        (
            "train a --output b --seed 3 --size c",
            {"data": "a", "output": "b", "seed": 3, "size": "c", "dimensions": None},
        ),
        (
            "gallery --output a --model b --seed 3 --overwrite",
            {"model": "b", "folder": "a", "seed": 3, "overwrite": True},
        ),
        (
            "compress a b --output c --model d --mode anywhere --plane coronal --condition sex=f age=30 --overwrite "
            "--lossless",
            {"files": ["a", "b"], "output_dir": "c", "model": "d", "mode": "anywhere", "plane": "coronal"}
            | {"condition": {"sex": "f", "age": "30"}, "lossless": True, "overwrite": True},
        ),
        (
            "decompress a b --output c --model d --lossy --overwrite",
            {"files": ["a", "b"], "output_dir": "c", "model": "d", "lossy": True, "overwrite": True},
        ),
        ("phantoms --output a --subjects 5 --seed 3", {"folder": "a", "num_subjects": 5, "seed": 3}),
        (
            "download ds9 --output a --subjects 01 02 --suffix T2w --overwrite --mirror b",
            {"accession": "ds9", "folder": "a", "subjects": ["01", "02"], "suffix": "T2w"}
            | {"overwrite": True, "base_url": "b"},
        ),
        ("run training --level 0 --help x", {"words": ["training", "--level", "0", "--help", "x"]}),
        (
            "download ds9",
            {"accession": "ds9", "folder": "out/ds9", "subjects": None, "suffix": "T1w"}
            | {"overwrite": False, "base_url": None},
        ),
    ],
)
def test_every_option_reaches_the_function(line, expected, call_of):
    words = line.split()
    assert call_of(main, words, VERBS[words[0]]).given == expected


@pytest.mark.parametrize(
    ("error", "told", "status"),
    [
        (InputError("num_subjects=0: at least 1 is expected"), "num_subjects=0: at least 1 is expected", 2),
        (KeyError("x"), "KeyError: 'x'", 2),
        (KeyboardInterrupt(), "Interrupted", 130),
    ],
)
def test_any_error_is_one_line_and_a_status(monkeypatch, capsys, error, told, status):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("monai_vqgen.data.make_phantoms", fail)
    monkeypatch.delenv("MONAI_VQGEN_TRACEBACK", raising=False)
    assert main(["phantoms"]) == status
    assert capsys.readouterr().err == f"error: {told}\n"
    monkeypatch.setenv("MONAI_VQGEN_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["phantoms"])


def test_an_option_is_not_taken_by_a_part_of_its_name(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "SCANS", "--minute", "3"])
    assert "unrecognized arguments: --minute" in capsys.readouterr().err


def test_a_program_that_is_told_to_stop_ends_as_one_that_fails_does(monkeypatch):
    """So that what it has begun is put away."""
    handlers = {}
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.update({number: handler}))
    monkeypatch.setattr(sys, "argv", [PROGRAM, "--version"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(Path(monai_vqgen.__file__).with_name("__main__.py")), run_name="__main__")
    with pytest.raises(SystemExit) as status:
        handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert status.value.code == 128 + signal.SIGTERM


def test_what_verify_is_told_reaches_the_function(call_of):
    words = ["verify", "scans", "--plane", "coronal", "--suffix", "T2w", "--subject_pattern", "p(.)"]
    given = call_of(main, words, VERBS["verify"]).given
    assert given["folder"] == "scans"
    assert given["scans"][:2] == ("T2w", "p(.)")
    assert given["slices"].plane == "coronal"


def test_what_plan_is_not_told_is_the_functions_default(call_of):
    call = call_of(main, ["plan", "scans"], VERBS["plan"])
    assert call.given == {**call.defaults, "data": "scans", "scans": ScanOptions()}


def test_every_option_of_plan_reaches_the_function(call_of):
    words = (
        "plan a --output b --minutes 9 --memory_gb 3 --plane coronal --suffix T2w --subject_pattern p(.) --overwrite"
    )
    given = call_of(main, words.split(), VERBS["plan"]).given
    assert given.pop("scans")[:2] == ("T2w", "p(.)")
    expected = {"data": "a", "output": "b", "minutes": 9, "memory_gb": 3, "plane": "coronal", "overwrite": True}
    assert given == expected


def test_plan_prints_what_is_skipped_and_what_comes_next(tmp_path, monkeypatch, capsys):
    make_phantoms(tmp_path / "scans", 4, seed=1, voxel_mm=8.0, progress=False)
    first, *_ = sorted((tmp_path / "scans").glob("*.nii.gz"))
    first.write_bytes(b"damaged")
    monkeypatch.setattr("monai_vqgen.demo.plan.try_design", lambda *_, **__: Costs([4, 2, 2], [1e-4] * 3))
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "scans", "--output", "my plan.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"skipped: {first.name}: unreadable")
    assert any(line.startswith("pixel_mm: ") for line in lines)
    following = lines[lines.index("Written to my plan.yaml; read and change it. Next:") + 1 :]
    assert following[0] == "monai-vqgen train scans --size 'my plan.yaml'"
    assert [line.startswith("python -m monai.bundle run ") for line in following[2:]] == [True] * 5
    assert main(["plan", "scans", "--output", "my plan.yaml"]) == 2
    assert "changes of yours" in capsys.readouterr().err


def test_help_tells_every_verb_and_what_it_is_not_for(capsys):
    with pytest.raises(SystemExit) as status:
        main(["--help"])
    assert status.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {PROGRAM}")
    assert "not for diagnosis" in text
    for verb in VERBS:
        assert f"\n    {verb} " in text


def test_help_and_completion_do_not_wait_for_torch():
    code = "import sys, monai_vqgen.__main__ as m; m.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- completion, by the shell itself


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What bash offers for the last word of a line, in a folder with a file and a folder in it."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("shell")
    (folder / "scans_folder").mkdir()
    (folder / "scans_file.md").touch()
    printed = subprocess.run(
        [sys.executable, "-m", "monai_vqgen", "--print-completion", "bash"], capture_output=True, text=True, check=True
    )
    (folder / "completion.bash").write_text(printed.stdout)

    def offers(*words: str) -> list[str]:
        lines = [
            "source completion.bash",
            f"COMP_WORDS=({PROGRAM} {' '.join(repr(word) for word in words)})",
            f"COMP_CWORD={len(words)}",
            f'function=$(complete -p {PROGRAM} | sed "s/.*-F \\([^ ]*\\).*/\\1/")',
            f'"$function" {PROGRAM} {words[-1]!r} {([PROGRAM, *words])[-2]!r}',
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
        done = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.split()

    return offers


def test_bash_completes_verbs_options_and_folders(complete):
    assert complete("dem") == ["demo"]
    assert set(complete("")) >= set(VERBS)
    assert complete("demo", "--si") == ["--size"]
    assert complete("download", "--ov") == ["--overwrite"]
    assert complete("demo", "--data", "scans_") == ["scans_folder"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh", "fish"])
def test_every_shell_is_told_every_verb(shell, capsys):
    with pytest.raises(SystemExit) as status:
        main(["--print-completion", shell])
    assert status.value.code == 0
    printed = capsys.readouterr().out
    assert PROGRAM in printed
    assert all(verb in printed for verb in VERBS)


def test_the_name_that_is_completed_is_the_one_that_is_installed():
    scripts = (Path(__file__).parents[2] / "setup.cfg").read_text()
    assert f"{PROGRAM} = monai_vqgen.__main__:main" in scripts


@pytest.mark.parametrize(
    ("line", "config", "words"),
    [
        (
            "sample --num-samples 2 --sex f",
            "sample",
            ["--num_samples", "2", "--sex", "f", "--output_dir", "out/samples"],
        ),
        ("reconstruct a --output-dir b", "inference", ["--dataset_dir", "a", "--output_dir", "b"]),
        (
            "evaluate a --model=my-run/m.pt",
            "evaluate",
            ["--dataset_dir", "a", "--model", "my-run/m.pt", "--output_dir", "out/evaluation"],
        ),
        ("slices a", "extract_slices", ["--dataset_dir", "a", "--output_dir", "out/slices"]),
        ("evaluate --dataset_dir a", "evaluate", ["--dataset_dir", "a", "--output_dir", "out/evaluation"]),
    ],
)
def test_a_stage_has_a_short_name_and_tells_monais_command(line, config, words, call_of, capsys):
    given = call_of(main, line.split(), VERBS["run"]).given["words"]
    assert given[0] == "--config_file"
    assert given[1].endswith(f"bundle/configs/{config}.json")
    assert given[2] == "--bundle_root"
    assert given[4:] == words
    assert capsys.readouterr().out == f"python -m monai.bundle run {' '.join(given)}\n"


def test_a_stage_tells_its_options_and_what_it_misses(capsys):
    assert main(["reconstruct", "--help"]) == 0
    told = capsys.readouterr().out
    assert "usage: monai-vqgen reconstruct SCANS [--option value ...]" in told
    assert '--output_dir           "out/reconstructions"' in told
    assert "_target_" not in told
    assert main(["reconstruct"]) == 2
    assert "error: reconstruct needs SCANS: monai-vqgen reconstruct SCANS" in capsys.readouterr().err
