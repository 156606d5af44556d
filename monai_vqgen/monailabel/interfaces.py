"""The classes of MONAI Label that the app builds on; stand-ins that explain themselves where it is not installed."""

from __future__ import annotations

from typing import Any

from monai.utils import optional_import

__all__ = [
    "BundleInferTask",
    "First",
    "HTTPException",
    "InferTask",
    "InferType",
    "LocalDatastore",
    "MONAILabelApp",
    "Random",
    "TrainTask",
    "device_map",
    "settings",
]


def _part(module: str, name: str) -> Any:
    return optional_import(module, name=name, as_type="base")[0]


MONAILabelApp = _part("monailabel.interfaces.app", "MONAILabelApp")
LocalDatastore = _part("monailabel.datastore.local", "LocalDatastore")
InferTask = _part("monailabel.interfaces.tasks.infer_v2", "InferTask")
InferType = _part("monailabel.interfaces.tasks.infer_v2", "InferType")
TrainTask = _part("monailabel.interfaces.tasks.train", "TrainTask")
BundleInferTask = _part("monailabel.tasks.infer.bundle", "BundleInferTask")
First = _part("monailabel.tasks.activelearning.first", "First")
Random = _part("monailabel.tasks.activelearning.random", "Random")
HTTPException = _part("fastapi", "HTTPException")
device_map = _part("monailabel.utils.others.generic", "device_map")
settings = _part("monailabel.config", "settings")
