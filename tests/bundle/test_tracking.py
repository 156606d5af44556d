"""`--tracking mlflow` follows every workflow into a local SQLite file, with the figures that the files have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")

BUNDLE = Path(__file__).parents[2] / "bundle"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def stay_at_home(monkeypatch):
    """MLflow tells its makers of its use unless it is told not to, and an address in the environment would win."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """One file for the module: to make its tables takes MLflow seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


class Tracked:
    """What a tracking file holds of one experiment, read by MLflow itself."""

    def __init__(self, database: str, experiment: str) -> None:
        self.client = mlflow.MlflowClient(tracking_uri=database)
        self.experiment = self.client.get_experiment_by_name(experiment)
        self.runs = self.client.search_runs(self.experiment.experiment_id)

    def points(self, metric: str) -> list[mlflow.entities.Metric]:
        return sorted(self.client.get_metric_history(self.runs[0].info.run_id, metric), key=lambda point: point.step)


@pytest.fixture
def track(tiny_run, tmp_path, database, request):
    """Run a config with tracking, as an experiment of its own; gives what was tracked so far."""
    experiment = request.node.name

    def run(config: str, **options) -> Tracked:
        flow = ConfigWorkflow(
            config_file=str(BUNDLE / "configs" / f"{config}.json"),
            workflow_type="train" if config.startswith("train") else "infer",
            logging_file=False,
            bundle_root=str(BUNDLE),
            tracking="mlflow",
            tracking_uri=database,
            experiment_name=experiment,
            **{**tiny_run.options(config, tmp_path), **options},
        )
        flow.initialize()
        flow.run()
        flow.finalize()
        return Tracked(database, experiment)

    return run


@pytest.mark.parametrize(
    ("config", "history", "metric"),
    [("train", "history.json", "psnr"), ("train_prior", "history_prior_level0.json", "bits_per_code")],
)
def test_a_training_is_followed_step_by_step(config, history, metric, track, tmp_path):
    tracked = track(config, max_epochs=2, batch_size=2, val_interval=1)
    written = json.loads((tmp_path / history).read_text())
    assert [run.info.status for run in tracked.runs] == ["FINISHED"]
    assert tracked.runs[0].data.params["max_epochs"] == "2"
    assert [point.step for point in tracked.points("train_loss")] == [1, 2, 3, 4]  # four slices in batches of two
    for part in ("train", "validation"):
        for name in ("loss", metric):
            points = tracked.points(f"{part}/{name}")
            assert [point.step for point in points] == [1, 2]
            assert [point.value for point in points] == pytest.approx(written[part][name], rel=1e-6)
    assert {"loss", metric}.isdisjoint(tracked.runs[0].data.metrics)  # which would mix the two


def test_an_evaluation_is_tracked_with_the_numbers_of_its_file(track, tmp_path):
    (run,) = track("evaluate", num_samples=2).runs
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert run.info.status == "FINISHED"
    assert run.data.metrics["reconstruction/ssim_brain"] == pytest.approx(written["reconstruction"]["ssim_brain"])
    baseline = written["reconstruction"]["baselines"]["mean_image"]["psnr"]
    assert run.data.metrics["reconstruction/baselines/mean_image/psnr"] == pytest.approx(baseline)
    assert run.data.metrics["prior/1/bits_per_code"] == pytest.approx(written["prior"][1]["bits_per_code"])
    assert "judged" not in run.data.metrics


@pytest.mark.parametrize(("config", "result"), [("inference", "images/test0_recon.nii.gz"), ("sample", "samples.json")])
def test_inference_and_sampling_leave_a_finished_run(config, result, track, tmp_path):
    tracked = track(config)
    assert (tmp_path / result).is_file()
    assert [run.info.status for run in tracked.runs] == ["FINISHED"]


def test_a_second_run_is_added_to_the_first(track):
    for name in ("first", "second"):
        tracked = track("sample", overwrite=True, run_name=name)
    assert {run.info.run_name for run in tracked.runs} == {"first", "second"}


@pytest.mark.slow
def test_the_command_line_tracks_without_leaving_its_folder(tiny_run, tmp_path):
    config = str(BUNDLE / "configs" / "evaluate.json")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, "--bundle_root", str(BUNDLE)]
    options = {**tiny_run.options("evaluate", tmp_path / "out"), "num_samples": 2, "tracking": "mlflow"}
    options["save_execute_config"] = str(tmp_path / "out" / "executed.json")
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    tracked = Tracked(f"sqlite:///{tmp_path / 'out' / 'mlruns.db'}", "monai_experiment")
    assert [file.path for file in tracked.client.list_artifacts(tracked.runs[0].info.run_id)] == ["executed.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
