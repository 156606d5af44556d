"""The bundle that is served: its version, its networks with their weights, loaded when first asked for.

folder/configs/{metadata,inference,sample}.json      folder/models/{model.pt, model_prior_level0.pt, ...}
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_vqgen.bundles import bundle_root
from monai_vqgen.errors import CheckpointError, InputError
from monai_vqgen.models.priors import TrainedPriors, condition_dim, load_autoencoder, load_priors
from monai_vqgen.networks import HierarchicalVQVAE
from monai_vqgen.weights import fingerprint

__all__ = ["ServedBundle"]


class ServedBundle:
    """A folder with the bundle's `configs` and `models`.

    Weights are loaded once a device, and again where their file has changed, so that a model that training has put in
    place is used from the next request on. `lock` is held by whoever uses the networks: answers are the same however
    many clients ask at once, and memory stays that of one.

    Args:
        root: the folder; None for the bundle that came with this package.

    Raises:
        InputError: there is no bundle in the folder.
        CheckpointError: its `model.pt` is missing, damaged, or of another network than `inference.json` defines.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = bundle_root() if not root else Path(root).resolve()
        self.lock = threading.RLock()
        self._networks: dict[tuple[str, str], tuple[tuple[Any, ...], Any]] = {}
        for name in ("metadata", "inference", "sample"):
            if not self._config(name).is_file():
                raise InputError(f"{self.root} holds no bundle ({self._config(name)} is missing): give its folder")
        self.version = str(json.loads(self._config("metadata").read_text(encoding="utf-8"))["version"])
        self.autoencoder("cpu")  # a server that could answer nothing should not start

    @property
    def models(self) -> Path:
        """The folder of the weights."""
        return self.root / "models"

    @property
    def model(self) -> Path:
        """The autoencoder's weights."""
        return self.models / "model.pt"

    @property
    def network_def(self) -> dict[str, Any]:
        """The autoencoder's definition as it stands in `inference.json`."""
        definition: dict[str, Any] = json.loads(self._config("inference").read_text(encoding="utf-8"))["network_def"]
        return definition

    def has_priors(self) -> bool:
        """Whether there are priors to sample from."""
        return (self.models / "model_prior_level0.json").is_file()

    def autoencoder(self, device: str) -> HierarchicalVQVAE:
        """The autoencoder on a device, in evaluation mode.

        Raises:
            CheckpointError: its weights are missing, damaged, or of another architecture.
        """
        with self.lock:
            network: HierarchicalVQVAE = self._cached("autoencoder", device, self._load_autoencoder)
            return network

    def priors(self, device: str) -> TrainedPriors:
        """The priors on a device.

        Raises:
            CheckpointError: the weights of one are missing, damaged, or of another architecture.
            CodesMismatchError: they were trained on the codes of another autoencoder than the one that is served.
        """
        with self.lock:
            priors: TrainedPriors = self._cached("priors", device, self._load_priors)
            return priors

    def about(self, device: str) -> dict[str, Any]:
        """What every answer says of the model: the bundle's version, and the fingerprint of the weights."""
        return {"model_version": self.version, "autoencoder_fingerprint": fingerprint(self.autoencoder(device))}

    def _config(self, name: str) -> Path:
        return self.root / "configs" / f"{name}.json"

    def _cached(self, what: str, device: str, load: Any) -> Any:
        if not self.model.is_file():
            raise CheckpointError(
                f"the bundle has no weights ({self.model} is missing): train them, or put a trained model.pt there"
            )
        changed = tuple((path.name, path.stat().st_mtime_ns) for path in sorted(self.models.glob("model*.*")))
        known = self._networks.get((what, device))
        if known is None or known[0] != changed:
            known = self._networks[what, device] = (changed, load(device))
        return known[1]

    def _load_autoencoder(self, device: str) -> HierarchicalVQVAE:
        parser = self._parser("inference")
        return load_autoencoder(parser.get_parsed_content("network_def"), self.model, device=torch.device(device))

    def _load_priors(self, device: str) -> TrainedPriors:
        if not self.has_priors():
            raise CheckpointError(f"the bundle has no priors in {self.models}: train them first (train_prior.json)")
        parser = self._parser("sample")
        parser["condition_dim"] = condition_dim(self.models)
        definitions = parser.get_parsed_content("prior_defs")
        return load_priors(definitions, self.models, autoencoder=self.autoencoder(device), device=torch.device(device))

    def _parser(self, name: str) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config(str(self._config(name)))
        parser["bundle_root"] = str(self.root)
        return parser
