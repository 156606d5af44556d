"""What Ignite's and MONAI's trainers need: objectives, batch preparation, seeding, several processes."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.engines.accumulation import (
        AccumulatedUpdate as AccumulatedUpdate,
        accumulated_update as accumulated_update,
    )
    from monai_vqgen.engines.adversarial import AdversarialUpdate as AdversarialUpdate
    from monai_vqgen.engines.batches import (
        PrepareCodes as PrepareCodes,
        PrepareImages as PrepareImages,
        augmentation as augmentation,
        channels_last as channels_last,
        check_one_size as check_one_size,
        place as place,
        sharded_loader as sharded_loader,
        slice_loading as slice_loading,
        warmup_cosine as warmup_cosine,
    )
    from monai_vqgen.engines.command_line import check_command_line as check_command_line
    from monai_vqgen.engines.conditions import (
        encode_records as encode_records,
        fitted_conditions as fitted_conditions,
        known_conditions as known_conditions,
        record_encoding as record_encoding,
        start_prior as start_prior,
    )
    from monai_vqgen.engines.distributed import (
        distribute as distribute,
        end_distributed as end_distributed,
        local_device as local_device,
        own_block as own_block,
        process_count as process_count,
        process_rank as process_rank,
        shard as shard,
        start_distributed as start_distributed,
        wait_for_all as wait_for_all,
    )
    from monai_vqgen.engines.encoding import check_mirroring as check_mirroring, write_codes as write_codes
    from monai_vqgen.engines.objectives import (
        AutoencoderObjective as AutoencoderObjective,
        DecoderObjective as DecoderObjective,
        PriorObjective as PriorObjective,
        objective_loss as objective_loss,
    )
    from monai_vqgen.engines.seeding import (
        EpochSeeding as EpochSeeding,
        check_seed as check_seed,
        seed_everything as seed_everything,
    )
else:
    __getattr__, __dir__, __all__ = attach(__name__)
