"""`inference.json` reconstructs volumes and slices in their own geometry."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from factories import tiny_autoencoder, tiny_model
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from PIL import Image

from monai_vqgen.bundles import bundle_root, run_stage
from monai_vqgen.data import read_volume
from monai_vqgen.data.io.nifti import write_slice_nifti
from monai_vqgen.errors import CheckpointError, DatalistError, InputError, OutputExistsError, ScanError
from monai_vqgen.inferers import VolumeReconstructionInferer
from monai_vqgen.models import ReconstructionWriter, model_pixel_mm, reconstruction_names, reconstruction_records
from monai_vqgen.networks import HierarchicalVQVAE
from monai_vqgen.transforms.geometry import middle_slice, view_plane


def tiny_network() -> HierarchicalVQVAE:
    return tiny_autoencoder(512)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    whole = tiny_model((128, 128), autoencoder=tiny_network(), with_priors=False, record={"pixel_mm": 1.736})
    return whole.save(tmp_path_factory.mktemp("run")) / "model.pt"


def write_blob(path: Path, shape, affine, seed=0) -> None:
    grid = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij")
    blob = np.where(sum(x**2 for x in grid) < 1, 400 + 100 * grid[0] + seed, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(blob.astype(np.int16), affine), path)


def run(dataset_dir: Path, output_dir: Path, model: Path, **options) -> None:
    options = {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir), "model": str(model), **options}
    run_stage("inference", options=options)


def test_config_has_every_property_that_monai_asks_for(tmp_path, model):
    write_blob(tmp_path / "scans" / "a.nii.gz", (12, 12, 4), np.eye(4))
    root = bundle_root()
    workflow = ConfigWorkflow(
        config_file=str(root / "configs" / "inference.json"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(root),
        model=str(model),
        dataset_dir=str(tmp_path / "scans"),
        output_dir=str(tmp_path / "out"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_volumes_of_any_layout_come_back_in_their_own_geometry(tmp_path, model):
    oblique = nib.affines.from_matvec(
        np.array([[0.1, -0.9, 0.05], [1.1, 0.1, 0.1], [0.1, 0.05, -2.0]]), [10.0, -20.0, 5.0]
    )
    write_blob(tmp_path / "scans" / "sub-01" / "anat" / "sub-01_T1w.nii.gz", (19, 22, 9), oblique)
    write_blob(tmp_path / "scans" / "sub-02" / "anat" / "sub-02_T1w.nii.gz", (11, 17, 21), np.diag([-2.0, 1.5, 1, 1]))
    run(tmp_path / "scans", tmp_path / "out", model, pixel_mm=1.5, plane="coronal")
    for subject in ("sub-01", "sub-02"):
        original = nib.load(tmp_path / "scans" / subject / "anat" / f"{subject}_T1w.nii.gz")
        result = nib.load(tmp_path / "out" / subject / "anat" / f"{subject}_T1w_recon.nii.gz")
        assert result.shape == original.shape
        np.testing.assert_allclose(result.affine, original.affine, atol=1e-5)
        expected = VolumeReconstructionInferer("coronal", pixel_mm=1.5)(
            MetaTensor(torch.tensor(original.get_fdata()).float()[None], affine=torch.tensor(original.affine))[None],
            tiny_network(),
        )
        np.testing.assert_allclose(result.get_fdata(), expected[0, 0].numpy(), rtol=1e-3, atol=1e-2)


def test_slices_of_the_test_split_come_back_in_their_own_geometry(tmp_path, model):
    affine = np.array([[0, -2.0, 0, 31], [-2.0, 0, 0, 20], [0, 0, -1.0, 65], [0, 0, 0, 1]])
    image = np.random.default_rng(0).random((20, 24)).astype(np.float32)
    for split in ("train", "test"):
        (tmp_path / "slices" / split).mkdir(parents=True)
        write_slice_nifti(tmp_path / "slices" / split / "a.nii.gz", image, affine, {})
    run(tmp_path / "slices", tmp_path / "out", model)
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.nii.gz"))
    assert written == ["test/a_recon.nii.gz"]
    result = nib.load(tmp_path / "out" / written[0])
    assert result.shape == (20, 24, 1)
    np.testing.assert_allclose(result.affine, affine)
    expected = tiny_network()(torch.tensor(image)[None, None]).detach().clamp(0, 1)[0, 0].numpy()
    np.testing.assert_allclose(result.get_fdata()[..., 0], expected, atol=1e-4)


def test_earlier_results_are_not_overwritten_silently(tmp_path, model):
    write_blob(tmp_path / "scans" / "a.nii.gz", (12, 12, 4), np.eye(4))
    run(tmp_path / "scans", tmp_path / "out", model)
    with pytest.raises(OutputExistsError, match="a_recon"):
        run(tmp_path / "scans", tmp_path / "out", model)
    run(tmp_path / "scans", tmp_path / "out", model, overwrite=True)


def test_the_bar_knows_how_many_scans_there_are(tmp_path, model, capsys):
    for name in ("a", "b"):
        write_blob(tmp_path / "scans" / f"{name}.nii.gz", (12, 12, 4), np.eye(4))
    run(tmp_path / "scans", tmp_path / "out", model)
    assert "reconstructing: 100%" in (shown := capsys.readouterr().err)
    assert "2/2" in shown


def test_bad_input_is_named(tmp_path, model):
    with pytest.raises(DatalistError, match="nowhere is not there: give a scan"):
        run(tmp_path / "nowhere", tmp_path / "out", model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatalistError, match="no scans"):
        run(tmp_path / "empty", tmp_path / "out", model)
    write_blob(tmp_path / "scans" / "a.nii.gz", (12, 12, 4), np.eye(4))
    with pytest.raises(InputError, match=r"nowhere\.pt"):
        run(tmp_path / "scans", tmp_path / "out", tmp_path / "nowhere.pt")
    shutil.copy(model, tmp_path / "model.pt")  # without its record
    with pytest.raises(CheckpointError, match=r"no record of the architecture \(model\.json\)"):
        run(tmp_path / "scans", tmp_path / "out", tmp_path / "model.pt")
    whole = (tmp_path / "scans" / "a.nii.gz").read_bytes()
    (tmp_path / "scans" / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScanError, match=r"none of the 1 scans could be used.*a\.nii\.gz: unreadable"):
        run(tmp_path / "scans", tmp_path / "out", model)


def test_an_unusable_scan_is_a_logged_skip_and_the_others_are_written(tmp_path, model, caplog):
    for name in ("a", "b", "c", "d"):
        write_blob(tmp_path / "scans" / f"{name}.nii.gz", (12, 12, 4), np.eye(4))
    whole = (tmp_path / "scans" / "a.nii.gz").read_bytes()
    (tmp_path / "scans" / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    nib.save(nib.Nifti1Image(np.full((9, 9, 9), 5, np.int16), np.eye(4)), tmp_path / "scans" / "c.nii.gz")
    with caplog.at_level("WARNING"):
        run(tmp_path / "scans", tmp_path / "out", model)
    assert sorted(p.name for p in (tmp_path / "out").rglob("*.nii.gz")) == ["a_recon.nii.gz", "d_recon.nii.gz"]
    messages = [record.getMessage() for record in caplog.records]
    assert any("skipped" in m and "b.nii.gz: unreadable" in m for m in messages)
    assert any("skipped" in m and "c.nii.gz" in m and "no contrast" in m for m in messages)
    assert any("2 of 4 scans were skipped" in m for m in messages)


@pytest.mark.filterwarnings("ignore:.*nvImageCodec.*:UserWarning")  # MONAI looks for an optional CUDA decoder
@pytest.mark.filterwarnings("ignore:.*NvImgCodec.*:UserWarning")
def test_files_are_written_at_the_names_that_were_asked_for(tmp_path, model, write_series):
    """Dotted names of series keep every number, whatever the letters of a suffix; a folder of links stays inside."""
    voxels = np.zeros((12, 10, 4))
    voxels[2:10, 2:8, 1:3] = np.arange(1, 7)[:, None]
    for series in ("1.2.3.4", "1.2.3.5"):
        write_series(tmp_path / "scans" / "deep" / series, voxels, np.diag([2.0, 2.0, 3.0, 1.0]), series)
    records = reconstruction_records(tmp_path / "scans")
    names = reconstruction_names(records, tmp_path / "scans", "recon")
    stems = ["deep/1.2.3.4_recon", "deep/1.2.3.5_recon"]
    assert names == [f"{stem}{suffix}" for suffix in (".nii.gz", "_planes.png") for stem in stems]
    run(tmp_path / "scans", tmp_path / "out", model, pixel_mm=2.0)
    files = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".gz", ".png")]
    assert {path.relative_to(tmp_path / "out").as_posix() for path in files} == set(names)
    write_blob(tmp_path / "other" / "A.B.NII.GZ", (12, 12, 4), np.eye(4))
    run(tmp_path / "other", tmp_path / "out2", model, pixel_mm=2.0)
    assert [p.name for p in (tmp_path / "out2").rglob("*.nii.gz")] == ["A.B_recon.nii.gz"]
    with pytest.raises(OutputExistsError, match=r"1\.2\.3\.4"):
        run(tmp_path / "scans", tmp_path / "out", model)


def test_one_file_is_reconstructed_by_itself(tmp_path, model):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_blob(tmp_path / "scans" / name, (12, 12, 4), np.eye(4))
    run(tmp_path / "scans" / "b.nii.gz", tmp_path / "out", model, pixel_mm=2.0)
    assert [path.name for path in (tmp_path / "out").rglob("*.nii.gz")] == ["b_recon.nii.gz"]
    with pytest.raises(DatalistError, match=r"c\.nii\.gz is not there: give a scan, or a folder"):
        run(tmp_path / "scans" / "c.nii.gz", tmp_path / "out2", model)


@pytest.mark.parametrize("affine", [np.diag([1.0, 1.0, 3.0, 1.0]), np.array(
    [[0, -1.0, 0, 9], [-1.0, 0, 0, 9], [0, 0, -3.0, 9], [0, 0, 0, 1]]
)], ids=["RAS", "PLI"])  # fmt: skip
def test_beside_a_reconstruction_lies_a_picture_of_its_three_middle_planes(tmp_path, affine):
    world = np.zeros((9, 9, 5), dtype=np.float32)  # RAS: one bright voxel off the middle along each axis
    world[4, 4, 2], world[6, 4, 2], world[4, 7, 2], world[4, 4, 3] = 100, 500, 300, 400
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.io_orientation(affine)
    )
    values = nib.orientations.apply_orientation(world, turn)
    if affine[0, 0]:
        np.testing.assert_array_equal(values, world)
    writer = ReconstructionWriter()
    writer.set_data_array(values[None])
    writer.set_metadata({"affine": affine})
    writer.write(tmp_path / "a_recon.nii.gz")
    with Image.open(tmp_path / "a_recon_planes.png") as picture:
        shown = np.asarray(picture)
    assert shown.shape == (15, 27)  # rows of 15 mm: five slices of 3 mm
    axial, coronal, sagittal = shown[3:12, :9], shown[:, 9:18], shown[:, 18:]
    bright = [np.unravel_index(panel.argmax(), panel.shape) for panel in (axial, coronal, sagittal)]
    levels = [int(panel.max()) for panel in (axial, coronal, sagittal)]
    turned = nib.orientations.aff2axcodes(affine)
    assert levels[0] == levels[1] > levels[2] > 0, turned  # the voxel to the right is in the first two alone
    views = [view_plane(values, affine, plane).volume_s for plane in ("axial", "coronal", "sagittal")]
    for (row, column), view, panel in zip(bright, views, (axial, coronal, sagittal), strict=True):
        middle = view[:, :, view.shape[2] // 2]
        expected = np.unravel_index(middle.argmax(), middle.shape)
        assert (row * middle.shape[0] // panel.shape[0], column) == expected


@pytest.mark.parametrize("axes", ["RAS", "PLI"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_picture_of_a_slice_shows_it_as_a_viewer_does(tmp_path, axes, channels):
    world = np.zeros((8, 6, 1), dtype=np.float32)
    world[6, 1] = 1  # to the right, behind
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    values = nib.orientations.apply_orientation(world, turn)
    writer = ReconstructionWriter()
    writer.set_data_array(np.stack([values] * channels))
    writer.set_metadata({"affine": nib.orientations.inv_ornt_aff(turn, world.shape)})
    writer.write(tmp_path / "a_recon.nii.gz")
    with Image.open(tmp_path / "a_recon_planes.png") as picture:
        shown = np.asarray(picture).reshape(6, 8 * (2 if channels == 2 else 1), -1)[:, :8, 0]
    plane = view_plane(values, nib.orientations.inv_ornt_aff(turn, world.shape), "axial").volume_s[:, :, 0]
    assert np.unravel_index(shown.argmax(), shown.shape) == np.unravel_index(plane.argmax(), plane.shape)
    assert np.unravel_index(shown.argmax(), shown.shape)[0] == 4, "the front is at the top"


def test_a_picture_is_never_made_larger_than_its_voxels_are_worth():
    thin = view_plane(np.ones((300, 20, 20)), np.diag([0.001, 1.0, 1.0, 1.0]), "coronal")
    assert max(middle_slice(thin).shape) == 1024


def test_a_picture_and_a_reconstruction_of_one_name_are_refused(tmp_path):
    records = [{"image": str(tmp_path / name)} for name in ("scans/a.nii.gz", "scans/a_planes.png")]
    with pytest.raises(DatalistError, match=r"a_planes\.png and the picture of a_planes\.nii\.gz"):
        reconstruction_names(records, tmp_path / "scans", "planes")


def test_what_lies_elsewhere_is_written_into_the_folder_all_the_same(tmp_path):
    records = [{"image": str(tmp_path / name)} for name in ("scans/a/b.nii", "elsewhere/c.nii.gz", "scans/../d.png")]
    assert reconstruction_names(records, tmp_path / "scans", "recon") == [
        "a/b_recon.nii.gz",
        "c_recon.nii.gz",
        "d_recon.png",
        "a/b_recon_planes.png",
        "c_recon_planes.png",
    ]


def test_two_inputs_for_one_name_are_refused(tmp_path):
    records = [{"image": str(tmp_path / name)} for name in ("scans/a.nii", "scans/a.nii.gz")]
    with pytest.raises(DatalistError, match=r"a\.nii and .*a\.nii\.gz"):
        reconstruction_names(records, tmp_path / "scans", "recon")


def test_the_percentiles_are_the_recorded_ones_or_those_given(tmp_path):
    model = tiny_model(with_priors=False, record={"percentiles": (1.0, 97.0)})
    parser = ConfigParser()
    parser.read_config(bundle_root() / "configs" / "inference.json")
    parser.update({"model": str(model.save(tmp_path) / "model.pt"), "device": "cpu"})
    inferer = parser.get_parsed_content("inferer")
    assert (inferer.lower, inferer.upper) == (1.0, 97.0)
    parser.update({"lower_percentile": 2, "upper_percentile": 98})
    inferer = parser.get_parsed_content("inferer")
    assert (inferer.lower, inferer.upper) == (2, 98)


def test_links_keep_their_own_names(tmp_path, model):
    write_blob(tmp_path / "store" / "MD5-abc.nii.gz", (12, 12, 4), np.eye(4))
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "sub-01_T1w.nii.gz").symlink_to(tmp_path / "store" / "MD5-abc.nii.gz")
    run(tmp_path / "scans", tmp_path / "out", model)
    assert [path.name for path in (tmp_path / "out").rglob("*.nii.gz")] == ["sub-01_T1w_recon.nii.gz"]
    with pytest.raises(OutputExistsError, match="sub-01_T1w_recon"):
        run(tmp_path / "scans", tmp_path / "out", model)


def test_volumes_are_shown_at_the_bundles_pixel_size_and_slices_as_they_are(tmp_path):
    write_blob(tmp_path / "scans" / "a.nii.gz", (12, 12, 4), np.eye(4))
    (tmp_path / "slices" / "test").mkdir(parents=True)
    write_slice_nifti(tmp_path / "slices" / "test" / "a.nii.gz", np.zeros((12, 12)), np.eye(4), {})
    model = tiny_model(with_priors=False, record={"pixel_mm": 2.5})
    assert model_pixel_mm(model.record, tmp_path / "scans") == 2.5
    assert model_pixel_mm(model.record, tmp_path / "slices") is None


@pytest.mark.real
@pytest.mark.slow
def test_real_volumes_of_mixed_geometry_come_back_in_their_own(real_data, tmp_path, model):
    folder = real_data / "volumes"
    run(folder, tmp_path / "out", model, pixel_mm=3.0)
    inputs = sorted(folder.glob("*.nii.gz"))
    assert len(inputs) >= 9
    for path in inputs:
        volume, result = read_volume(path), nib.load(tmp_path / "out" / path.name.replace(".nii.gz", "_recon.nii.gz"))
        assert result.shape == volume.voxels_s.shape
        np.testing.assert_allclose(result.affine, volume.affine, atol=1e-4)
        assert np.isfinite(result.get_fdata(dtype=np.float32)).all()


@pytest.mark.filterwarnings("ignore:.*(nvImageCodec|NvImgCodec).*:UserWarning")  # MONAI looks for a CUDA decoder
def test_reconstructions_also_leave_as_secondary_captures_of_the_sources_patient(tmp_path, model, write_series):
    pydicom = pytest.importorskip("pydicom")
    voxels = np.zeros((16, 20, 5))
    voxels[3:13, 4:16, 1:4] = 500 + 10 * np.arange(10)[:, None, None]
    write_series(tmp_path / "scans" / "series", voxels, np.diag([2.0, 2.5, 3.0, 1.0]), "4", "P7")
    run(tmp_path / "scans", tmp_path / "out", model, dicom=True)
    (nifti,) = (tmp_path / "out").rglob("*.nii.gz")
    captures = [pydicom.dcmread(path) for path in sorted((tmp_path / "out" / "series_recon_dicom").iterdir())]
    assert len(captures) == 5
    assert {capture.PatientID for capture in captures} == {"P7"}
    stack = np.stack([c.pixel_array * float(c.RescaleSlope) + float(c.RescaleIntercept) for c in captures])
    image = nib.as_closest_canonical(nib.load(nifti)).get_fdata()
    expected = image[::-1, ::-1, ::-1].transpose(2, 1, 0)  # from the top; rows to the back, columns to the left
    assert np.abs(stack - expected).max() <= np.ptp(expected) / 65535
    again = read_volume(tmp_path / "out" / "series_recon_dicom")
    placed = nib.as_closest_canonical(nib.Nifti1Image(again.voxels_s.astype(float), again.affine)).affine
    np.testing.assert_allclose(placed, nib.as_closest_canonical(nib.load(nifti)).affine, atol=1e-5)
    assert {len(capture.SourceImageSequence) for capture in captures} == {5}
    nifti.unlink()
    with pytest.raises(OutputExistsError, match="series_recon_dicom"):
        run(tmp_path / "scans", tmp_path / "out", model, dicom=True)
