"""Small valid files of every kind that the product reads, its reader of each, and what makes a changed one whole again.

A checksum refuses nearly every change at once. So half of the changes are made below it: to the content, before
`Target.repair` packs or seals it anew, as a hostile or a broken writer would have done.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_vqgen.data import CodeStore, load_datalist, make_phantom, read_slice_geometry, read_volume, save_codes
from monai_vqgen.data.io.nifti import write_slice_nifti
from monai_vqgen.data.slices.participants import read_participants
from monai_vqgen.data.slices.sources import find_scans
from monai_vqgen.files import read_json, write_json
from monai_vqgen.models import TrainedModel, compress_scan, decompress_scan
from monai_vqgen.models.loading import load_autoencoder
from monai_vqgen.models.record import autoencoder_record
from monai_vqgen.models.streams import stored_scan
from monai_vqgen.networks import EMACodebook, HierarchicalVQVAE
from monai_vqgen.transforms import LoadSlice
from monai_vqgen.weights import fingerprint, read_state, save_weights, write_state

__all__ = ["TARGETS", "Target"]

_SEAL, _DIGITS = b"sha256:", 64  # of `monai_vqgen.weights`


class Target(NamedTuple):
    """A kind of files.

    Attributes:
        write: writes valid files into a folder.
        read: reads that folder as the product does; what it gives back is compared with that of the valid files.
        changed: the names of the files to change, one at a time.
        repair: from changed content to a whole file, in the folder; None where there is no checksum.
        unpack: from a whole file to the content that `repair` takes.
        checked: whether a change that is not repaired is refused or changes nothing of what is read.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    changed: tuple[str, ...]
    repair: Callable[[bytes, Path], bytes] | None = None
    unpack: Callable[[bytes], bytes] = bytes
    checked: bool = False


def _voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 900, (6, 7, 5)).astype(np.int16)


def _write_nifti(folder: Path) -> None:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    image = nib.Nifti1Image(_voxels(), affine)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b'{"subject": "01"}'))
    nib.save(image, folder / "one.nii")
    nib.save(nib.Nifti2Image(_voxels().astype(np.float32) / 3 - 50, affine), folder / "two.nii")


def _write_gzip(folder: Path) -> None:
    nib.save(nib.Nifti1Image(_voxels(), np.diag([2.0, 2.0, 3.0, 1.0])), folder / "volume.nii.gz")
    about = {"subject": "01", "plane": "axial", "position_mm": 40.0}
    write_slice_nifti(folder / "slice.nii.gz", np.random.default_rng(0).random((9, 8)), np.eye(4), about)


def _read_volumes(folder: Path) -> Any:
    return [read_volume(path)[:3] for path in sorted(folder.glob("*.nii"))]


def _read_gzip(folder: Path) -> Any:
    image = LoadSlice()(folder / "slice.nii.gz")
    return read_volume(folder / "volume.nii.gz")[:3], image.numpy(), image.affine.numpy(), _plain(image.meta)


def _plain(meta: Any) -> dict[str, str]:
    return {key: str(meta[key]) for key in ("subject", "plane", "position_mm") if key in meta}


def _write_dicom(folder: Path) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    for k in range(3):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["fuzz", str(k)])
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        data.Modality, data.PatientID, data.InstanceNumber = "MR", "P1", k + 1
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.1", "1.2.2", "1.2.3"
        data.Rows, data.Columns, data.SamplesPerPixel = 7, 6, 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 1
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3.0 * k]
        data.PixelSpacing, data.SliceThickness = [2, 2], 3
        data.RescaleSlope, data.RescaleIntercept = ("1", "0") if k == 0 else ("1.0", "0.0")
        data.PixelData = _voxels()[:, :, k].T.tobytes()
        data.save_as(folder / f"{k}.dcm", enforce_file_format=True)


def _read_dicom(folder: Path) -> Any:
    found, skipped = find_scans(folder)
    return [read_volume(record.path)[:3] for record in found] or skipped


def _write_png(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 9)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "gray.png")
    Image.fromarray(pixels.astype(np.uint16) * 200).save(folder / "deep.png")
    Image.fromarray(pixels).convert("P").save(folder / "palette.png")


def _read_png(folder: Path) -> Any:
    return [LoadSlice()(path).numpy() for path in sorted(folder.glob("*.png"))]


def _seal_png(content: bytes, folder: Path) -> bytes:
    """Right checksums of all chunks, as far as the lengths still lead from one to the next."""
    whole, at = bytearray(content), 8
    while at + 12 <= len(whole):
        end = at + 8 + struct.unpack_from(">I", whole, at)[0]
        if end + 4 > len(whole):
            break
        struct.pack_into(">I", whole, end, zlib.crc32(whole[at + 4 : end]))
        at = end + 4
    return bytes(whole)


def _write_datalist(folder: Path) -> None:
    images = {"training": ["a", "b"], "validation": ["c"], "test": ["d"]}
    for name in (name for names in images.values() for name in names):
        (folder / f"{name}.nii.gz").touch()
    content: dict[str, Any] = {"plane": "axial", "image_size": [16, 16], "pixel_mm": 1.5}
    for split, names in images.items():
        content[split] = [{"image": f"{n}.nii.gz", "subject": n, "position_mm": 40.0, "age": 31} for n in names]
    write_json(folder / "datalist.json", content, sealed=True)


def _read_datalist(folder: Path) -> Any:
    parts = [load_datalist(folder, split) for split in ("training", "validation", "test")]
    for item in (item for part in parts for item in part):
        item["image"] = Path(item["image"]).name
    return json.dumps(parts), tuple(read_slice_geometry(folder))


def _seal_json(content: bytes, folder: Path) -> bytes:
    """Without the seal's line, as who changes such a file by hand leaves it."""
    return b"\n".join(line for line in content.split(b"\n") if b'"seal"' not in line).replace(b",\n}", b"\n}")


def _network() -> HierarchicalVQVAE:
    torch.manual_seed(0)
    books = [EMACodebook(4, 4), EMACodebook(4, 4)]
    return HierarchicalVQVAE(channels=4, residual_channels=2, quantizers=books).eval()


def _write_model(folder: Path) -> None:
    network = _network()
    save_weights(network, folder / "model.pt")
    record = autoencoder_record(network, image_size=[16, 16], plane="axial", pixel_mm=2.0)
    write_json(folder / "model.json", {**record, "fingerprint": fingerprint(network)}, sealed=True)
    write_state({"place": {"epoch": 2}, "parts": {"best": {"best": 0.5}, "m": torch.ones(3)}}, folder / "state.pt")


def _read_model(folder: Path) -> Any:
    network, record = load_autoencoder(folder / "model.pt")
    state = read_state(folder / "state.pt")
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return tensors, tuple(record), str(state)


def _seal_weights(content: bytes, folder: Path) -> bytes:
    return content + hashlib.sha256(content).hexdigest().encode()


def _write_codes(folder: Path) -> None:
    random = torch.Generator().manual_seed(0)
    rows = {"training": 3, "validation": 2}
    grids = {s: [torch.randint(0, 8, (n, 2, 2), generator=random) for _ in (0, 1)] for s, n in rows.items()}
    records = {s: [{"subject": f"{s}{i}", "position_mm": 1.0 * i} for i in range(n)] for s, n in rows.items()}
    save_codes(folder, grids, records, codebook_sizes=(8, 8), fingerprint="ab" * 32, image_size=(16, 16))


def _read_codes(folder: Path) -> Any:
    store = CodeStore(folder)
    codes = [[store.codes(split, level).numpy() for level in range(store.num_levels)] for split in store.splits]
    store.check_fingerprint("ab" * 32)
    return codes, json.dumps([store.records(split) for split in store.splits]), store.image_size, store.geometry


def _seal_codes(content: bytes, folder: Path) -> bytes:
    """The description states the changed file's size and checksum."""
    description = read_json(folder / "codes.json")
    description["file"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(folder / "codes.json", description, sealed=True)
    return content


def _write_participants(folder: Path) -> None:
    rows = ["participant_id\tage\tsex\tsite", "sub-01\t31\tM\ta", "sub-02\t89+\tfemale\tb", 'sub-03\t"40,5"\tn/a\tö']
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _read_participants(folder: Path) -> Any:
    return json.dumps(read_participants(folder / "participants.tsv"), allow_nan=False)


def _gzip(content: bytes, folder: Path) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def _write_scan(folder: Path) -> None:
    phantom = make_phantom(0, voxel_mm=8.0)
    nib.save(nib.Nifti1Image(phantom.voxels_s, phantom.affine), folder / "sub-01_T1w.nii")


def _read_scan(folder: Path) -> Any:
    """What verify and extraction do with a scan: place, box, resampled slices."""
    from monai_vqgen.data import ScanOptions, SliceOptions
    from monai_vqgen.data.verify import verify_folder

    options = SliceOptions(plane="axial", start_mm=40, stop_mm=70, step_mm=15)
    return verify_folder(folder, scans=ScanOptions(), slices=options).table().replace(str(folder), "")


def _write_streams(folder: Path) -> None:
    model, phantom = TrainedModel(_network()), make_phantom(0, voxel_mm=8.0)
    scan = MetaTensor(torch.from_numpy(phantom.voxels_s), affine=torch.from_numpy(phantom.affine))
    (folder / "scan.vqg").write_bytes(compress_scan(model, scan, pixel_mm=8.0, lossless=True))
    (folder / "plain.vqg").write_bytes(model.compress(torch.from_numpy(_voxels()[:, None] / 899).float()))


def _read_streams(folder: Path) -> Any:
    model, scan = TrainedModel(_network()), (folder / "scan.vqg").read_bytes()
    stored = stored_scan(scan)
    plain = model.decompress((folder / "plain.vqg").read_bytes()).numpy()
    return stored and stored[:3], decompress_scan(model, scan, lossy=True).numpy(), plain


def _seal_stream(content: bytes, folder: Path) -> bytes:
    """The right checksum of a header whose parts are as long as it says."""
    whole, sections = bytearray(content), 28 + 4 * content[6] if len(content) > 6 else 0
    if sections + 4 <= len(whole):
        end = sections + 4 + sum(struct.unpack_from("<2H", whole, sections))
        if end + 4 <= len(whole):
            struct.pack_into("<I", whole, end, zlib.crc32(whole[:end]))
    return bytes(whole)


TARGETS: dict[str, Target] = {
    "nifti": Target(_write_nifti, _read_volumes, ("one.nii", "two.nii")),
    "gzip": Target(_write_gzip, _read_gzip, ("volume.nii.gz", "slice.nii.gz"), _gzip, gzip.decompress, checked=True),
    "scan": Target(_write_scan, _read_scan, ("sub-01_T1w.nii",)),
    "dicom": Target(_write_dicom, _read_dicom, ("0.dcm", "1.dcm", "2.dcm")),
    "png": Target(_write_png, _read_png, ("gray.png", "deep.png", "palette.png"), _seal_png, checked=True),
    "datalist": Target(_write_datalist, _read_datalist, ("datalist.json",), _seal_json, checked=True),
    "streams": Target(_write_streams, _read_streams, ("scan.vqg", "plain.vqg"), _seal_stream, checked=True),
    "participants": Target(_write_participants, _read_participants, ("participants.tsv",)),
    "record": Target(_write_model, _read_model, ("model.json",), _seal_json, checked=True),
    "weights": Target(
        _write_model, _read_model, ("model.pt", "state.pt"), _seal_weights, lambda whole: whole[:-_DIGITS], checked=True
    ),
    "codes": Target(_write_codes, _read_codes, ("codes.safetensors",), _seal_codes, checked=True),
    "store": Target(_write_codes, _read_codes, ("codes.json",), _seal_json, checked=True),
}
