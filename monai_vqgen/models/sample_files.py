"""The sampling stage: samples drawn by number, and written as NIfTI and PNG with a list that says how they were drawn.

Shape legend: b batch, c channels, s spatial axes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.inferers.inferer import Inferer
from PIL import Image
from torch import Tensor

from monai_vqgen.data import CaptureLabels, write_secondary_captures
from monai_vqgen.data.io.captures import check_highdicom
from monai_vqgen.data.io.nifti import write_slice_nifti
from monai_vqgen.engines import process_rank, wait_for_all
from monai_vqgen.errors import InputError
from monai_vqgen.files import write_json
from monai_vqgen.models.samples import asked_for, drawn_with, sample_affines
from monai_vqgen.models.trained_model import TrainedModel
from monai_vqgen.plots.pictures import as_shown, save_grid, save_png
from monai_vqgen.transforms.geometry import check_plane

__all__ = ["SAMPLE_FILES", "SampleFiles", "SampleInferer"]

SAMPLE_FILES = ("samples.json", "samples.png", "images/sample_*", "dicom/sample_*")
"""What the stage writes, relative to its output folder."""

logger = logging.getLogger(__name__)


class SampleInferer(Inferer):
    """Draw the samples whose numbers are asked for, so that several processes can share them.

    Args:
        model: draws them.
        conditions: of each sample, by its number.
        seed: with a sample's number and condition, decides it.
        temperature: a number or one a level, coarsest first; None takes the recorded one, as with the next two.
        top_k: draw from the k likeliest codes only.
        top_p: draw from the likeliest codes that hold this much probability.

    Raises:
        InputError: an argument out of its range; at a call, numbers that do not follow one another.
        CheckpointError: the model has no priors.
    """

    def __init__(
        self,
        model: TrainedModel,
        conditions: Sequence[Mapping[str, Any]],
        *,
        seed: int = 0,
        temperature: float | Sequence[float] | None = None,
        top_k: int | Sequence[int | None] | None = None,
        top_p: float | Sequence[float | None] | None = None,
    ) -> None:
        self.model, self.conditions, self.seed = model, list(conditions), seed
        self.settings = model.settings.replaced(temperature=temperature, top_k=top_k, top_p=top_p)
        model.sampler(**self.settings._asdict())  # refuses what cannot be drawn before any file is touched
        self.seconds = 0.0  # time of drawing codes so far

    def __call__(self, inputs: Tensor, network: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """Return the images `(b, c, *s)` of the samples numbered `inputs` `(b,)`, which follow one another."""
        numbers = inputs.tolist()
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise InputError(f"samples {numbers} were asked for at once: give numbers that follow one another")
        samples = self.model.sample(
            len(numbers),
            seed=self.seed,
            first_sample=numbers[0],
            conditions=[self.conditions[number] for number in numbers],
            **self.settings._asdict(),
        )
        self.seconds += samples.seconds
        return samples.images

    def about(self, number: int) -> dict[str, Any]:
        """How a sample is drawn."""
        return {
            "synthetic": True,
            "seed": self.seed,
            "index": number,
            **{name: list(values) for name, values in self.settings._asdict().items()},
            "condition": dict(self.conditions[number]),
        }


class SampleFiles:
    """Write what an evaluator samples: `images/sample_0000.nii.gz` and `.png`, `samples.png`, `samples.json` (last).

    Attach to the evaluator. Of several processes each writes the images that it has drawn, the first all the rest.

    Args:
        output_dir: folder to write to.
        inferer: the evaluator's.
        plane: gives the files their geometry; by default that of the slices which the priors learned from (axial where
            it is not known). Volumes have none: their axes are RAS+.
        pixel_mm: likewise (1 mm where it is not known).
        dicom: also write each as a secondary capture, `dicom/sample_0000/0001.dcm`.

    Raises:
        InputError: no such plane, or one for volumes; DICOM of several channels, or without highdicom.
    """

    def __init__(
        self,
        output_dir: str | Path,
        inferer: SampleInferer,
        *,
        plane: str | None = None,
        pixel_mm: float | None = None,
        dicom: bool = False,
    ) -> None:
        model = inferer.model
        self.folder, self.inferer = Path(output_dir), inferer
        self.volumes = model.autoencoder.spatial_dims == 3
        if self.volumes and plane is not None:
            raise InputError(f"the model is one of volumes, and plane is {plane!r}: leave it out")
        self.plane = model.plane if plane is None else check_plane(plane)
        self.pixel_mm = pixel_mm or model.record.pixel_mm or 1.0
        if dicom:
            check_highdicom()
            if (channels := inferer.model.autoencoder.in_channels) > 1:
                raise InputError(f"DICOM takes one channel, and the samples have {channels}: leave --dicom out")
        self.dicom = dicom

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: (self.folder / "images").mkdir(parents=True, exist_ok=True))
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write_batch)
        engine.add_event_handler(Events.COMPLETED, self.write_list)

    def write_batch(self, engine: Engine) -> None:
        """Write the images of one batch."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        for number, image_cs in zip(batch["sample"].tolist(), output["pred"].cpu().numpy(), strict=True):
            about = self.inferer.about(number)
            position = about["condition"].get("position_mm")
            affine = sample_affines(self.plane, image_cs.shape[1:], self.pixel_mm, [position])[0].numpy()
            write_slice_nifti(self.folder / f"{_name(number)}.nii.gz", image_cs, affine, about)
            told = f"{drawn_with(self.inferer.seed, self.inferer.settings)}; {asked_for(about['condition'])}"
            save_png(as_shown(image_cs), self.folder / f"{_name(number)}.png", description=told)
            if self.dicom:
                self._write_capture(about, image_cs[0], affine)

    def _write_capture(self, about: Mapping[str, Any], image_s: np.ndarray, affine: np.ndarray) -> None:
        weights = self.inferer.model.record.fingerprint
        labels = CaptureLabels(
            series_description="SYNTHETIC (monai_vqgen)",
            derivation=f"Synthetic, not a scan. Seed {about['seed']}, sample {about['index']}, autoencoder {weights}.",
            patient=f"SYNTHETIC-{about['seed']}-{about['index']:04d}",
        )
        folder = self.folder / "dicom" / f"sample_{about['index']:04d}"
        volume_s, plane = (image_s, "axial") if self.volumes else (image_s[..., None], self.plane)
        write_secondary_captures(folder, volume_s, affine=affine, plane=plane, labels=labels)

    def write_list(self, engine: Engine) -> None:
        """Write the picture of all samples, and then the list of them."""
        wait_for_all()
        if process_rank():
            return
        names = [_name(number) for number in range(len(self.inferer.conditions))]
        pictures = [np.asarray(Image.open(self.folder / f"{name}.png"), dtype=np.float32) / 255 for name in names]
        marks = [asked_for(condition) for condition in self.inferer.conditions]
        title = drawn_with(self.inferer.seed, self.inferer.settings)
        save_grid(np.stack(pictures), self.folder / "samples.png", marks=marks, title=title)
        settings = {name: list(values) for name, values in self.inferer.settings._asdict().items()}
        content = {
            "description": f"Synthetic {'volumes' if self.volumes else 'slices'}; not for clinical use.",
            "num_samples": len(names),
            "seed": self.inferer.seed,
            **settings,
            "plane": None if self.volumes else self.plane,
            "pixel_mm": self.pixel_mm,
            "autoencoder_fingerprint": self.inferer.model.record.fingerprint,
            "seconds": round(self.inferer.seconds, 3),
            "samples": [
                {**self.inferer.about(number), "image": f"{name}.nii.gz", "picture": f"{name}.png"}
                for number, name in enumerate(names)
            ],
        }
        write_json(self.folder / "samples.json", content)
        logger.info("%d samples in %.1f s", len(names), self.inferer.seconds)


def _name(number: int) -> str:
    return f"images/sample_{number:04d}"
