"""The app that MONAI Label serves: its tasks, and how a request that cannot work is answered."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from monai_vqgen.errors import CheckpointError, CodesMismatchError, InputError, VQGenError, root_cause
from monai_vqgen.monailabel.anomaly import AnomalyMapTask, AnomalyTask, LatestScores
from monai_vqgen.monailabel.interfaces import (
    First,
    HTTPException,
    LocalDatastore,
    MONAILabelApp,
    Random,
    device_map,
    settings,
)
from monai_vqgen.monailabel.reconstruct import ReconstructTask
from monai_vqgen.monailabel.served_bundle import ServedBundle
from monai_vqgen.monailabel.synthesis import CompletionTask, SamplingTask
from monai_vqgen.monailabel.train import SERVER_VARIABLE, AutoencoderTrainTask

__all__ = ["MyApp", "Studies"]

logger = logging.getLogger(__name__)

BAD_REQUEST, NOT_FOUND, CONFLICT = 400, 404, 409  # statuses of HTTP
SAMPLING = "sampling"
LONGEST_NAME = 100  # bytes


class Studies(LocalDatastore):
    """The folder of studies, in which the names that clients give lead to no other folder and no other kind of file."""

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Keep an image that a client has sent; an empty id is that of its file."""
        self._check_file(image_id or "unnamed", image_filename)
        return str(super().add_image(image_id, image_filename, image_info))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label, in a folder named by its tag."""
        self._check_file(label_tag, label_filename)
        return str(super().save_label(image_id, label_filename, label_tag, label_info))

    def _check_file(self, name: Any, path: str) -> None:
        _check_name(name)
        if not any(fnmatch(path, kind) for kind in self._extensions):
            raise HTTPException(BAD_REQUEST, f"send a file of one of the kinds {', '.join(self._extensions)}")


class MyApp(MONAILabelApp):
    """Reconstruction, sampling, completion, anomaly maps and training of the bundle; see `docs/MONAI_LABEL.md`.

    MONAI Label finds this class by its base. `--conf bundle FOLDER` serves another bundle than the package's own.

    Args:
        app_dir: the folder of `main.py`; jobs keep their slices and logs in `model/training` there.
        studies: folder of the scans.
        conf: the `--conf` pairs of the command line.

    Raises:
        InputError, CheckpointError: the bundle cannot be served; the server does not start.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.bundle = ServedBundle(conf.get("bundle"))
        self.runs = Path(app_dir) / "model" / "training"
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name="monai_vqgen",
            description="Discrete generative models of medical images; for research, not for diagnosis",
            version=self.bundle.version,
        )
        if not self.datastore().list_images():
            logger.warning("%s holds no images: clients have to send theirs, and there is nothing to train on", studies)

    def init_datastore(self) -> Any:
        """The folder of studies, or a DICOMweb server's."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return Studies(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, Any]:
        """The models that a client can ask."""
        scores = LatestScores(self.bundle)
        return {
            "reconstruction": ReconstructTask(self.bundle),
            SAMPLING: SamplingTask(self.bundle),
            "completion": CompletionTask(self.bundle),
            "anomaly": AnomalyTask(scores),
            "anomaly_map": AnomalyMapTask(scores),
        }

    def init_trainers(self) -> dict[str, Any]:
        """The one that trains the autoencoder."""
        return {"autoencoder": AutoencoderTrainTask(self.bundle, self.runs)}

    def init_strategies(self) -> dict[str, Any]:
        """Which study a viewer is given next."""
        return {"random": Random(), "first": First()}

    def server_mode(self, mode: bool) -> None:
        """Remember that this process is the server, and tell the jobs that it will start."""
        super().server_mode(mode)
        os.environ[SERVER_VARIABLE] = str(os.getpid())

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> Any:
        """Answer a request, or say with a 4xx why it cannot be answered."""
        model = request.get("model")
        if not isinstance(model, str) or model not in self._infers:
            raise HTTPException(NOT_FOUND, f"there is no model {model!r}; choose one of {', '.join(self._infers)}")
        try:
            image = None if model == SAMPLING else self._image(request, datastore or self.datastore())
            self._check_mask(request.get("label"))
            _check_name(request.get("label_tag") or "original")
            return super().infer({**request, "image": image, "device": _device(request)}, datastore)
        except HTTPException:
            raise
        except Exception as error:
            own = root_cause(error)
            if not isinstance(own, VQGenError):
                raise
            raise HTTPException(
                CONFLICT if isinstance(own, CheckpointError | CodesMismatchError) else BAD_REQUEST, str(own)
            ) from error

    def train(self, request: Mapping[str, Any]) -> Any:
        """Run a job, in the process that the server has started for it.

        A client that asks the server itself to train (`run_sync`) is refused: it would answer nobody else for hours.
        """
        if self._server_mode:
            raise HTTPException(
                BAD_REQUEST, "run_sync is not offered: start the job, and ask GET /train/ how far it is"
            )
        return super().train(request)

    def bundle_path(self, model: str | None) -> None:
        """No folder to look for scripts in. Asked before a job starts: the place to refuse a wrong name at once."""
        if model is not None and model not in self._trainers:
            known = ", ".join(self._trainers)
            raise HTTPException(NOT_FOUND, f"there is nothing to train by the name {model!r}; choose one of {known}")

    def _image(self, request: Mapping[str, Any], datastore: Any) -> str:
        """The id or path of the image: one of the studies, or one that the client has sent, and no other file."""
        image = str(request.get("image") or "")
        path = datastore.get_image_uri(image)
        if path:
            return path if os.path.exists(image) else image  # MONAI Label takes a path in the working folder for it
        if image and os.path.isfile(image) and self._is_upload(Path(image).resolve()):
            return image
        raise HTTPException(
            NOT_FOUND, f"there is no image {image!r} among the studies; send a file, or the id of a study"
        )

    def _check_mask(self, label: Any) -> None:
        """Refuse a mask that the client names instead of sending it: it could be any file of the server."""
        if label and ("\0" in str(label) or not self._is_upload(Path(str(label)).resolve())):
            raise HTTPException(NOT_FOUND, f"there is no mask {label!r}: send it as a file")

    def _is_upload(self, path: Path) -> bool:
        """Whether MONAI Label has put the file there: uploads go to the temporary folder, sessions to their own."""
        if path.parent == Path(tempfile.gettempdir()).resolve():
            return path.name.startswith(tempfile.gettempprefix())
        sessions = self.sessions()  # None where they are switched off
        return sessions is not None and path.is_relative_to(Path(sessions.store_path).resolve())


def _check_name(name: Any) -> None:
    """Refuse what is no name of an image, a label or a tag within one folder."""
    usable = isinstance(name, str) and re.fullmatch(r"[^./\\\0][^/\\\0]*", name)
    if not usable or len(name.encode(errors="replace")) > LONGEST_NAME:
        raise HTTPException(
            BAD_REQUEST, f"{name!r} names no file: give up to {LONGEST_NAME} characters, no slashes, the first no dot"
        )


def _device(request: Mapping[str, Any]) -> str:
    """The torch device that a request names as torch does, or as the server's info does; the first one by default."""
    devices = device_map()
    given = request.get("device") or next(iter(devices.values()))
    device = devices.get(given, given) if isinstance(given, str) else None
    if device not in {"cpu", *devices.values()}:
        raise InputError(f"device is {given!r}; choose one of {', '.join(sorted({'cpu', *devices}))}")
    return str(device)
