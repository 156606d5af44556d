"""Every command of the README runs: the stages in their order, from another working directory, at a tiny size."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from forks import run_program

from monai_vqgen.__main__ import build_parser
from monai_vqgen.data import make_phantoms
from tools.__main__ import build_parser as tools_parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ("getting_started.md", "training.md", "data.md", "sampling.md", "evaluation.md")
GUIDES = "\n".join((ROOT / "docs" / name).read_text() for name in PAGES)

TINY_NETWORK = {
    "network_def::channels": "16",
    "network_def::residual_channels": "8",
    "network_def::num_residual_blocks": "1",
    "network_def::num_codes": "16",
}
TINY_GENERATIVE = {
    "network_def::widths": "[8,8,8,16]",
    "adversarial_start": "0",
    "discriminator_def::num_layers_d": "2",
}
TINY_PRIOR = {"prior_def::channels": "16", "prior_def::num_layers": "2", "prior_def::attention_every": "2"}
EPOCHS = {"max_epochs": "1", "batch_size": "8"}
OVERRIDES = {
    "extract_slices.json": {"image_size": "[32,32]", "pixel_mm": "7.0", "position_step_mm": "20.0"},
    "train.json": TINY_NETWORK | EPOCHS,
    "extract_codes.json": {},
    "train_prior.json": TINY_PRIOR | EPOCHS,
    "inference.json": {"image_size": "[32,32]", "pixel_mm": "7.0"},
    "sample.json": {"num_samples": "2"},
    "evaluate.json": {"num_samples": "2"},
}


def stage_commands() -> list[str]:
    """The commands of the README's table of stages, top to bottom; the prior's is there once for each level."""
    rows = re.findall(r"^\| \w+ \| `(python -m monai\.bundle run [^`]+)`(.*)$", README, flags=re.MULTILINE)
    commands = []
    for command, rest in rows:
        commands.append(command)
        if "`--level 1`" in rest:
            commands.append(command.replace("--level 0", "--level 1"))
    return commands


def fenced_commands() -> list[str]:
    """The commands of the guides' bash blocks that start a program of ours, not make."""
    blocks = re.findall(r"```bash\n(.*?)```", README + GUIDES, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(python|torchrun) ", line)]


def fenced_command(part: str) -> str:
    """The one of them that has a part."""
    (command,) = [command for command in fenced_commands() if part in command]
    return command


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MONAI_FAIL_ON_DUPLICATE_CONFIG": "1"}
    return run_program(arguments, folder, environment, timeout=600)


def prepared(command: str, folder: Path) -> list[str]:
    """The command with absolute paths and tiny sizes, as someone in another folder would type it."""
    program, *words = shlex.split(command)
    arguments = [sys.executable, *(["-m", "torch.distributed.run"] if program == "torchrun" else []), *words]
    config = next(match.group(1) for word in words if (match := re.search(r"bundle/configs/(\w+\.json)", word)))
    for index, word in enumerate(arguments):
        if "bundle/configs/" in word:
            arguments[index] = word.replace("bundle/configs/", f"{ROOT}/bundle/configs/")
        elif word == "SCANS":
            arguments[index] = str(folder / "scans")
        elif word.startswith("out/"):
            arguments[index] = str(folder / word)
    arguments += ["--bundle_root", str(ROOT / "bundle")]
    for name, value in OVERRIDES[config].items():
        if f"--{name}" in arguments:
            arguments[arguments.index(f"--{name}") + 1] = value
        else:
            arguments += [f"--{name}", value]
    return arguments


@pytest.mark.slow
def test_the_stages_run_in_the_order_of_the_table(tmp_path: Path) -> None:
    make_phantoms(tmp_path / "scans", num_subjects=8, seed=1)
    commands = stage_commands()
    assert len(commands) == 9
    for command in commands:
        done = run(prepared(command, tmp_path), tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    out = tmp_path / "out"
    assert json.loads((out / "slices/datalist.json").read_text())["test"]
    assert (out / "slices/contact_sheet.png").stat().st_size > 0
    for name in ("autoencoder/model.pt", "priors/model_prior_level0.pt", "priors/model_prior_level1.pt"):
        assert (out / name).stat().st_size > 0
    scan = nib.load(sorted((tmp_path / "scans").rglob("*.nii.gz"))[0])
    reconstructed = [nib.load(path) for path in sorted((out / "reconstructions").rglob("*.nii.gz"))]
    assert len(reconstructed) == 8
    assert any(image.shape == scan.shape and abs(image.affine - scan.affine).max() < 1e-4 for image in reconstructed)
    assert len(list((out / "samples").rglob("*.nii.gz"))) == 2
    assert json.loads((out / "evaluation/metrics.json").read_text())["sampling"]["num_samples"] == 2

    again = run(prepared(commands[0], tmp_path), tmp_path)
    assert again.returncode != 0
    assert "overwrite" in again.stderr
    typo = run([*prepared(commands[1], tmp_path), "--max_epoch", "7"], tmp_path)
    assert typo.returncode != 0
    assert "max_epochs" in typo.stderr


def test_every_command_of_the_bash_blocks_is_one_that_these_tests_run() -> None:
    commands = fenced_commands()
    (verify,) = (command for command in commands if " verify " in command)  # by tests/unit/data/test_verify.py
    assert build_parser().parse_args(shlex.split(verify)[3:]).verb == "verify"
    commands.remove(verify)
    planned = [command for command in commands if is_planned(command)]  # all run by one test below
    assert len(planned) == 4
    commands = [command for command in commands if command not in planned]
    (blank,) = (command for command in commands if " blank_cells " in command)  # by tests/unit/tools
    assert tools_parser().parse_args(shlex.split(blank)[3:]).verb == "blank_cells"
    commands.remove(blank)
    assert len(commands) == 7
    assert ["sample.json" in commands[0], "inference.json" in commands[1]] == [True, True]
    assert "train_generative.json" in commands[2]
    assert "train_decoder.json" in commands[3]
    assert "--nproc_per_node=2" in commands[4]
    assert "--positions_mm" in commands[5]
    # run against a local server by tests/unit/data/test_download.py; here, that it is understood
    options = build_parser().parse_args(shlex.split(commands[6])[3:])
    assert (options.verb, options.accession, options.output) == ("download", "ds002748", "out/ds002748")


def is_planned(command: str) -> bool:
    return " plan " in command or "plan.yaml" in command


@pytest.mark.slow
def test_a_plan_for_scans_is_written_and_trained_with_as_it_is(clone) -> None:
    """With a hundredth of the time, and voxels of 6 mm."""
    make_phantoms(clone.folder / "SCANS", 8, seed=1, voxel_mm=6.0, progress=False)
    plan, train, *stages = (command for command in fenced_commands() if is_planned(command))
    assert "--minutes 60" in plan
    printed = clone.run(plan.replace("--minutes 60", "--minutes 0.6")).splitlines()
    planned = yaml.safe_load((clone.folder / "plan.yaml").read_text())
    for command in stages:
        clone.run(command)
    datalist = json.loads((clone.folder / "out/slices/datalist.json").read_text())
    assert datalist["image_size"] == planned["image_size"]
    assert all("plane already taken" in entry["reason"] for entry in datalist["skipped"]), "every brain fits"
    record = json.loads((clone.folder / "out/autoencoder/model.json").read_text())
    assert record["architecture"]["strides"] == planned["network_def"]["strides"] == [4, 2]
    assert (record["image_size"], record["pixel_mm"]) == (planned["image_size"], planned["pixel_mm"])
    commands = [line for line in printed if line.startswith("python -m monai.bundle run ")]
    assert commands[:2] == stages
    for command in commands[2:]:  # the codes, and a prior a level
        clone.run(command)
    assert (clone.folder / "out/autoencoder/model_prior_level1.pt").is_file()
    clone.run(train)
    assert (clone.folder / "out/model/report.html").stat().st_size > 0
    assert json.loads((clone.folder / "out/model/metrics.json").read_text())["sampling"]["num_samples"] > 0


@pytest.mark.slow
def test_the_weights_that_ship_need_nothing_else(tmp_path: Path) -> None:
    make_phantoms(tmp_path / "scans", num_subjects=2, seed=1, voxel_mm=4.0, progress=False)
    for command in fenced_commands()[:2]:
        arguments = [sys.executable, *shlex.split(command)[1:]]
        places = {"SCANS": str(tmp_path / "scans"), "bundle": str(ROOT / "bundle")}
        arguments = [places.get(word, re.sub("^bundle/", f"{ROOT}/bundle/", word)) for word in arguments]
        done = run(arguments, tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    samples = json.loads((tmp_path / "out/shipped/samples/samples.json").read_text())["samples"]
    assert [sample["condition"] for sample in samples] == [{"age": 30, "position_mm": 65, "sex": "f"}] * 16
    for scan in (tmp_path / "scans").rglob("*.nii.gz"):
        (path,) = (tmp_path / "out/shipped/reconstructions").rglob(f"{scan.name.removesuffix('.nii.gz')}_recon.nii.gz")
        assert nib.load(path).shape == nib.load(scan).shape


@pytest.mark.slow
def test_the_command_for_own_scans_cuts_one_coronal_slice_a_scan(tmp_path: Path) -> None:
    make_phantoms(tmp_path / "scans", num_subjects=3, seed=1, voxel_mm=4.0, progress=False)
    arguments = prepared(fenced_command("--plane coronal"), tmp_path)
    done = run(arguments, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    datalist = json.loads((tmp_path / "out/central/datalist.json").read_text())
    records = [record for split in ("training", "validation", "test") for record in datalist[split]]
    assert len(records) == 3
    assert {record["plane"] for record in records} == {"coronal"}
    assert all(abs(record["position_mm"] - 80) <= 2.0 for record in records)  # half of a voxel of 4 mm
    assert nib.load(tmp_path / "out/central" / records[0]["image"]).shape[:2] == (32, 32)


@pytest.mark.slow
def test_the_commands_for_generation_train_against_discriminators(tmp_path: Path) -> None:
    write_slices(tmp_path / "out/slices")
    arguments = prepared(fenced_command("--output_dir out/generative"), tmp_path)
    for name, value in TINY_GENERATIVE.items():
        arguments += [f"--{name}", value]
    for name in TINY_NETWORK:  # those of another network
        if name != "network_def::num_codes":
            del arguments[(place := arguments.index(f"--{name}")) : place + 2]
    done = run(arguments, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "out/generative/history.json").read_text())["train"]
    assert history["discriminator_loss"][0] > 0
    record = json.loads((tmp_path / "out/generative/model.json").read_text())
    assert record["architecture"]["widths"] == [8, 8, 8, 16]
    for command in stage_commands()[2:4]:  # codes and the prior of the first level
        place = command.replace("out/autoencoder", "out/generative").replace("out/priors", "out/generative")
        unconditional = ["--condition_names", "[]"] if "train_prior" in command else []  # its slices have no position
        done = run([*prepared(place, tmp_path), *unconditional], tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    arguments = prepared(fenced_command("train_decoder.json"), tmp_path)
    for name in TINY_NETWORK:
        del arguments[(place := arguments.index(f"--{name}")) : place + 2]
    arguments[arguments.index("--max_epochs") + 1] = "2"
    arguments += ["--discriminator_def::widths", "[8,8,8]", "--adversarial_start", "0", "--num_drawn", "8"]
    done = run(arguments, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "out/decoder/history.json").read_text())["train"]["drawn_loss"][-1] > 0
    assert (tmp_path / "out/decoder/model_prior_level0.pt").is_file()


@pytest.mark.slow
def test_the_command_for_several_processes_trains_with_two(tmp_path: Path) -> None:
    write_slices(tmp_path / "out/slices")
    arguments = prepared(fenced_command("multi_gpu_train.json"), tmp_path)
    done = run(arguments, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out/autoencoder/model.pt").stat().st_size > 0
    history = json.loads((tmp_path / "out/autoencoder/history.json").read_text())
    assert history["train"]["epoch"] == [1]
    assert not list(tmp_path.rglob("*.partial"))


def write_slices(folder: Path) -> None:
    generator = np.random.default_rng(0)
    datalist: dict = {"plane": "axial", "image_size": [32, 32], "pixel_mm": 7.0}
    (folder / "images").mkdir(parents=True)
    for split, count in {"training": 9, "validation": 3}.items():  # uneven shares for two processes
        datalist[split] = []
        for i in range(count):
            image = generator.random((32, 32, 1)).astype(np.float32)
            nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "images" / f"{split}{i}.nii.gz")
            datalist[split].append({"image": f"images/{split}{i}.nii.gz", "subject": f"{split}{i}"})
    (folder / "datalist.json").write_text(json.dumps(datalist))


def test_every_link_and_file_of_the_readme_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for target in re.findall(r"`((?:bundle|configs|benchmarks|docs|monai_vqgen|tests)/[\w./]+)`", README):
        assert (ROOT / target).exists(), target


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z][a-z-]+)", README)):
        if target not in {"sure", "it", "them"}:
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def python_snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README + GUIDES, flags=re.DOTALL)


def test_the_python_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_phantoms(tmp_path / "scans", num_subjects=1, seed=0)
    (tmp_path / "scans").rename(tmp_path / "all")
    scan = sorted((tmp_path / "all").rglob("*.nii.gz"))[0]
    scan.rename(tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert len(python_snippets()) == 4
    for snippet in python_snippets():
        exec(compile(snippet, "README.md", "exec"), {})
