"""How the training of a prior starts: from the codebooks that the code store carries.

Shape suffixes: n slices, s spatial axes, k codebook size, d code dimension.
"""

from __future__ import annotations

import logging

import torch

from monai_vqgen.data import CodeStore
from monai_vqgen.networks import Prior

__all__ = ["start_prior"]

logger = logging.getLogger(__name__)


def start_prior(prior: Prior, store: CodeStore, *, level: int, from_codebooks: bool = True) -> Prior:
    """Set an untrained prior's embeddings and logits by the autoencoder's codebooks and the codes' frequencies.

    Args:
        prior: of ``level``; changed in place.
        store: the codes it is to learn.
        level: 0 = coarsest.
        from_codebooks: False leaves the prior at its random start.

    Returns:
        The prior.

    Raises:
        CodesMismatchError: the prior's codebook sizes are not the store's.
    """
    store.check_prior(prior, level)
    codebooks_kd = [store.codebook(known) for known in range(level + 1)]
    if not from_codebooks or any(codebook_kd is None for codebook_kd in codebooks_kd):
        logger.info("The prior of level %d starts at random", level)
        return prior
    counts_k = torch.bincount(store.codes("training", level).flatten(), minlength=prior.num_codes)
    prior.start_from_codebooks([c for c in codebooks_kd if c is not None], counts_k=counts_k)
    return prior
