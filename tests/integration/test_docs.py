"""Commands of the pages that have no test of their own: the bundle's README, RESULTS.md; and no page without one."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_vqgen.data import make_phantoms
from monai_vqgen.models.streams import stored_scan
from tools.__main__ import build_parser
from tools.designs import read_designs

ROOT = Path(__file__).parents[2]
CARD = "bundle/docs/README.md"
# Where the commands of each page are run: as they stand there, or with tiny sizes.
HELD_BY = {
    "README.md": "tests/integration/test_readme.py",
    "bundle/docs/README.md": "tests/integration/test_docs.py",
    "docs/EXAMPLES.md": "tests/integration/test_examples.py",
    "docs/MONAI_LABEL.md": "tests/label/test_docs.py",
    "docs/RESULTS.md": "tests/integration/test_docs.py",
    "docs/SCALING.md": "tests/integration/test_scaling_docs.py",
    "docs/anomaly.md": "tests/integration/test_docs.py",
    "docs/compression.md": "tests/integration/test_docs.py",
    "docs/data.md": "tests/integration/test_readme.py",
    "docs/denoising.md": "tests/integration/test_docs.py",
    "docs/getting_started.md": "tests/integration/test_readme.py",
    "docs/own_data.md": "tests/integration/test_own_data.py",
    "docs/RELIABILITY.md": "tests/integration/test_soak.py",
    "docs/sharing.md": "tests/integration/test_sharing.py",
    "docs/training.md": "tests/integration/test_readme.py",
    "docs/volumes.md": "tests/integration/test_volumes.py",
}


def test_every_page_with_commands_has_a_test_that_runs_them(documented):
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bundle" / "docs").rglob("*.md")]
    with_commands = {path.relative_to(ROOT).as_posix() for path in pages if documented(path)}
    assert with_commands == HELD_BY.keys()
    for page, test in HELD_BY.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


def test_links_and_pictures_of_the_pages_exist():
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / CARD]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def defined_in(path: Path) -> set[str]:
    """Functions and classes of a file, methods after their class, and names that it gives a value to."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def named(cell: str) -> dict[str, list[str]]:
    """What a cell names of each file: "`a.py`: `one`, `two`; `b.json`"."""
    parts = (part.partition("`: ") for part in cell.split("; "))
    return {file.strip(" `|"): re.findall(r"`([^`]+)`", names) for file, _, names in parts}


def test_the_guards_of_the_page_and_the_tests_that_miss_them_exist():
    page = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8").partition("## Each guard, taken out once")[2]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 60
    for words, count, guards, tests in rows:
        assert int(count) >= max(map(len, named(guards).values())), words
        for home, cell in ((ROOT / "monai_vqgen", guards), (ROOT / "tests", tests)):
            for file, names in named(cell).items():
                path = home / file if (home / file).exists() else ROOT / file
                assert path.is_file(), f"{words}: {file}"
                missing = set(names) - (defined_in(path) if path.suffix == ".py" else set())
                assert not missing, f"{words}: {file} has no {missing}"


def shipped_and_trained(commands: list[str]) -> tuple[list[str], list[str]]:
    """Part the card's commands: those that use the weights that ship, and those that train others, from scans on."""
    first = next(i for i, command in enumerate(commands) if "extract_slices.json" in command)
    return commands[:first], commands[first:]


@pytest.mark.slow
def test_the_cards_commands_run_one_after_another_in_the_bundles_folder(tiny_clone, documented):
    place = tiny_clone._replace(folder=tiny_clone.folder / "bundle")
    make_phantoms(place.folder / "SCANS", 8, seed=1, voxel_mm=4.0, progress=False)
    (scored, *_), commands = shipped_and_trained(documented(CARD))
    assert len(commands) == 11
    for command in commands:
        output = place.folder / command.split()[-1]
        if "configs/train.json" in command or "sample.json" in command:  # one way of several to the same folder
            shutil.rmtree(output, ignore_errors=True)
        place.run(command)
        assert any(output.iterdir())
    written = {path.name for path in (place.folder / "RUN").iterdir()}
    assert {"model.pt", "model_prior_level0.pt", "model_prior_level1.pt"} <= written
    assert len(json.loads((place.folder / "SAMPLES/samples.json").read_text())["samples"]) == 64
    assert len(list((place.folder / "RECONSTRUCTIONS").rglob("*.nii.gz"))) == 8
    assert {path.suffix for path in (place.folder / "EXPORT").iterdir()} >= {".ts", ".onnx", ".pt2", ".json"}
    metrics = json.loads((place.folder / "EVALUATION/metrics.json").read_text())
    assert {"reconstruction", "prior", "sampling"} <= metrics.keys()
    assert "--num_samples 512" in scored
    shutil.rmtree(place.folder / "EVALUATION")
    (place.folder / "models").symlink_to(ROOT / "bundle" / "models")
    cut = next(command for command in commands if "extract_slices.json" in command)
    more = "--overwrite True --position_step_mm 1.5 --fractions [0.5,0.125,0.375]"
    place.run(f"{cut} {more}")  # the report on samples needs 32 slices of training and of test subjects
    place.run(scored.replace("--num_samples 512", "--num_samples 32 --classifier_steps 20"))
    samples = json.loads((place.folder / "EVALUATION/metrics.json").read_text())["samples"]
    assert samples["position"]
    assert samples["classifier_steps"] == 20


@pytest.mark.slow
def test_the_cards_commands_for_the_weights_that_ship_need_nothing_else(clone, documented):
    place = clone._replace(folder=clone.folder / "unpacked")
    place.folder.mkdir()
    for name in ("configs", "models"):
        (place.folder / name).symlink_to(ROOT / "bundle" / name)
    make_phantoms(place.folder / "SCANS", 1, seed=1, voxel_mm=4.0, progress=False)
    (_, *commands), _ = shipped_and_trained(documented(CARD))
    assert len(commands) == 2
    for command in commands:
        place.run(command)
    samples = json.loads((place.folder / "SAMPLES/samples.json").read_text())["samples"]
    assert [sample["condition"] for sample in samples] == [{"age": 30, "position_mm": 65, "sex": "f"}] * 16
    (scan,) = (place.folder / "SCANS").rglob("*.nii.gz")
    (again,) = (place.folder / "RECONSTRUCTIONS").rglob("*_recon.nii.gz")
    assert nib.load(again).shape == nib.load(scan).shape


@pytest.mark.slow
def test_the_temperatures_of_the_results_are_scored_by_the_command_that_stands_there(tiny_clone, documented):
    make_phantoms(tiny_clone.folder / "SCANS", 24, seed=1, voxel_mm=4.0, progress=False)
    (command,) = [command for command in documented("docs/RESULTS.md") if "evaluate.json" in command]
    run = "out/reproduce"
    for stage in (
        f"extract_slices.json --dataset_dir SCANS --output_dir {run}/slices --position_step_mm 5",
        f"train.json --dataset_dir {run}/slices --output_dir {run}",
        f"extract_codes.json --dataset_dir {run}/slices --model {run}/model.pt --output_dir {run}/codes",
        *(f"train_prior.json --level {level} --dataset_dir {run}/codes --output_dir {run}" for level in (0, 1)),
    ):
        tiny_clone.run(f"python -m monai.bundle run --config_file bundle/configs/{stage}")
    assert "--num_samples 512" in command
    cold = command.replace("--num_samples 512", "--num_samples 32 --classifier_steps 20")
    hot = cold.replace("[0.8,1.0]", "[9.0,9.0]")
    assert "[0.8,1.0]" in command
    samples = []
    for line in (cold, hot.replace("EVALUATION", "HOT")):
        tiny_clone.run(line)
        metrics = json.loads((tiny_clone.folder / line.split()[-1] / "metrics.json").read_text())
        assert metrics["judged"] == "validation"
        samples.append(metrics["samples"])
    assert samples[0]["real"] == samples[1]["real"]
    assert samples[0]["samples"]["frechet"] != samples[1]["samples"]["frechet"]
    assert {"precision", "recall", "density", "coverage", "two_sample"} <= samples[0]["samples"].keys()

    trainings = [command for command in documented("docs/RESULTS.md") if "train_prior.json" in command]
    (prior,) = [command for command in trainings if "--start_from" not in command]
    tiny_clone.run(prior.replace("['position_mm','sex','age']", "['position_mm']"))
    assert (tiny_clone.folder / "PRIOR/model_prior_level1.pt").is_file()


def test_whole_scans_are_measured_by_the_command_that_stands_there(documented):
    (command,) = [command for command in documented("docs/RESULTS.md") if " whole_volumes " in command]
    given = build_parser().parse_args(command.split()[3:])
    assert (given.verb, given.split, given.shifts) == ("whole_volumes", "test", (1, 4))
    assert (ROOT / given.split_file).is_file()


@pytest.mark.parametrize(("designs", "split"), [("references", "test"), ("finalists", "validation")])
def test_each_comparison_at_full_length_has_the_command_of_its_list(documented, designs, split):
    (command,) = [command for command in documented("docs/RESULTS.md") if f"comparisons/{designs}.yaml" in command]
    given = build_parser().parse_args(command.split()[3:])
    assert (given.verb, given.split) == ("compare", split)
    assert command == (ROOT / given.designs).read_text().splitlines()[0].removeprefix("# ")


def section(name: str) -> str:
    """What stands between two marks of the results."""
    return (ROOT / "docs/RESULTS.md").read_text().split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("path", sorted((ROOT / "configs/comparisons").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_comparison_of_the_results_has_the_designs_of_its_list(path):
    first, *others = read_designs(path)
    (mark,) = re.findall(rf"<!-- (comparison_{path.stem}_\w+) -->", (ROOT / "docs/RESULTS.md").read_text())
    names = [cells(line)[0] for line in section(mark).splitlines() if line.startswith("|")][2:]
    assert names == [first.name, *(f"{design.group}: {design.name}" for design in others)]


def test_card_and_readme_give_the_figures_of_the_reconstructions():
    rows = [cells(line) for line in section("release_128_cpu").splitlines() if line.startswith("|")]
    header = next(row for row in rows if row[0] == "reconstruction")
    columns = [header.index(name) for name in ("bits a pixel", "SSIM", "brain SSIM", "PSNR, dB")]
    results = {row[0]: [row[i] for i in columns] for row in rows if len(row) == len(header)}
    card, readme = (ROOT / CARD).read_text(), (ROOT / "README.md").read_text()
    table = {row[0]: row[1:] for row in map(cells, card.splitlines()) if len(row) == 5}
    assert table["reconstruction"] == results["ours"]
    assert table["coarsest level alone"][1:] == results["ours, coarsest level alone"][1:]
    assert table["mean training image"] == results["mean image"]
    assert table["all-black image"] == results["all black"]
    (webp,) = [name for name in table if name.startswith("WebP at ")]
    assert table[webp] == results[webp]
    raw = zip(*(results[f"{codec} at 0.703"][1:] for codec in ("JPEG", "JPEG 2000", "WebP")), strict=True)
    assert table["JPEG, JPEG 2000, WebP at 0.703"] == ["0.703", *(", ".join(column) for column in raw)]
    coarse, fine = [row for row in rows if row[0] in ("0", "1")]
    for i in (3, 4, 5):  # bits a code of the prior, on training slices, of the histogram
        assert f"{coarse[i]} and {fine[i]}" in card
    assert {row[1] for row in (coarse, fine)} == {"100% of 513"}
    assert "All 512 codes of both levels are in use" in card
    assert f"{float(results['ours'][3]):.1f} dB, brain SSIM {results['ours'][2]}" in " ".join(readme.split())


def test_the_model_card_gives_the_figures_of_the_samples():
    rows = [cells(line) for line in section("release_128_cpu").splitlines() if line.startswith("|")]
    header = next(row for row in rows if row[:2] == ["", "linear classifier"])
    sampled, real = (
        dict(zip(header, next(row for row in rows if row[0] == name), strict=True)) for name in ("samples", "real")
    )
    names = ("precision", "recall", "density", "coverage")
    drawn = ", ".join(f"{name} {float(sampled[name]):.2f}" for name in names)
    held_out = ", ".join(f"{float(real[name]):.2f}" for name in names)
    told, by_chance = (f"{100 * float(row['CNN classifier'].split()[0]):.0f} %" for row in (sampled, real))
    assert (
        f"{drawn} (test slices: {held_out}); a CNN tells them from real slices with {told} accuracy "
        f"(test slices: {by_chance})"
    ) in (ROOT / CARD).read_text()
    audits = [row for row in rows if row[0] in ("pixels", "features")]
    pixels, features = (row[1].replace("%", " %") for row in audits)
    assert f"Of 512, {pixels} are closer to a training slice by pixels" in (ROOT / CARD).read_text()
    assert f"(1 % expected), {features} by features" in (ROOT / CARD).read_text()


@pytest.mark.slow
def test_the_trainings_of_the_results_run_with_the_options_that_stand_there(tiny_clone, documented):
    make_phantoms(tiny_clone.folder / "SCANS", 8, seed=1, voxel_mm=4.0, progress=False)
    cut = "python -m monai.bundle run --config_file bundle/configs/extract_slices.json"
    tiny_clone.run(f"{cut} --dataset_dir SCANS --output_dir SLICES")
    trainings = [command for command in documented("docs/RESULTS.md") if "train.json" in command]
    assert [re.search(r"--batch_size (\d+)", command)[1] for command in trainings] == ["4", "16"]
    for command in trainings:  # epochs and channels apart, which make them long
        short = re.sub(r"--max_epochs \d+", "--max_epochs 1", command)
        tiny_clone.run(re.sub(r"--network_def::channels \d+", "--network_def::channels 16", short))
        history = json.loads((tiny_clone.folder / "RUN/history.json").read_text())
        assert history["train"]["epoch"] == [1]
        shutil.rmtree(tiny_clone.folder / "RUN")


@pytest.mark.slow
def test_the_commands_of_compression_run_one_after_another(clone, documented):
    make_phantoms(clone.folder / "SCANS", 8, seed=1, voxel_mm=4.0, progress=False)
    source = min((clone.folder / "SCANS").rglob("*.nii.gz"))
    shutil.copy(source, clone.folder / "SCAN.nii.gz")
    (clone.folder / "tools").symlink_to(ROOT / "tools")
    (clone.folder / "FEW").mkdir()
    for scan in sorted((clone.folder / "SCANS").rglob("*.nii.gz"))[:2]:
        shutil.copy(scan, clone.folder / "FEW")
    install, *commands = documented("docs/compression.md")
    assert install == "pip install 'monai-vqgen[bitstream]'"
    assert len(commands) == 7
    for command in commands:
        coarser = command.replace("--position_step_mm 1.0", "--position_step_mm 20.0")  # and phantoms have their names
        fewer = coarser.replace("SCANS --output ANYWHERE", "FEW --output ANYWHERE")
        clone.run(fewer.replace("--split_file configs/splits/ds002748.json", ""))
    scan, back = nib.load(source), nib.load(clone.folder / "BACK/SCAN.nii.gz")
    assert back.shape == scan.shape
    assert back.affine == pytest.approx(scan.affine, abs=1e-4)
    assert (clone.folder / "COMPRESSED/SCAN.vqg").stat().st_size < source.stat().st_size / 2
    assert len(list((clone.folder / "ANYWHERE").glob("*.vqg"))) == 2
    exact = stored_scan((clone.folder / "EXACT/SCAN.vqg").read_bytes())
    np.testing.assert_array_equal(exact.voxels_s, scan.dataobj.get_unscaled())
    figures = json.loads((clone.folder / "BITSTREAM/bitstream.json").read_text())
    assert figures["model"]["exact_slices"] == figures["anywhere"]["exact_slices"] == figures["slices"]


@pytest.mark.slow
def test_the_commands_of_denoising_run_one_after_another(clone, documented):
    make_phantoms(clone.folder / "SCANS", 8, seed=1, voxel_mm=4.0, progress=False)
    source = min((clone.folder / "SCANS").rglob("*.nii.gz"))
    shutil.copy(source, clone.folder / "SCAN.nii.gz")
    (clone.folder / "tools").symlink_to(ROOT / "tools")
    commands = documented("docs/denoising.md")
    assert len(commands) == 5
    for command in commands:
        coarser = command.replace("--position_step_mm 1.0", "--position_step_mm 20.0")  # and phantoms have their names
        short = " --max_epochs 1" if "train.json" in command else ""
        clone.run(coarser.replace("--split_file configs/splits/ds002748.json", "") + short)
    scan, back = nib.load(source), nib.load(clone.folder / "DENOISED/SCAN_denoised.nii.gz")
    assert back.shape == scan.shape
    assert back.affine == pytest.approx(scan.affine, abs=1e-4)
    for folder, model in {"DENOISING": "denoising", "DENOISING_MINE": "RUN"}.items():
        rows = json.loads((clone.folder / folder / "denoising.json").read_text())["sigmas"]["0.1"]
        assert {"noisy", "non-local means", f"{model} weights, shifts 4"} <= rows.keys()


@pytest.mark.slow
def test_the_commands_of_the_anomaly_page_run_one_after_another(clone, documented):
    make_phantoms(clone.folder / "SCANS", 8, seed=1, voxel_mm=4.0, progress=False)
    source = min((clone.folder / "SCANS").rglob("*.nii.gz"))
    shutil.copy(source, clone.folder / "SCAN.nii.gz")
    scan = nib.load(source)
    mask = (scan.get_fdata() > np.percentile(scan.get_fdata(), 99)).astype(np.uint8)
    (clone.folder / "PATIENTS").mkdir()
    shutil.copy(source, clone.folder / "PATIENTS/a_T1.nii.gz")
    nib.save(nib.Nifti1Image(mask, scan.affine), clone.folder / "PATIENTS/a_lesion.nii.gz")
    commands = documented("docs/anomaly.md")
    assert len(commands) == 6
    for command in commands:
        coarser = command.replace("--split_file configs/splits/ds002748.json", "--position_step_mm 20.0")
        clone.run(coarser.replace("--seeds 5", "--seeds 2"))
    for folder in ("MAPS", "OWN_MAPS"):
        for kind in ("anomaly", "lesions"):
            assert nib.load(clone.folder / folder / f"SCAN_{kind}.nii.gz").shape == scan.shape
    for folder, seeds in (("MEASURED", 1), ("MEASURED_SEEDS", 2)):
        metrics = json.loads((clone.folder / folder / "metrics.json").read_text())
        assert {"synthetic", "scans"} <= metrics.keys()
        assert metrics["seeds"] == seeds
