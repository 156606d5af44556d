"""How large a whole run is: slices, networks and training lengths, in one place."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from monai_vqgen.errors import InputError

__all__ = ["PRESETS", "RunPreset", "fast_bfloat16", "pick_preset"]


class RunPreset(NamedTuple):
    """All sizes of a run. Positions are millimeters below the top of the brain; tuples go level by level.

    `..._amp` asks for bfloat16 where the machine computes it fast, see `fast_bfloat16`.
    """

    image_size: int
    pixel_mm: float
    position_start_mm: float
    position_stop_mm: float
    position_step_mm: float
    phantom_subjects: int
    channels: int
    residual_channels: int
    num_codes: int
    autoencoder_epochs: int
    autoencoder_batch_size: int
    autoencoder_learning_rate: float
    autoencoder_amp: bool
    prior_channels: tuple[int, int]
    prior_layers: tuple[int, int]
    prior_attention_every: tuple[int, int]
    prior_epochs: tuple[int, int]
    prior_batch_size: int
    prior_learning_rate: float
    prior_amp: bool
    num_samples: int
    prior_dropout: tuple[float, float] = (0.1, 0.1)
    max_minutes: tuple[float | None, float | None, float | None] = (None, None, None)
    """Of the autoencoder and of each prior: a slow machine then trains less rather than longer."""
    temperature: tuple[float, float] = (1.0, 1.0)
    condition_names: tuple[str, ...] = ("position_mm",)
    affine_probability: float = 0.0
    gamma_probability: float = 0.0
    ssim_weight: float = 0.0
    split_file: str | None = None
    full_report: bool = False

    def slice_options(self) -> dict[str, Any]:
        """What `extract_slices.json` needs."""
        return {
            "image_size": [self.image_size, self.image_size],
            "pixel_mm": self.pixel_mm,
            "position_start_mm": self.position_start_mm,
            "position_stop_mm": self.position_stop_mm,
            "position_step_mm": self.position_step_mm,
            **({} if self.split_file is None else {"split_file": self.split_file}),
        }

    def autoencoder_options(self) -> dict[str, Any]:
        """What `train.json` needs, but for the network."""
        return {
            "max_epochs": self.autoencoder_epochs,
            "max_minutes": self.max_minutes[0],
            "val_interval": 1,  # so that the last epoch, the best as a rule, is looked at
            "batch_size": self.autoencoder_batch_size,
            "learning_rate": self.autoencoder_learning_rate,
            "amp": self.autoencoder_amp,
            "mirror_probability": 0.5,
            "affine_probability": self.affine_probability,
            "gamma_probability": self.gamma_probability,
            "ssim_weight": self.ssim_weight,
        }

    def prior_training_options(self, level: int) -> dict[str, Any]:
        """What `train_prior.json` needs, but for the priors."""
        return {
            "max_epochs": self.prior_epochs[level],
            "max_minutes": self.max_minutes[1 + level],
            "batch_size": self.prior_batch_size,
            "learning_rate": self.prior_learning_rate,
            "amp": self.prior_amp,
            "condition_names": list(self.condition_names),
        }

    def evaluation_options(self) -> dict[str, Any]:
        """What `evaluate.json` needs beyond the sampling."""
        return {"codecs": self.full_report, "sample_report": self.full_report}

    def network_options(self) -> dict[str, Any]:
        """What every config with a `network_def` needs."""
        options: dict[str, Any] = {
            "network_def::channels": self.channels,
            "network_def::residual_channels": self.residual_channels,
        }
        options["network_def::num_codes"] = self.num_codes
        return options

    def prior_options(self, level: int) -> dict[str, Any]:
        """The prior of a level in `train_prior.json`."""
        return {
            "prior_def::channels": self.prior_channels[level],
            "prior_def::num_layers": self.prior_layers[level],
            "prior_def::attention_every": self.prior_attention_every[level],
            "prior_def::dropout": self.prior_dropout[level],
            "sampling::temperature": self.temperature[level],
        }


PRESETS = {
    # phantoms on two cores, fourteen minutes in all at most
    "small": RunPreset(
        image_size=64,
        pixel_mm=3.472,
        position_start_mm=40.0,
        position_stop_mm=100.0,
        position_step_mm=4.0,
        phantom_subjects=48,
        channels=64,
        residual_channels=32,
        num_codes=512,
        autoencoder_epochs=16,
        autoencoder_batch_size=4,
        autoencoder_learning_rate=2e-3,
        autoencoder_amp=False,
        prior_channels=(64, 64),
        prior_layers=(9, 9),
        prior_attention_every=(3, 0),
        prior_epochs=(3, 3),
        prior_batch_size=2,
        prior_learning_rate=3e-3,
        prior_amp=False,
        num_samples=16,
        max_minutes=(4.0, 2.5, 5.0),
    ),
    # real scans on two cores, forty-five minutes in all at most
    "standard": RunPreset(
        image_size=128,
        pixel_mm=1.736,
        position_start_mm=40.0,
        position_stop_mm=100.0,
        position_step_mm=3.0,
        phantom_subjects=48,
        channels=64,
        residual_channels=32,
        num_codes=512,
        autoencoder_epochs=20,
        autoencoder_batch_size=4,
        autoencoder_learning_rate=2e-3,
        autoencoder_amp=True,
        prior_channels=(64, 64),
        prior_layers=(10, 8),
        prior_attention_every=(5, 0),
        prior_epochs=(4, 5),
        prior_batch_size=2,
        prior_learning_rate=3e-3,
        prior_amp=True,
        num_samples=16,
        max_minutes=(12.0, 8.0, 17.0),
        temperature=(0.6, 0.5),  # of 6 pairs looked at, the likeliest to show ventricles; at 1 the cortex is speckled
    ),
    # seconds, for tests: shows that all stages work together, not what they can do
    "tiny": RunPreset(
        image_size=32,
        pixel_mm=6.5,
        position_start_mm=50.0,
        position_stop_mm=80.0,
        position_step_mm=10.0,
        phantom_subjects=6,
        channels=8,
        residual_channels=4,
        num_codes=16,
        autoencoder_epochs=1,
        autoencoder_batch_size=4,
        autoencoder_learning_rate=1e-3,
        autoencoder_amp=False,
        prior_channels=(8, 8),
        prior_layers=(2, 2),
        prior_attention_every=(0, 0),
        prior_epochs=(1, 1),
        prior_batch_size=4,
        prior_learning_rate=1e-3,
        prior_amp=False,
        num_samples=3,
    ),
}
# the release: three times as many slices of the same size, a split of its own, every report; resumable, so no budgets
PRESETS["release_128"] = PRESETS["standard"]._replace(
    position_step_mm=1.0,
    autoencoder_epochs=15,
    prior_epochs=(3, 3),
    num_samples=512,
    max_minutes=(None, None, None),
    temperature=(0.8, 1.0),  # of nine pairs, by figures against training slices: docs/RESULTS.md
    condition_names=("position_mm", "sex", "age"),
    split_file="configs/splits/ds002748.json",
    full_report=True,
)
# what designs of the autoencoder are compared at: the release's subjects, a third of its slices
PRESETS["quick_128"] = PRESETS["release_128"]._replace(position_step_mm=3.0, num_samples=16, full_report=False)


def pick_preset(name: str | None, *, own_data: bool) -> RunPreset:
    """The preset of that name; by default "standard" for scans of the user's own, "small" for phantoms.

    Raises:
        InputError: no such preset.
    """
    name = name or ("standard" if own_data else "small")
    if name not in PRESETS:
        raise InputError(f"size {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def fast_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: on a GPU, or a CPU with instructions for it (else 4x slower)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
