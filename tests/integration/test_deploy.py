"""The MONAI Deploy application: a DICOM series through its operators, by the Deploy SDK where it is installed."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from factories import random_statistics, tiny_autoencoder, tiny_model

from monai_vqgen.data import make_phantoms, read_volume
from monai_vqgen.errors import DatalistError, InputError, ScanError
from monai_vqgen.models import TrainedModel
from monai_vqgen.models.anomaly_scans import anomaly_scan
from monai_vqgen.models.record import STATISTICS
from monai_vqgen.networks import ConditionEncoder

pytest.importorskip("highdicom")
APP = Path(__file__).parents[2] / "examples" / "deploy" / "app.py"


class Operator:
    """What the SDK's operators are, as far as the application's need it."""

    def __init__(self, fragment: Any, *conditions: Any, name: str) -> None:
        self.name, self.ports = name, types.SimpleNamespace(input=set(), output=set())
        self.setup(types.SimpleNamespace(input=self.ports.input.add, output=self.ports.output.add))

    def setup(self, spec: Any) -> None: ...

    def start(self) -> None: ...


class Application:
    """Runs its operators in the order in which they were connected."""

    def __init__(self) -> None:
        self.flows: list[tuple[Any, Any, set[tuple[str, str]]]] = []

    def add_flow(self, source: Any, target: Any, ports: set[tuple[str, str]]) -> None:
        assert {name for name, _ in ports} <= source.ports.output
        assert {name for _, name in ports} == target.ports.input
        self.flows.append((source, target, ports))

    def run(self) -> None:
        self.compose()
        mail: dict[tuple[Any, str], Any] = {}
        for operator in dict.fromkeys(operator for flow in self.flows for operator in flow[:2]):
            operator.start()
            sent: dict[str, Any] = {}
            receive = types.SimpleNamespace(receive=lambda name, to=operator: mail.pop((to, name)))
            operator.compute(
                receive, types.SimpleNamespace(emit=lambda value, name, to=sent: to.update({name: value})), None
            )
            for source, target, ports in self.flows:
                if source is operator:
                    mail.update({(target, there): sent[here] for here, there in ports})


@pytest.fixture
def app(monkeypatch):
    """The application's module, on the SDK or on what stands in for it."""
    if importlib.util.find_spec("monai.deploy") is None:
        core = types.ModuleType("monai.deploy.core")
        core.Application, core.Operator, core.OperatorSpec = Application, Operator, object
        conditions = types.ModuleType("monai.deploy.conditions")
        conditions.CountCondition = lambda fragment, count: None
        for module in (types.ModuleType("monai.deploy"), core, conditions):
            monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("deployed_app", APP)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "deployed_app", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image(write_series, tmp_path):
    """A scan, and `in/T1`, its series."""
    (scan,) = make_phantoms(tmp_path / "scans", 1, seed=3, voxel_mm=8.0, progress=False)
    image = nib.load(scan)
    write_series(tmp_path / "in" / "T1", np.asarray(image.dataobj).astype(np.int16), image.affine, patient="P7")
    return image


def test_a_series_comes_back_as_captures_in_its_place_and_study(app, image, tmp_path):
    import pydicom

    tiny_model((16, 16), with_priors=False).save(tmp_path / "model")
    app.ReconstructionApp(tmp_path / "in", tmp_path / "out", tmp_path / "model").run()

    (captures,) = (tmp_path / "out").iterdir()
    found, model = read_volume(captures), TrainedModel.from_bundle(tmp_path / "model")
    expected = model.reconstruct(tmp_path / "in" / "T1")
    wanted = nib.as_closest_canonical(nib.Nifti1Image(expected.as_tensor()[0].numpy(), expected.affine.numpy()))
    stored = nib.Nifti1Image((found.voxels_s * found.slope).astype(np.float32), found.affine)
    shown = nib.as_closest_canonical(stored)  # captures are cut and turned as a viewer shows them
    np.testing.assert_allclose(shown.affine, wanted.affine, atol=1e-4)
    span = float(expected.max() - expected.min())
    assert span > 0
    difference = np.abs(shown.get_fdata() - wanted.get_fdata())
    assert difference.max() < span / 2**15, "16 bits"
    headers = [pydicom.dcmread(path) for path in captures.glob("*.dcm")]
    assert len(headers) == image.shape[2]
    assert {header.PatientID for header in headers} == {"P7"}
    assert all("not for diagnosis" in header.ImageComments for header in headers)


def saved(folder: Path, *, threshold: float = 1.0) -> TrainedModel:
    """A model with priors and statistics."""
    model = tiny_model((16, 16), condition=ConditionEncoder({"position_mm": (40.0, 97.0)}))
    model.save(folder)
    random_statistics(model, threshold=threshold).save(folder / STATISTICS)
    return model


def test_unusual_places_lie_over_the_series_as_a_segmentation_of_its_study(app, image, tmp_path):
    import highdicom
    import pydicom

    model = saved(tmp_path / "model")
    app.ReconstructionApp(tmp_path / "in", tmp_path / "out", tmp_path / "model").run()

    (path,) = (tmp_path / "out").glob("*.dcm")
    written = highdicom.seg.segread(path)
    source = pydicom.dcmread(next((tmp_path / "in" / "T1").glob("*.dcm")))
    assert written.PatientID == "P7"
    assert "research only" in written.ImageComments
    assert written.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    kind = written.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodeMeaning == "Lesion"
    found = anomaly_scan(model, tmp_path / "in" / "T1", random_statistics(model, threshold=1.0))
    assert 0 < found.lesions_s.mean() < 1
    shown = written.get_volume(combine_segments=True, allow_missing_positions=True)
    affine = np.diag([-1, -1, 1, 1]) @ shown.affine
    indices = np.argwhere(shown.array)
    inside = np.linalg.solve(found.affine, affine @ np.c_[indices, np.ones(len(indices))].T).round().astype(int)[:3]
    assert inside.shape[1] == found.lesions_s.sum()
    assert found.lesions_s[tuple(inside)].all(), "each marked voxel where it was found"
    captures = next((tmp_path / "out").glob("*/*.dcm"))
    assert pydicom.dcmread(captures).StudyInstanceUID == written.StudyInstanceUID


def test_a_series_that_has_no_segmentation_costs_no_other_its_own(
    app, image, write_series, tmp_path, caplog, monkeypatch
):
    voxels = np.asarray(image.dataobj).astype(np.int16)
    write_series(tmp_path / "in" / "T2", voxels, image.affine, series="2", patient="P8")
    write_series(tmp_path / "in" / "T3", voxels, image.affine, series="3", patient="P9")
    saved(tmp_path / "model")
    write, look = app.write_segmentation, app.anomaly_scan

    def refuse_t2(path, *arguments, **options):
        if options["labels"].source.name == "T2":
            raise ScanError("it cannot be referred to")
        write(path, *arguments, **options)

    capture = app.write_secondary_captures

    def refuse_t3(*arguments, **options):
        if options["labels"].source.name == "T3":
            raise ScanError("it has no header")
        return capture(*arguments, **options)

    seen = []

    def refuse_first(*arguments):
        seen.append(arguments)
        if len(seen) == 1:
            raise InputError("it has no place")
        return look(*arguments)

    flat = np.zeros_like(voxels)
    flat[3:6, 3:6, 3:6] = 7  # no contrast: it cannot be reconstructed
    write_series(tmp_path / "in" / "T4", flat, image.affine, series="4", patient="P99")
    monkeypatch.setattr(app, "write_segmentation", refuse_t2)
    monkeypatch.setattr(app, "write_secondary_captures", refuse_t3)
    monkeypatch.setattr(app, "anomaly_scan", refuse_first)
    app.ReconstructionApp(tmp_path / "in", tmp_path / "out", tmp_path / "model").run()
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 1
    assert "T4 is not reconstructed: " in caplog.text
    assert sum(path.is_dir() for path in (tmp_path / "out").iterdir()) == 2, "captures of T1 and T2"
    assert "T3: no captures are written: it has no header" in caplog.text
    assert "it cannot be referred to" in caplog.text
    assert "it has no place" in caplog.text


def with_priors_of_another(folder: Path) -> None:
    priors = {path: path.read_bytes() for path in folder.glob("model_prior*")}
    shutil.rmtree(folder)
    tiny_model((16, 16), autoencoder=tiny_autoencoder(seed=5), with_priors=False).save(folder)
    for path, content in priors.items():
        path.write_bytes(content)


def with_statistics_of_another(folder: Path) -> None:
    condition = ConditionEncoder({"position_mm": (40.0, 97.0)})
    random_statistics(tiny_model((16, 16), condition=condition, seed=5), threshold=1.0).save(folder / STATISTICS)


def without_threshold(folder: Path) -> None:
    shutil.rmtree(folder)
    saved(folder, threshold=float("nan"))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / STATISTICS).unlink(), "no statistics of healthy slices lie beside"),
        (lambda folder: (folder / STATISTICS).write_bytes(b"damaged"), "make them again"),
        (without_threshold, "the statistics of healthy slices have no threshold"),
        (with_statistics_of_another, "the statistics of healthy slices are of other weights"),
        (lambda folder: [path.unlink() for path in folder.glob("model_prior*")], "the weights have no priors"),
        (with_priors_of_another, "was trained on the codes of"),
    ],
    ids=["no statistics", "damaged statistics", "no threshold", "others' statistics", "no priors", "others' priors"],
)
def test_weights_that_cannot_find_unusual_places_reconstruct_all_the_same(app, image, tmp_path, caplog, spoil, why):
    saved(tmp_path / "model")
    spoil(tmp_path / "model")
    app.ReconstructionApp(tmp_path / "in", tmp_path / "out", tmp_path / "model").run()
    assert "no unusual places are looked for: " in caplog.text
    assert why in caplog.text
    assert [path.is_dir() for path in (tmp_path / "out").iterdir()] == [True]


def test_segmentations_do_not_wait_for_captures_and_what_was_left_out_is_said(app, image, tmp_path, caplog):
    saved(tmp_path / "model")
    parts = app.ReconstructionApp(tmp_path / "in", tmp_path / "out", tmp_path / "model")
    mail = {}
    port = (
        types.SimpleNamespace(receive=mail.pop),
        types.SimpleNamespace(emit=lambda value, name: mail.update({name: value})),
    )
    for operator in (
        app.SeriesReader(parts, folder=tmp_path / "in", name="reader"),
        app.AnomalyFinder(parts, model=tmp_path / "model", name="finder"),
        app.SegmentationWriter(parts, folder=tmp_path / "out", name="writer"),
    ):
        operator.start()
        operator.compute(*port, None)
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 1
    assert "slices of the brain outside the trained positions are left out" in caplog.text


def test_a_folder_without_a_series_ends_with_what_to_do(app, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DatalistError, match="holds no scans; expected"):
        app.SeriesReader(app.ReconstructionApp(tmp_path, tmp_path), folder=tmp_path / "in", name="reader").compute(
            None, None, None
        )
