"""A MONAI Deploy application: DICOM series in, their reconstructions and unusual places out, in the same study.

    pip install monai-deploy-app-sdk 'monai-vqgen[dicom]'
    python examples/deploy/app.py --input SERIES --output OUT

    folder ── SeriesReader ── scans ─┬─ Reconstructor ── reconstructions ── CaptureWriter ── captures, a folder a series
                                     └─ AnomalyFinder ── anomalies ── SegmentationWriter ── a DICOM segmentation each

Unusual places are found with weights that have priors and statistics of healthy slices. Folders that are not given are
those of a packaged application: HOLOSCAN_INPUT_PATH, HOLOSCAN_OUTPUT_PATH and HOLOSCAN_MODEL_PATH. The last may be
missing; the weights that come with the package then serve.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, Operator, OperatorSpec

from monai_vqgen import TrainedModel
from monai_vqgen.anomaly.healthy import model_fingerprint
from monai_vqgen.data import CaptureLabels, discover_volumes, write_secondary_captures
from monai_vqgen.data.io.segmentations import write_segmentation
from monai_vqgen.errors import ScanError, VQGenError
from monai_vqgen.models.anomaly_scans import anomaly_labels, anomaly_scan, healthy_beside
from monai_vqgen.models.reconstruction_files import DERIVATION
from monai_vqgen.models.scans import as_volume

logger = logging.getLogger(__name__)


class Scan(NamedTuple):
    """A series, by a name of its own, and its voxels, a MetaTensor `(1, X, Y, Z)` with the affine."""

    name: str
    folder: Path
    volume: Any


class SeriesReader(Operator):
    """Every series of a folder that can be read; the others are logged.

    Output `scans`: a list of `Scan`.
    """

    def __init__(self, fragment: Any, *conditions: Any, folder: Path, **options: Any) -> None:
        self.folder = folder
        super().__init__(fragment, *conditions, **options)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the output."""
        spec.output("scans")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Read them."""
        scans = []
        for record in discover_volumes(self.folder):
            try:
                scans.append(Scan(record.name, record.path, as_volume(record.path)))
            except ScanError as error:
                logger.warning("skipped: %s", error)
        if not scans:
            raise ScanError(f"{self.folder}: no series can be used; give a folder of DICOM series")
        op_output.emit(scans, "scans")


class Reconstructor(Operator):
    """Encodes and decodes each scan. Input `scans`, output `reconstructions`: lists of `Scan`."""

    def __init__(self, fragment: Any, *conditions: Any, model: Path | None, **options: Any) -> None:
        self.model = model
        super().__init__(fragment, *conditions, **options)

    def setup(self, spec: OperatorSpec) -> None:
        """Name input and output."""
        spec.input("scans")
        spec.output("reconstructions")

    def start(self) -> None:
        """Load the weights, once."""
        self.trained = TrainedModel.from_bundle(self.model, with_priors=False)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Reconstruct them."""
        done = []
        for scan in op_input.receive("scans"):
            try:
                done.append(scan._replace(volume=self.trained.reconstruct(scan.volume)))
            except ScanError as error:  # one series must not cost the others theirs
                logger.warning("%s is not reconstructed: %s", scan.folder, error)
        op_output.emit(done, "reconstructions")


class AnomalyFinder(Operator):
    """Looks for unusual places. Input `scans`; output `anomalies`: pairs of a `Scan` and its `AnomalyScan`.

    Scans that cannot be searched are logged, and so is why none is searched: weights without priors or statistics, or
    with such that do not fit.
    """

    def __init__(self, fragment: Any, *conditions: Any, model: Path | None, **options: Any) -> None:
        self.model = model
        super().__init__(fragment, *conditions, **options)

    def setup(self, spec: OperatorSpec) -> None:
        """Name input and output."""
        spec.input("scans")
        spec.output("anomalies")

    def start(self) -> None:
        """Load weights and statistics, once."""
        self.healthy = None
        try:
            self.trained, healthy = TrainedModel.from_bundle(self.model), healthy_beside(self.model)
        except VQGenError as error:  # reconstructions do without
            logger.warning("no unusual places are looked for: %s", error)
            return
        if not self.trained.priors:
            logger.warning("no unusual places are looked for: the weights have no priors")
        elif healthy is None:
            logger.warning("no unusual places are looked for: no statistics of healthy slices lie beside the weights")
        elif healthy.fingerprint not in ("", model_fingerprint(self.trained)):
            logger.warning("no unusual places are looked for: the statistics of healthy slices are of other weights")
        elif not np.isfinite(healthy.threshold):
            logger.warning("no unusual places are looked for: the statistics of healthy slices have no threshold")
        else:
            self.healthy = healthy

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Score every slice."""
        found = []
        for scan in op_input.receive("scans"):
            if self.healthy is None:
                continue
            try:
                unusual = anomaly_scan(self.trained, scan.volume, self.healthy)
            except VQGenError as error:
                logger.warning("%s is not searched for unusual places: %s", scan.folder, error)
                continue
            for note in unusual.notes:
                logger.warning("%s: %s", scan.folder, note)
            found.append((scan, unusual))
        op_output.emit(found, "anomalies")


class SegmentationWriter(Operator):
    """Writes DICOM segmentations over their series. Input `anomalies`: pairs of a `Scan` and its `AnomalyScan`."""

    def __init__(self, fragment: Any, *conditions: Any, folder: Path, **options: Any) -> None:
        self.folder = folder
        super().__init__(fragment, *conditions, **options)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the input."""
        spec.input("anomalies")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for scan, found in op_input.receive("anomalies"):
            path = self.folder / f"{scan.name}_lesions.dcm"
            labels = anomaly_labels(found, scan.folder)
            try:
                write_segmentation(path, found.lesions_s, affine=found.affine, labels=labels)
            except ScanError as error:
                logger.warning("%s: no segmentation is written: %s", scan.folder, error)
                continue
            logger.info("%s: unusual places in %s", scan.folder, path)


class CaptureWriter(Operator):
    """Writes secondary captures, marked as derived and for research. Input `reconstructions`: a list of `Scan`."""

    def __init__(self, fragment: Any, *conditions: Any, folder: Path, plane: str = "axial", **options: Any) -> None:
        self.folder, self.plane = folder, plane
        super().__init__(fragment, *conditions, **options)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the input."""
        spec.input("reconstructions")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write them."""
        for scan in op_input.receive("reconstructions"):
            labels = CaptureLabels("Reconstruction (monai_vqgen)", DERIVATION, source=scan.folder)
            affine = np.asarray(scan.volume.affine, dtype=np.float64)
            voxels_s = np.asarray(scan.volume.as_tensor()[0])
            folder = self.folder / scan.name
            try:
                paths = write_secondary_captures(folder, voxels_s, affine=affine, plane=self.plane, labels=labels)
            except ScanError as error:
                logger.warning("%s: no captures are written: %s", scan.folder, error)
                continue
            logger.info("%s: %d captures in %s", scan.folder, len(paths), folder)


class ReconstructionApp(Application):
    """Reconstructs every series, and segments its unusual places."""

    def __init__(self, source: Path, output: Path, model: Path | None = None) -> None:
        self.source, self.output, self.model = source, output, model
        super().__init__()

    def compose(self) -> None:
        """Connect them."""
        reader = SeriesReader(self, CountCondition(self, 1), folder=self.source, name="reader")
        reconstructor = Reconstructor(self, model=self.model, name="reconstructor")
        writer = CaptureWriter(self, folder=self.output, name="writer")
        self.add_flow(reader, reconstructor, {("scans", "scans")})
        self.add_flow(reconstructor, writer, {("reconstructions", "reconstructions")})
        finder = AnomalyFinder(self, model=self.model, name="finder")
        self.add_flow(reader, finder, {("scans", "scans")})
        segmentations = SegmentationWriter(self, folder=self.output, name="segmentations")
        self.add_flow(finder, segmentations, {("anomalies", "anomalies")})


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=os.environ.get("HOLOSCAN_INPUT_PATH", "input"))
    parser.add_argument("--output", type=Path, default=os.environ.get("HOLOSCAN_OUTPUT_PATH", "output"))
    parser.add_argument("--model", type=Path, default=os.environ.get("HOLOSCAN_MODEL_PATH", "models"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    ReconstructionApp(options.input, options.output, options.model if options.model.exists() else None).run()


if __name__ == "__main__":
    main()
