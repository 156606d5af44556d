"""`evaluate.json` writes figures that an independent computation confirms, each beside its baselines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from factories import tiny_autoencoder, tiny_model
from PIL import Image
from skimage.metrics import structural_similarity

from monai_vqgen.bundles import run_stage
from monai_vqgen.data.io.nifti import write_slice_nifti
from monai_vqgen.errors import DatalistError, InputError, OutputExistsError
from monai_vqgen.evaluation import pick_split
from monai_vqgen.networks import ConditionEncoder, EMACodebook, GatedPixelCNN, HierarchicalVQVAE

CODES, SIZE, GRIDS = 12, (20, 30), [(3, 4), (6, 8)]  # a size that no stride divides
TINY_PRIOR = {"channels": 8, "num_layers": 2, "attention_every": 0, "num_codes": CODES}
ISSUE_KEYS = {
    "reconstruction": {"ssim", "ssim_brain", "psnr", "psnr_brain", "mae", "baselines"},
    "codebook": {"level", "size", "usage", "perplexity"},
    "prior": {"level", "bits_per_code", "uniform_bits_per_code", "histogram_bits_per_code"},
    "sampling": {"num_samples", "seconds", "ratio_to_whole_grid"},
    "data": {"subjects", "slices", "image_size"},
}
COUNTS = {"training": 4, "validation": 1, "test": 2}


def write_slices(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    datalist: dict = {"plane": "axial", "image_size": SIZE, "skipped": []}
    (folder / "images").mkdir(parents=True)
    for split, subjects in COUNTS.items():
        datalist[split] = []
        for subject in range(subjects):
            for position in (40.0, 50.0, 60.0):
                disc = (rows - 10) ** 2 + (columns - 15) ** 2 < 60 + position / 2
                image = disc * rng.uniform(0.3, 1, SIZE)
                name = f"images/{split}{subject}_{position:g}.nii.gz"
                write_slice_nifti(folder / name, image, np.eye(4), {})
                record = {"image": name, "subject": f"{split}{subject}", "plane": "axial", "position_mm": position}
                datalist[split].append(record)
    (folder / "datalist.json").write_text(json.dumps(datalist))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Slices, a tiny model whose codebooks are spread over its latents, its priors, and their evaluation."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_slices(folder / "slices")
    network = tiny_autoencoder(CODES)
    first = [nib.load(path).get_fdata()[..., 0] for path in sorted((folder / "slices" / "images").glob("*.nii.gz"))]
    network.train_pass(torch.tensor(np.stack(first)[:, None], dtype=torch.float32))  # codebooks from these slices
    encoder = ConditionEncoder({"position_mm": (40.0, 55.0)})  # narrower than the test positions
    tiny_model(SIZE, autoencoder=network, condition=encoder).save(folder)
    evaluate(folder, folder / "out")
    return folder


def evaluate(run: Path, output: Path, **options) -> None:
    where = {"model": str(run / "model.pt"), "priors_dir": str(run), "dataset_dir": str(run / "slices")}
    options = {**where, "output_dir": str(output), "num_samples": 3, "batch_size": 4, **options}
    run_stage("evaluate", options=options)


@pytest.fixture(scope="module")
def metrics(run) -> dict:
    return json.loads((run / "out" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def slices(run) -> dict[str, np.ndarray]:
    datalist = json.loads((run / "slices" / "datalist.json").read_text())
    return {
        split: np.stack([nib.load(run / "slices" / item["image"]).get_fdata()[..., 0] for item in datalist[split]])
        for split in COUNTS
    }


@pytest.fixture(scope="module")
def network(run) -> HierarchicalVQVAE:
    result = HierarchicalVQVAE(
        channels=8, residual_channels=4, quantizers=[EMACodebook(CODES, 16), EMACodebook(CODES, 16)]
    )
    result.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    return result.eval()


def test_metrics_have_the_keys_that_were_promised(metrics):
    assert set(metrics) >= set(ISSUE_KEYS)
    assert set(metrics["reconstruction"]) >= ISSUE_KEYS["reconstruction"]
    assert set(metrics["reconstruction"]["baselines"]) == {"all_black", "mean_image"}
    for scores in metrics["reconstruction"]["baselines"].values():
        assert set(scores) == set(metrics["reconstruction"]) - {"baselines"}
    for name in ("codebook", "prior"):
        assert [row["level"] for row in metrics[name]] == [0, 1]
        besides = {"training_bits_per_code", "inside_bits_per_code", "explained_variance"} if name == "prior" else set()
        assert all(set(row) == ISSUE_KEYS[name] | besides for row in metrics[name])
    assert set(metrics["sampling"]) >= ISSUE_KEYS["sampling"]
    assert metrics["data"] == {
        "subjects": COUNTS,
        "slices": {split: 3 * n for split, n in COUNTS.items()},
        "image_size": list(SIZE),
    }


def test_reconstruction_and_baselines_agree_with_scikit_image(metrics, slices, network):
    test, mean = slices["test"], slices["training"].mean(0)
    with torch.no_grad():
        images = torch.tensor(test[:, None], dtype=torch.float32)
        codes = network.encode(images)
        reconstructions = network.decode(codes)[..., : SIZE[0], : SIZE[1]].clamp(0, 1)[:, 0].double().numpy()
        coarsest = network.decode(codes[:1])[..., : SIZE[0], : SIZE[1]].clamp(0, 1)[:, 0].double().numpy()

    def scores(candidates):
        ssim, brain, psnr = [], [], []
        for x, y in zip(candidates, test, strict=True):
            value, full = structural_similarity(
                x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, full=True
            )
            ssim.append(value)
            brain.append(full[y > 0.02].mean())
            psnr.append(-10 * np.log10(((x - y) ** 2).mean()))
        return {"ssim": np.mean(ssim), "ssim_brain": np.mean(brain), "psnr": np.mean(psnr)}

    found = metrics["reconstruction"]
    pairs = [
        (found, reconstructions),
        (found["baselines"]["all_black"], np.zeros_like(test)),
        (found["baselines"]["mean_image"], np.broadcast_to(mean, test.shape)),
        (metrics["top_only"], coarsest),
    ]
    for result, candidates in pairs:
        for name, expected in scores(candidates).items():
            assert result[name] == pytest.approx(expected, abs=2e-4), name


def test_codebook_prior_and_rate_agree_with_numpy(metrics, slices, network, run):
    with torch.no_grad():
        codes = network.encode(torch.tensor(slices["test"][:, None], dtype=torch.float32))
    positions = torch.tensor([40.0, 50.0, 55.0] * COUNTS["test"])  # 60 mm lies outside and takes the range's end
    condition = ConditionEncoder({"position_mm": (40.0, 55.0)}).encode([{"position_mm": p.item()} for p in positions])
    total = 0.0
    for level in (0, 1):
        counts = np.bincount(codes[level].numpy().ravel(), minlength=CODES)
        p = counts[counts > 0] / counts.sum()
        assert metrics["codebook"][level]["usage"] == pytest.approx((counts > 0).mean())
        assert metrics["codebook"][level]["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
        prior = GatedPixelCNN(
            CODES, channels=8, num_layers=2, attention_every=0, coarser_codes=[CODES] * level, condition_dim=2
        )
        prior.load_state_dict(torch.load(run / f"model_prior_level{level}.pt", weights_only=True))
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(
                prior.eval()(codes[level], list(codes[:level]), condition), codes[level]
            )
        assert metrics["prior"][level]["bits_per_code"] == pytest.approx(loss.item() / math.log(2), rel=1e-4)
        assert metrics["prior"][level]["uniform_bits_per_code"] == pytest.approx(math.log2(CODES))
        total += loss.item() / math.log(2) * math.prod(GRIDS[level])
    pixels = math.prod(SIZE)
    assert metrics["rate"]["raw_bits_per_pixel"] == pytest.approx((12 + 48) * math.log2(CODES) / pixels)
    assert metrics["rate"]["coded_bits_per_pixel"] == pytest.approx(total / pixels, rel=1e-4)


def test_histogram_baseline_is_the_stronger_of_training_slices_with_and_without_their_mirror_images(
    metrics, slices, network
):
    images = {"test": slices["test"], "training": slices["training"], "mirrored": slices["training"][..., ::-1].copy()}
    with torch.no_grad():
        codes = {
            name: [x.flatten(1).numpy() for x in network.encode(torch.tensor(image[:, None], dtype=torch.float32))]
            for name, image in images.items()
        }
    smoothings = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)

    def bits(seen: np.ndarray, asked: np.ndarray, a: float) -> float:
        counts = np.stack([(seen == code).sum(0) for code in range(CODES)])  # (codes, positions)
        return -np.log2((np.take_along_axis(counts, asked, axis=0) + a) / (len(seen) + a * CODES)).mean()

    def fitted(seen: np.ndarray, asked: np.ndarray) -> float:
        """With the smoothing under which each training grid is likeliest given all others, tried one by one."""
        others = [np.delete(seen, i, axis=0) for i in range(len(seen))]
        cost = [np.mean([bits(o, seen[i : i + 1], a) for i, o in enumerate(others)]) for a in smoothings]
        return bits(seen, asked, smoothings[int(np.argmin(cost))])

    for level in (0, 1):
        alone, mirrored, asked = (codes[name][level] for name in ("training", "mirrored", "test"))
        both = np.concatenate([alone, mirrored])
        expected = min(fitted(alone, asked), fitted(both, asked))
        assert metrics["prior"][level]["histogram_bits_per_code"] == pytest.approx(expected, abs=1e-6)


def test_pictures_are_there_and_the_key_names_the_sampled_ones(run):
    for name in ("reconstructions", "samples", "usage", "real_and_sampled"):
        with Image.open(run / "out" / f"{name}.png") as picture:
            assert min(picture.size) > 50
    sampled = json.loads((run / "out" / "real_and_sampled.json").read_text())["sampled"]
    assert len(sampled) == 3
    assert set(sampled) <= set(range(1, 3 + 6 + 1))


def test_slices_of_another_size_than_the_priors_are_refused_before_any_work(run, tmp_path):
    with pytest.raises(InputError, match=r"\(24, 32\) pixels, the priors of \(20, 30\)"):
        evaluate(run, tmp_path / "out", image_size=[24, 32])  # the same grids, but other pixels


def test_an_autoencoder_is_judged_without_priors_on_the_split_that_is_asked_for(
    run, metrics, network, slices, tmp_path
):
    evaluate(run, tmp_path / "test", with_priors=False)
    alone = json.loads((tmp_path / "test" / "metrics.json").read_text())
    for name in ("reconstruction", "top_only", "codebook", "data"):
        assert alone[name] == metrics[name]
    assert alone["rate"] == {"raw_bits_per_pixel": metrics["rate"]["raw_bits_per_pixel"]}
    assert {path.name for path in (tmp_path / "test").glob("*.png")} == {"reconstructions.png", "usage.png"}
    evaluate(run, tmp_path / "validation", with_priors=False, split="validation")
    other = json.loads((tmp_path / "validation" / "metrics.json").read_text())
    images = torch.tensor(slices["validation"][:, None], dtype=torch.float32)
    with torch.no_grad():
        errors = (network(images).clamp(0, 1) - images).square().flatten(1).mean(1)
    assert other["judged"] == "validation"
    assert other["reconstruction"]["psnr"] == pytest.approx(float((-10 * errors.log10()).mean()), abs=1e-3)
    with pytest.raises(DatalistError, match="'vali' holds no slices; choose one of training, validation, test"):
        evaluate(run, tmp_path / "none", with_priors=False, split="vali")
    with pytest.raises(InputError, match="with_priors"):
        evaluate(run, tmp_path / "none", with_priors=False, sample_report=True)


def test_an_empty_split_is_not_judged():
    with pytest.raises(DatalistError, match="'test' holds no slices; choose one of training, validation, or give"):
        pick_split({"training": [1], "validation": [2], "test": []}, "test")


def test_without_priors_none_is_built_nor_looked_for(run, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("a prior was built")

    monkeypatch.setattr(GatedPixelCNN, "__init__", fail)
    evaluate(run, tmp_path / "out", with_priors=False, priors_dir=str(tmp_path / "nowhere"))
    assert "prior" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_figures_are_written_before_the_pictures(run, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no space left for pictures")

    monkeypatch.setattr("monai_vqgen.evaluation.evaluator.save_reconstruction_pictures", fail)
    with pytest.raises(RuntimeError):
        evaluate(run, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["data"]["image_size"] == list(SIZE)


def test_earlier_results_and_missing_slices_are_named(run, tmp_path):
    with pytest.raises(OutputExistsError, match=r"metrics\.json"):
        evaluate(run, run / "out")
    with pytest.raises(DatalistError):
        evaluate(run, tmp_path / "out", dataset_dir=str(tmp_path))


def test_codecs_stand_beside_the_codes_on_demand(run, tmp_path):
    evaluate(run, tmp_path / "out", codecs=True)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["codecs"]["at_rate"]) == {"raw", "coded"}
    assert metrics["codecs"]["ladder"]["JPEG"]
    with Image.open(tmp_path / "out" / "rate_distortion.png") as picture:
        assert picture.width > 500


def test_a_report_of_samples_that_cannot_be_made_is_refused_before_the_work(run, tmp_path):
    with pytest.raises(InputError, match=r"\(20, 30\) pixels.*extract larger slices"):
        evaluate(run, tmp_path / "out", sample_report=True)
    with pytest.raises(InputError, match=r"classifier_steps is 0.*whole number"):
        evaluate(run, tmp_path / "out", sample_report=True, classifier_steps=0)
    assert not list((tmp_path / "out").glob("*.json"))


def test_samples_are_judged_in_the_features_and_for_the_steps_that_are_given(tiny_run, tmp_path, monkeypatch):
    network = torch.nn.Conv2d(1, 2, 3)
    torch.jit.save(torch.jit.script(network), tmp_path / "features.pt")
    spaces, steps = [], []

    def capture(*images, feature_space, classifier_steps, **options):
        spaces.append(feature_space)
        steps.append(classifier_steps)
        raise InputError("seen enough")

    monkeypatch.setattr("monai_vqgen.evaluation.evaluator.check_sample_report", lambda *given, **options: None)
    monkeypatch.setattr("monai_vqgen.evaluation.sections.sample_metrics", capture)
    given = {"num_samples": 2, "sample_report": True, "feature_channels": 1, "feature_mean": 0.5, "feature_std": 0.25}
    given["classifier_steps"] = 7
    for number, file in enumerate((str(tmp_path / "features.pt"), None)):
        options = {**tiny_run.options("evaluate", tmp_path / f"out{number}"), **given, "feature_network": file}
        with pytest.raises(InputError, match="seen enough"):
            run_stage("evaluate", options=options)
    wrong = {"feature_network": str(tmp_path / "features.pt"), "feature_channels": 3}
    with pytest.raises(InputError, match="does not take images"):  # before the report, which would have "seen enough"
        run_stage("evaluate", options={**options, **wrong})
    with pytest.raises(InputError, match="with sample_report true"):
        run_stage(
            "evaluate", options={**options, "sample_report": False, "feature_network": str(tmp_path / "features.pt")}
        )
    images = torch.rand(3, 1, 20, 30)
    expected = network((images - 0.5) / 0.25).detach().mean((2, 3)).double()
    torch.testing.assert_close(spaces[0](images), expected, rtol=1e-5, atol=1e-6)
    assert spaces[1] is None
    assert steps == [7, 7]
