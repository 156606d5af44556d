"""Training of the autoencoder on the server's unlabeled studies, as a job in a process of its own.

studies --extract_slices.json--> slices --train.json--> model.pt --> models/model_trained_<time>.pt of the bundle
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_vqgen.bundles import run_stage
from monai_vqgen.data.processes import end_with_parent
from monai_vqgen.errors import DatalistError
from monai_vqgen.files import claim_place, clean, publish, write_json
from monai_vqgen.monailabel.interfaces import TrainTask
from monai_vqgen.monailabel.knobs import TrainingKnobs
from monai_vqgen.monailabel.served_bundle import ServedBundle
from monai_vqgen.networks.architecture import architecture

__all__ = ["SERVER_VARIABLE", "AutoencoderTrainTask", "place_model"]

logger = logging.getLogger(__name__)

SERVER_VARIABLE = "MONAI_VQGEN_LABEL_SERVER"
"""The environment variable that tells a job the process of the server that has started it."""
SUFFIXES = (".nii.gz", ".nii")


class AutoencoderTrainTask(TrainTask):
    """Train or fine-tune the served autoencoder, of the architecture that is recorded with its weights.

    Studies without a final label are cut into slices and split by subject (at least three subjects). The weights with
    the lowest validation loss go to the bundle's `models`, beside `model.pt`; with `replace` they take its place, and
    the earlier file stays as `model_before_<time>.pt`. Priors work only with the autoencoder they were trained
    with, and refuse a replaced one.

    Args:
        bundle: what is served.
        runs: the folder for slices, logs and curves, one folder a job.

    Knobs: `max_epochs`, `max_minutes` (whichever comes first), `batch_size`, `learning_rate`, `fine_tune` (start from
    the served weights), `replace`, `plane`, `seed`.
    """

    def __init__(self, bundle: ServedBundle, runs: Path) -> None:
        super().__init__("Training or fine-tuning of the autoencoder on the unlabeled studies")
        self.bundle, self.runs = bundle, runs

    def config(self) -> dict[str, Any]:
        """The knobs and their defaults."""
        return TrainingKnobs.defaults()

    def stats(self) -> dict[str, Any]:
        """How far the latest job is: its folder, epochs done and wanted, losses so far."""
        jobs = sorted(self.runs.glob("*/job.json"))
        if not jobs:
            return {}
        job = json.loads(jobs[-1].read_text(encoding="utf-8"))
        history = jobs[-1].parent / "run" / "history.json"
        curves = json.loads(history.read_text(encoding="utf-8")) if history.is_file() else {}
        training, validation = curves.get("train", {}), curves.get("validation", {})
        return {
            "job": jobs[-1].parent.name,
            "epoch": max(training.get("epoch", [0])),
            "max_epochs": job["max_epochs"],
            "loss": training.get("loss", []),
            "validation_loss": validation.get("loss", []),
        }

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Run the job to its end.

        Returns:
            Where the weights are, and how the training went.

        Raises:
            InputError: a knob outside its range.
            DatalistError: no unlabeled studies, or of too few subjects.
        """
        job = TrainingKnobs.of(request)
        server = int(os.environ.get(SERVER_VARIABLE, os.getppid()))
        end_with_parent(server, by_kernel=False)  # even if it has ended before this call
        stamp = f"{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}"
        folder = self.runs / stamp
        count = _link_studies(datastore, folder / "studies")
        write_json(folder / "job.json", {**job.model_dump(), "studies": count})
        logger.info("progress: 1 of 3, cutting %d studies into slices", count)
        slices = {"dataset_dir": str(folder / "studies"), "output_dir": str(folder / "slices"), "num_workers": 0}
        record = self.bundle.model("cpu", with_priors=False).record
        lower, upper = record.percentiles
        as_served = {
            "plane": job.plane or record.plane or "axial",
            "lower_percentile": lower,
            "upper_percentile": upper,
            "window": None if record.window is None else list(record.window),
        }
        as_served |= {"pixel_mm": record.pixel_mm} if record.pixel_mm else {}
        as_served |= {"image_size": list(record.image_size)} if record.image_size else {}
        run_stage("extract_slices", options={**slices, **as_served, "seed": job.seed, "on_trim": "warn"})
        logger.info("progress: 2 of 3, training for up to %d epochs", job.max_epochs)
        self._train(job, folder)
        logger.info("progress: 3 of 3, putting the weights into %s", self.bundle.weights.parent)
        path = place_model(folder / "run" / "model.pt", self.bundle.weights, stamp=stamp, replace=job.replace)
        return {"model": str(path), "replaced": job.replace, **self.stats()}

    def _train(self, job: TrainingKnobs, folder: Path) -> None:
        served = self.bundle.model("cpu", with_priors=False)
        overlay: dict[str, Any] = {"network_def": architecture(served.autoencoder)}
        if job.fine_tune:
            path, load = str(self.bundle.weights), "monai_vqgen.models.TrainedModel.from_bundle"
            overlay["served"] = {"_target_": load, "path": path, "with_priors": False}
            overlay["network_def"] = "$@served.autoencoder"
        write_json(folder / "overlay.json", overlay)
        options = {
            "dataset_dir": str(folder / "slices"),
            "output_dir": str(folder / "run"),
            "val_interval": 1,
            **{
                name: getattr(job, name)
                for name in ("max_epochs", "max_minutes", "batch_size", "learning_rate", "seed")
            },
        }
        run_stage("train", training=True, options=options, overlays=[folder / "overlay.json"])


def place_model(trained: Path, served: Path, *, stamp: str, replace: bool) -> Path:
    """Copy new weights beside the served ones, or into their place; no earlier weights are lost in either case.

    Args:
        trained: the new weights.
        served: the served `model.pt`.
        stamp: tells this job from others.
        replace: whether the new weights are to be served.

    Returns:
        Where the new weights are.
    """
    target = served if replace else served.with_name(f"model_trained_{stamp}.pt")
    if replace and served.is_file():
        _copy(served, served.with_name(f"model_before_{stamp}.pt"))
    _copy(trained, target)
    return target


def _copy(source: Path, target: Path) -> None:
    """Copy weights and the record beside them, which replace earlier ones together."""
    files = [target.name, target.with_suffix(".json").name]
    clean(target.parent, files)
    place = claim_place(target.parent, files)
    for suffix in (".pt", ".json"):
        if source.with_suffix(suffix).is_file():
            shutil.copyfile(source.with_suffix(suffix), (place / target.name).with_suffix(suffix))
    publish(place)


def _link_studies(datastore: Any, folder: Path) -> int:
    """Links to the studies without a final label, by their id; returns how many there are.

    Raises:
        DatalistError: there is none.
    """
    folder.mkdir(parents=True)
    count = 0
    for image in sorted(datastore.get_unlabeled_images()):
        path = Path(datastore.get_image_uri(image))
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
        if not suffix and not path.is_dir():
            logger.warning("skipped: %s is neither NIfTI nor a folder of DICOM files", path)
            continue
        (folder / f"{image.replace('/', '_')}{suffix}").symlink_to(path)
        count += 1
    if not count:
        raise DatalistError("the server has no unlabeled studies to train on: add NIfTI scans to its studies folder")
    return count
