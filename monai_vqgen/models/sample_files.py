"""Samples on disk: each as NIfTI and PNG, all as one picture, and a list that says how they were drawn.

Shape legend: b batch, c channels, s spatial axes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from PIL import Image

from monai_vqgen.data import CaptureLabels, write_secondary_captures
from monai_vqgen.data.io.captures import check_highdicom
from monai_vqgen.data.io.nifti import write_slice_nifti
from monai_vqgen.engines import process_rank, wait_for_all
from monai_vqgen.files import write_json
from monai_vqgen.inferers import SliceSampler
from monai_vqgen.models.priors import TrainedPriors
from monai_vqgen.plots.pictures import grid_picture, save_png
from monai_vqgen.transforms.geometry import PLANES, check_plane

__all__ = ["SampleFiles", "sample_affine"]

logger = logging.getLogger(__name__)


def sample_affine(plane: str, image_size: Sequence[int], pixel_mm: float, position_mm: float | None) -> np.ndarray:
    """Where a sample lies: its middle over the origin, at its position below, behind or right of the edge."""
    direction = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    axes = np.array([direction[code] for code in PLANES[check_plane(plane)]], dtype=float).T
    affine = np.eye(4)
    affine[:3, :3] = axes * pixel_mm
    middle = (np.array([*image_size, 1]) - 1) / 2
    affine[:3, 3] = -affine[:3, :3] @ middle + axes[:, 2] * (position_mm or 0.0)
    return affine


class SampleFiles:
    """Write what an evaluator samples: `images/sample_0000.nii.gz` and `.png`, `samples.png`, `samples.json` (last).

    Attach to the evaluator. Of several processes each writes the images that it has drawn, the first all the rest.

    Args:
        output_dir: folder to write to.
        sampler: the evaluator's inferer; its options and its time go into `samples.json`.
        priors: whose samples they are.
        conditions: of each sample, by its number.
        plane: gives the files their geometry; by default that of the slices which the priors learned from (axial where
            it is not known).
        pixel_mm: likewise (1 mm where it is not known).
        dicom: also write each as a secondary capture, `dicom/sample_0000/0001.dcm`.

    Raises:
        InputError: no such plane; highdicom is not installed.
    """

    def __init__(
        self,
        output_dir: str | Path,
        sampler: SliceSampler,
        *,
        priors: TrainedPriors,
        conditions: Sequence[Mapping[str, Any]],
        plane: str | None = None,
        pixel_mm: float | None = None,
        dicom: bool = False,
    ) -> None:
        self.folder, self.sampler, self.priors, self.conditions = Path(output_dir), sampler, priors, conditions
        self.plane = check_plane(plane or priors.plane or "axial")
        self.pixel_mm = pixel_mm or priors.pixel_mm or 1.0
        if dicom:
            check_highdicom()
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
            about = self._about(number)
            affine = sample_affine(self.plane, image_cs.shape[1:], self.pixel_mm, about["condition"].get("position_mm"))
            write_slice_nifti(self.folder / f"{self._name(number)}.nii.gz", image_cs[0], affine, about)
            save_png(image_cs[0], self.folder / f"{self._name(number)}.png")
            if self.dicom:
                self._write_capture(number, image_cs[0], affine)

    def _write_capture(self, number: int, image_s: np.ndarray, affine: np.ndarray) -> None:
        about, version = self._about(number), self.priors.autoencoder_fingerprint
        labels = CaptureLabels(
            series_description="SYNTHETIC (monai_vqgen)",
            derivation=f"Synthetic: nobody's scan. Seed {about['seed']}, sample {number}, autoencoder {version}.",
            patient=f"SYNTHETIC-{about['seed']}-{number:04d}",
        )
        folder = self.folder / "dicom" / f"sample_{number:04d}"
        write_secondary_captures(folder, image_s[..., None], affine=affine, plane=self.plane, labels=labels)

    def write_list(self, engine: Engine) -> None:
        """Write the picture of all samples, and then the list of them."""
        wait_for_all()
        if process_rank():
            return
        names = [self._name(number) for number in range(len(self.conditions))]
        pictures = [np.asarray(Image.open(self.folder / f"{name}.png"), dtype=np.float32) / 255 for name in names]
        save_png(grid_picture(np.stack(pictures)), self.folder / "samples.png")
        files = [{"image": f"{name}.nii.gz", "picture": f"{name}.png"} for name in names]
        content = {
            "description": "Synthetic slices; not for clinical use.",
            "num_samples": len(names),
            **self.sampler.options(),
            "plane": self.plane,
            "pixel_mm": self.pixel_mm,
            "autoencoder_fingerprint": self.priors.autoencoder_fingerprint,
            "seconds": round(self.sampler.seconds, 3),
            "samples": [{**self._about(number), **file} for number, file in enumerate(files)],
        }
        write_json(self.folder / "samples.json", content)
        logger.info("%d samples in %.1f s, written to %s", len(names), self.sampler.seconds, self.folder)

    def _name(self, number: int) -> str:
        return f"images/sample_{number:04d}"

    def _about(self, number: int) -> dict[str, Any]:
        options = self.sampler.options()
        return {
            "synthetic": True,
            "seed": options["seed"],
            "index": number,
            "temperature": options["temperature"],
            "condition": dict(self.conditions[number]),
        }
