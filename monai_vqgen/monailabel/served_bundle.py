"""The bundle that is served: its version and its model, loaded when first asked for.

folder/configs/{metadata,inference}.json      folder/models/{model.pt, model.json, model_prior_level0.pt, ...}
                                              folder/models/healthy.safetensors, where anomalies are looked for
                                              folder/models/generative/{the same}, where samples have weights of theirs
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from monai_vqgen.bundles import bundle_root
from monai_vqgen.errors import CheckpointError, InputError
from monai_vqgen.models import TrainedModel
from monai_vqgen.models.record import STATISTICS

__all__ = ["ServedBundle"]


class ServedBundle:
    """A folder with the bundle's `configs` and `models`.

    Weights are loaded once a device, and again where their files have changed, so that a model that training has put in
    place is used from the next request on. `lock` is held by whoever uses the networks: answers are the same however
    many clients ask at once, and memory stays that of one.

    Args:
        root: the folder; None for the bundle that came with this package.

    Raises:
        InputError: there is no bundle in the folder.
        CheckpointError: its `model.pt` is missing, damaged, or does not match its record.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = bundle_root() if not root else Path(root).resolve()
        self.lock = threading.RLock()
        self._loaded: dict[tuple[str, bool, Path], tuple[tuple[Any, ...], TrainedModel]] = {}
        for name in ("metadata", "inference"):
            path = self.root / "configs" / f"{name}.json"
            if not path.is_file():
                raise InputError(f"{self.root} holds no bundle ({path} is missing): give its folder")
        metadata = json.loads((self.root / "configs" / "metadata.json").read_text(encoding="utf-8"))
        self.version = str(metadata["version"])
        self.model("cpu", with_priors=False)  # a server that could answer nothing should not start

    @property
    def weights(self) -> Path:
        """The autoencoder's weights; those of the priors lie beside them."""
        return self.root / "models" / "model.pt"

    @property
    def sampling_weights(self) -> Path:
        """The autoencoder's weights of the model that draws samples: the generative one where there is one."""
        generative = self.weights.parent / "generative" / self.weights.name
        return generative if generative.is_file() else self.weights

    @property
    def statistics(self) -> Path:
        """Those of healthy slices (`HealthySlices`), beside the weights."""
        return self.weights.with_name(STATISTICS)

    def has_priors(self, weights: Path | None = None) -> bool:
        """Whether there are priors to sample from beside weights, `self.weights` by default."""
        return (weights or self.weights).with_name("model_prior_level0.json").is_file()

    def model(self, device: str, *, with_priors: bool = True, weights: Path | None = None) -> TrainedModel:
        """The model on a device; `weights` are `self.weights` by default.

        Raises:
            CheckpointError: weights are missing, damaged, or of another architecture than their record says.
            CodesMismatchError: the priors were trained on the codes of another autoencoder than the one that is served.
        """
        with self.lock:
            weights = weights or self.weights
            if not weights.is_file():
                raise CheckpointError(f"the bundle has no weights ({weights} is missing): put a trained model.pt there")
            files = sorted(weights.parent.glob("model*.*"))
            changed = tuple((path.name, path.stat().st_mtime_ns) for path in files)
            known = self._loaded.get((device, with_priors, weights))
            if known is None or known[0] != changed:
                model = TrainedModel.from_bundle(weights, device=device, with_priors=with_priors)
                known = self._loaded[device, with_priors, weights] = (changed, model)
            return known[1]

    def about(self, device: str, weights: Path | None = None) -> dict[str, Any]:
        """What every answer says of the model: the bundle's version, and the fingerprint of the weights."""
        record = self.model(device, with_priors=False, weights=weights).record
        return {"model_version": self.version, "autoencoder_fingerprint": record.fingerprint}
