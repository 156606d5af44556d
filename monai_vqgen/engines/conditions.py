"""What the training of a prior takes from the codes' records and codebooks: condition vectors, and where it starts.

Condition vectors are also those of held-out slices, which may lie outside the ranges of training.
Shape suffixes: n slices, f condition features, k codebook size, d code dimension.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from monai_vqgen.data import CodeStore
from monai_vqgen.data.slices.participants import RESERVED
from monai_vqgen.networks import ConditionEncoder, Prior
from monai_vqgen.networks.conditions import LABEL

__all__ = ["encode_records", "fitted_conditions", "known_conditions", "record_encoding", "start_prior"]

logger = logging.getLogger(__name__)

_MOST_CATEGORIES = 10  # of a column that is offered as a condition; names and remarks have more


def fitted_conditions(encoder: ConditionEncoder, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the encoder knows of each record, moved into what it was trained on.

    A user who asks for a value outside the trained range gets an error from the encoder. A held-out subject who is
    older than all training subjects must still be scored: numbers are moved to the nearest end of the range, and
    values of a category that training has not seen count as unknown. Both are counted in the log.

    Examples:
        >>> fitted_conditions(ConditionEncoder({"age": (20, 60)}), [{"age": 70.0, "subject": "sub-01"}])
        [{'age': 60.0}]
    """
    moved = 0
    fitted = []
    for record in records:
        known = encoder.select(record)
        for name, (low, high) in encoder.continuous.items():
            value = known.get(name)
            if isinstance(value, int | float) and not low <= value <= high:
                known[name] = min(max(value, low), high)
                moved += 1
        for name, allowed in encoder.categorical.items():
            if known.get(name) is not None and str(known[name]) not in allowed:
                known[name] = None
                moved += 1
        fitted.append(known)
    if moved:
        logger.warning("%d condition values of %d slices lie outside the training ranges", moved, len(records))
    return fitted


def encode_records(encoder: ConditionEncoder, records: Sequence[Mapping[str, Any]]) -> Tensor:
    """Encode what the encoder knows of each record, for training and scoring, after `fitted_conditions`.

    Returns:
        Features (n, f).

    Examples:
        >>> encode_records(ConditionEncoder({"age": (20, 60)}), [{"age": 70.0, "subject": "sub-01"}])
        tensor([[1., 1.]])
    """
    return encoder.encode(fitted_conditions(encoder, records))


def record_encoding(encoder: ConditionEncoder) -> Callable[[Sequence[Mapping[str, Any]]], Tensor] | None:
    """`encode_records` with this encoder, as `CodesDataset` takes it; None where it knows no condition."""
    return partial(encode_records, encoder) if encoder.dim else None


def known_conditions(store: CodeStore) -> list[str]:
    """What a prior is conditioned on unless told otherwise: position_mm and label, where the codes' records have them.

    Labels that training and validation do not share are names of something else, such as of folders, and left out.
    """
    known = {
        name: [{record.get(name) for record in store.records(split)} - {None} for split in ("training", "validation")]
        for name in ("position_mm", LABEL)
    }
    names = [
        name for name, (training, held_out) in known.items() if training and (name != LABEL or training & held_out)
    ]
    told = f"is conditioned on {' and '.join(names)}" if names else "learns without conditions"
    if others := _covariates(store.records("training")):
        option = shlex.quote(str([*names, *others]))
        logger.info("The prior %s; to condition it on columns of the table: --condition_names %s", told, option)
    elif names:
        logger.info("The prior %s (see --condition_names)", told)
    else:
        logger.info("The prior %s: no record has any (see --condition_names)", told)
    return names


def _covariates(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns known of most slices and not the same for all: numbers, and words where there are few."""
    values: dict[str, list[Any]] = {}
    for record in records:
        for name in record.keys() - RESERVED - {LABEL}:
            if isinstance(record[name], str | int | float):
                values.setdefault(name, []).append(record[name])
    named = {}
    for name, known in values.items():
        distinct = {*known}
        few = len(distinct) <= _MOST_CATEGORIES or not any(isinstance(value, str) for value in distinct)
        named[name] = 2 * len(known) > len(records) and len(distinct) > 1 and few
    return sorted(name for name, offered in named.items() if offered)


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
