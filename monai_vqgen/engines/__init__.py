"""What Ignite's and MONAI's trainers need: objectives, batch preparation, seeding, several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.engines.accumulation import AccumulatedUpdate, accumulated_update
    from monai_vqgen.engines.adversarial import AdversarialUpdate
    from monai_vqgen.engines.batches import (
        PrepareCodes,
        PrepareImages,
        channels_last,
        check_one_size,
        place,
        sharded_loader,
        warmup_cosine,
    )
    from monai_vqgen.engines.command_line import check_command_line
    from monai_vqgen.engines.conditions import encode_records, fitted_conditions, record_encoding
    from monai_vqgen.engines.distributed import (
        distribute,
        end_distributed,
        local_device,
        own_block,
        process_count,
        process_rank,
        shard,
        start_distributed,
        wait_for_all,
    )
    from monai_vqgen.engines.encoding import check_mirroring, write_codes
    from monai_vqgen.engines.objectives import AutoencoderObjective, PriorObjective, objective_loss
    from monai_vqgen.engines.preprocessing import augmentation, slice_loading
    from monai_vqgen.engines.seeding import EpochSeeding, check_seed, seed_everything
    from monai_vqgen.engines.starting import start_prior
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "accumulation": ["AccumulatedUpdate", "accumulated_update"],
            "adversarial": ["AdversarialUpdate"],
            "batches": [
                "PrepareCodes",
                "PrepareImages",
                "channels_last",
                "check_one_size",
                "place",
                "sharded_loader",
                "warmup_cosine",
            ],
            "command_line": ["check_command_line"],
            "conditions": ["encode_records", "fitted_conditions", "record_encoding"],
            "distributed": [
                "distribute",
                "end_distributed",
                "local_device",
                "own_block",
                "process_count",
                "process_rank",
                "shard",
                "start_distributed",
                "wait_for_all",
            ],
            "encoding": ["check_mirroring", "write_codes"],
            "objectives": ["AutoencoderObjective", "PriorObjective", "objective_loss"],
            "preprocessing": ["augmentation", "slice_loading"],
            "seeding": ["EpochSeeding", "check_seed", "seed_everything"],
            "starting": ["start_prior"],
        },
    )

__all__ = [
    "AccumulatedUpdate",
    "AdversarialUpdate",
    "AutoencoderObjective",
    "EpochSeeding",
    "PrepareCodes",
    "PrepareImages",
    "PriorObjective",
    "accumulated_update",
    "augmentation",
    "channels_last",
    "check_command_line",
    "check_mirroring",
    "check_one_size",
    "check_seed",
    "distribute",
    "encode_records",
    "end_distributed",
    "fitted_conditions",
    "local_device",
    "objective_loss",
    "own_block",
    "place",
    "process_count",
    "process_rank",
    "record_encoding",
    "seed_everything",
    "shard",
    "sharded_loader",
    "slice_loading",
    "start_distributed",
    "start_prior",
    "wait_for_all",
    "warmup_cosine",
    "write_codes",
]
