"""Weights from a bundle, a run, the hub or a zip: found, built from their records, checked against each other."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai_vqgen.bundles import bundle_root
from monai_vqgen.errors import CheckpointError, CodesMismatchError, DownloadError, InputError
from monai_vqgen.models.hub import REPOSITORY, fetch
from monai_vqgen.models.record import ModelRecord, SamplingSettings, prior_name, read_record, record_path
from monai_vqgen.networks import ConditionEncoder, GatedPixelCNN, HierarchicalVQVAE
from monai_vqgen.networks.architecture import architecture, build
from monai_vqgen.weights import SAFETENSORS, fingerprint, load_weights

__all__ = ["LoadedPriors", "load_autoencoder", "load_priors", "recorded_autoencoder", "start_from", "weights_file"]

logger = logging.getLogger(__name__)

SUFFIXES = (".pt", SAFETENSORS)
MODEL, MODELS = "model.pt", {f"model{suffix}" for suffix in SUFFIXES}
ALWAYS_BUILT = 1 << 26  # bytes of weights, however small the file is: what is wrong with it is told when it is read
WIDENED = 4  # bytes of a weight in memory, for one on disk
FREE_ZIP, ZIP_RATIO = 1 << 26, 8  # bytes that any zip's weights may unpack to, else so many times its size
LARGEST_ZIP = 2 << 30  # bytes that a zip's weights may unpack to
BLANK_THRESHOLD = 0.01  # of the faithful weights, and of `train.json`
_OF_TRAINING = frozenset(
    [
        "finer_dropout",
        "dropout",
        "decay",
        "commitment",
        "initial_count",
        "kmeans",
        "restart_below",
        "gradient_estimator",
        "entropy_weight",
        "sharpness",
        "warm_up",
    ]
)
"""Arguments of networks that change what a training does, not what weights mean."""
_MADE_ALIKE = ("condition", "image_size", "plane", "pixel_mm")
RELEASES = {"faithful": "models", "generative": "models/generative", "denoising": "models/denoising"}
"""Folders of the weights that come with the bundle, by purpose: reconstruction (faithful), drawing, denoising."""


class LoadedPriors(NamedTuple):
    """One prior a level, coarsest first, and what their records say of all of them; empty where there are none."""

    networks: tuple[Any, ...] = ()
    grids: tuple[tuple[int, ...], ...] = ()
    condition: ConditionEncoder | None = None
    settings: SamplingSettings = SamplingSettings((), (), ())
    image_size: tuple[int, ...] = ()
    plane: str | None = None
    pixel_mm: float | None = None


@contextlib.contextmanager
def weights_file(path: str | Path | None, name: str = "model") -> Iterator[Path]:
    """The autoencoder's weights of a bundle, a run, the hub or a zip; those of a zip are there inside the block only.

    Args:
        path: a folder that holds `model.pt` or `model.safetensors`, itself or in its folder `models`, such a file
            itself, or a zip; a name of `RELEASES` for weights that came with this package; None for the faithful ones;
            else OWNER/NAME of a repository of the hub, unless a file or a folder here is named so, or OWNER;
            never `out/NAME`.
        name: of the file that is looked for, without suffix; other weights, such as a prior's, lie beside the
            autoencoder's.

    Raises:
        InputError: nothing is there, or no weights are in it.
        CheckpointError: a damaged zip, or a repository of another library.
        DownloadError: there is no such repository, or it cannot be reached.
    """
    root = bundle_root() if path is None else Path(path)
    if path in RELEASES and not root.exists():
        root = bundle_root() / RELEASES[str(path)]
    if _is_on_hub(root):
        root = _fetched(root.as_posix())
    if not root.exists():
        raise InputError(
            f"{root} does not exist: give --bundle_root, or a bundle's folder or zip, a run's output folder, a model.pt"
        )
    if root.is_dir():
        for folder in (root, root / "models"):
            if (found := _weights_in(folder, name)).is_file():
                yield found
                return
        raise InputError(
            f"{root} holds no {name}.pt, nor does its folder models: give a bundle or the output folder of a training"
        )
    if root.suffix.lower() == ".zip":
        if not (root.is_file() and zipfile.is_zipfile(root)):  # a pipe would be waited for
            raise CheckpointError(f"{root} is no zip, or cut off: download it again")
        with tempfile.TemporaryDirectory() as unpacked:
            _unpack(root, Path(unpacked))
            yield _weights_in(Path(unpacked), name)
        return
    if root.suffix not in SUFFIXES:
        raise InputError(f"{root} is neither a folder, a zip of a bundle nor a {MODEL}")
    yield root if name == "model" else _weights_in(root.parent, name)


def _is_on_hub(path: Path) -> bool:
    """Whether a path reads as OWNER/NAME and nothing here is meant: OWNER does not exist, and it is no file's."""
    named = REPOSITORY.fullmatch(path.as_posix()) and path.suffix.lower() not in (*SUFFIXES, ".zip")
    return bool(named) and not path.parent.exists()


def _fetched(name: str) -> Path:
    try:
        return fetch(name)
    except (InputError, DownloadError) as error:
        raise type(error)(f"no folder here is named {name}, and as a model of the hub: {error}") from error


def _weights_in(folder: Path, name: str) -> Path:
    """A file of weights in a folder, by its name without suffix; the `.pt` file where there are both or none."""
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def _unpack(path: Path, folder: Path) -> None:
    """Unpack the weights and records of one bundle, by their plain names; nothing else of the zip."""
    with zipfile.ZipFile(path) as archive:
        homes = {Path(name).parent for name in archive.namelist() if Path(name).name in MODELS}
        highest = min((len(home.parts) for home in homes), default=0)  # below it lie releases for other purposes
        homes = {home for home in homes if len(home.parts) == highest}
        if len(homes) != 1:
            raise InputError(f"{path} holds {len(homes)} files named {MODEL}; a zip of a bundle holds one")
        ours = [info for info in archive.infolist() if Path(info.filename).suffix in (*SUFFIXES, ".json")]
        members = [info for info in ours if Path(info.filename).parent in homes]
        most = min(LARGEST_ZIP, max(FREE_ZIP, ZIP_RATIO * path.stat().st_size))
        if sum(info.file_size for info in members) > most:
            raise InputError(f"the weights in {path} would unpack to more than {most / 2**30:.2f} GiB")
        for info in members:
            try:
                with archive.open(info) as packed, (folder / Path(info.filename).name).open("wb") as file:
                    shutil.copyfileobj(packed, file)
            except Exception as error:  # of any of zip's ways to pack
                if isinstance(error, OSError) and error.errno:  # of the disk
                    raise
                raise CheckpointError(f"{path} is damaged ({error}): download it again") from error


def recorded_autoencoder(path: str | Path | None, **arguments: Any) -> Any:
    """The autoencoder, untrained, of the architecture recorded beside weights; of the default one without a record.

    Without a file it is that of the faithful weights: MONAI's `load` builds a bundle's network before it says where the
    weights are. Weights without a record are of version 0.1, which had no code for blank cells.

    Args:
        path: of the weights, as in `TrainedModel.from_bundle`; a `.pt` file need not be there, and None is as good.
        arguments: of the constructor, in place of the recorded ones.

    Examples:
        >>> recorded_autoencoder("nowhere/model.pt", channels=8).num_levels
        2
    """
    content: dict[str, Any] = {}
    most = math.inf
    if path is not None:
        named = str(path) in RELEASES or _is_on_hub(Path(path))
        packed = named or Path(path).is_dir() or Path(path).suffix.lower() == ".zip"
        with weights_file(path) if packed else contextlib.nullcontext(Path(path)) as weights:
            content, most = read_record(weights), _most_bytes(weights)
    if "architecture" in content:
        return build({**content["architecture"], **arguments}, max_bytes=most)
    blank = {} if path is not None and Path(path).is_file() else {"blank_threshold": BLANK_THRESHOLD}
    return HierarchicalVQVAE(**{"channels": 64, "residual_channels": 32, **blank, **arguments})


def _most_bytes(path: Path) -> float:
    """Of the weights that a file can fill: those of 8 bits become float32; endless where there is no file."""
    return max(ALWAYS_BUILT, WIDENED * path.stat().st_size) if path.is_file() else math.inf


def load_autoencoder(path: Path, network: Any | None = None) -> tuple[Any, ModelRecord]:
    """An autoencoder in evaluation mode, and what is known of it.

    Args:
        path: of `model.pt`, beside which `model.json` lies from version 0.2 on, or of `model.safetensors` beside
            `config.json`.
        network: of the architecture of the weights; None builds the recorded one, or, for weights without a record,
            one of the default sizes.

    Raises:
        CheckpointError: a file is missing, damaged, of a newer format or another architecture, or the record is that
            of other weights.
    """
    content = read_record(path)
    if not content and path.suffix == SAFETENSORS and path.is_file():
        raise CheckpointError(
            f"{path} is no model of monai_vqgen: {record_path(path).name} beside it has no record of it"
        )
    if "level" in content:
        raise CheckpointError(
            f"{path} is a prior, by its record: give the autoencoder's {MODEL}, and the priors' folder"
        )
    network = recorded_autoencoder(path) if network is None else network
    record, found = ModelRecord.from_json(content), _loaded(network, path, recorded="architecture" in content)
    _check_fingerprint(path, content, found)
    return network, record._replace(fingerprint=found)


def _loaded(network: Any, path: Path, *, recorded: bool) -> str:
    """Load weights and return their fingerprint; where no record told the architecture, the error says what to do."""
    try:
        load_weights(network, path)
    except CheckpointError as error:
        if recorded or not path.is_file():
            raise
        raise CheckpointError(
            f"{error} There is no record of the architecture ({record_path(path).name}) beside it: pass the "
            "networks as TrainedModel.from_bundle(path, network=..., priors=...), and save() writes the record"
        ) from error
    return fingerprint(network)


def _check_fingerprint(path: Path, content: dict[str, Any], found: str) -> None:
    if content.get("fingerprint") not in (None, found) and found not in content.get("replaces", ()):
        raise CheckpointError(
            f"{record_path(path).name} is the record of other weights than {path} (fingerprint "
            f"{content['fingerprint'][:12]}..., found {found[:12]}...): copy both files from the same place"
        )


def start_from(network: Any, path: str | Path | None, *, level: int | None = None) -> Any:
    """Give a network that is to be trained the weights of a trained one, from which it goes on learning.

    Args:
        network: of the architecture of the weights, dropout and the like apart; changed in place.
        path: of the weights, as in `TrainedModel.from_bundle`: a bundle's folder or zip, a run's output folder, a
            `model.pt`, "faithful", "generative" or "denoising", OWNER/NAME of the hub; None leaves the network as it
            is.
        level: of a prior, 0 = coarsest, whose file lies beside the autoencoder's; None for an autoencoder.

    Returns:
        The network, in training mode.

    Raises:
        InputError: no such weights are there.
        CheckpointError: they are damaged, or of another architecture: the message has the options that would fit.
    """
    if path is None:
        return network
    with weights_file(path, "model" if level is None else prior_name(level)) as weights:
        if not weights.is_file():
            raise InputError(f"there are no weights {weights}: give a model that has them")
        record = read_record(weights)
        if record.get("level") != level:
            raise CheckpointError(f"{weights} is of another kind by its record: give an autoencoder's {MODEL}")
        _check_alike(network, record, weights, "network_def" if level is None else "prior_def")
        _check_fingerprint(weights, record, _loaded(network, weights, recorded="architecture" in record))
        logger.info("Starting from the weights %s", weights)
    return network.train()


def _check_alike(network: Any, record: Mapping[str, Any], weights: Path, option: str) -> None:
    """Refuse weights that were recorded for another architecture; what follows from other arguments has none."""
    mine, theirs = (_lasting(part) for part in (architecture(network), record.get("architecture", {})))
    if "quantizers" in theirs:
        own = (getattr(each, "quantizer", each) for each in network.quantizers)  # within `BlankCells`
        mine.setdefault("quantizers", [_lasting(architecture(each)) for each in own])
    if theirs and "blank_threshold" in mine:  # which weights without a code for blank cells do not record
        theirs.setdefault("blank_threshold", None)
    wanted = {name: value for name, value in theirs.items() if mine.get(name) != value}
    if "_target_" in wanted:
        theirs_is, mine_is = (str(part["_target_"]).rpartition(".")[2] for part in (theirs, mine))
        raise CheckpointError(
            f"{weights} holds a {theirs_is}, and a {mine_is} is to be trained: give other config files"
        )
    if wanted:
        given = ", ".join(f"{name} {value} there and {mine.get(name)} here" for name, value in wanted.items())
        names = [name for part in (record.get("condition") or {}).values() for name in part]
        options = {f"{option}::{name}": value for name, value in wanted.items() if name != "condition_dim"}
        options |= {"condition_names": names} if "condition_dim" in wanted else {}
        told = {
            name: "'$None'" if value is None else f'"{value}"' for name, value in options.items()
        }  # MONAI drops None
        fitting = " ".join(f"--{name} {value}" for name, value in told.items())
        raise CheckpointError(f"{weights} is of another architecture, {given}: give {fitting}, or other weights")


def _lasting(value: Any) -> Any:
    """A recorded architecture without what training alone uses, and without defaults that stand as None."""
    if isinstance(value, Mapping):
        return {key: _lasting(each) for key, each in value.items() if key not in _OF_TRAINING and each is not None}
    return [_lasting(each) for each in value] if isinstance(value, list) else value


def load_priors(folder: Path, autoencoder: Any, priors: Sequence[Any] | None = None) -> LoadedPriors:
    """The priors of a folder in evaluation mode, checked against the autoencoder and each other.

    Args:
        folder: with `model_prior_level0.pt` and `.json`, and so on, or `.safetensors` and `config.json`.
        autoencoder: with its trained weights.
        priors: of the architecture of the weights, coarsest first; None builds the recorded ones.

    Raises:
        CheckpointError: a level's file is missing, damaged or of another architecture, or the levels do not go
            together.
        CodesMismatchError: a prior was trained on the codes of another autoencoder.
    """
    levels = autoencoder.num_levels
    if priors is not None and len(priors) != levels:
        raise CheckpointError(f"{len(priors)} priors were given for {levels} levels: give one a level, coarsest first")
    records = [_prior_record(folder, level) for level in range(levels)]
    _check_made_for(records, folder, fingerprint(autoencoder))
    for key in _MADE_ALIKE:
        if any(record.get(key) != records[0].get(key) for record in records):
            raise CheckpointError(f"the priors in {folder} were trained with a different {key}: train them alike")
    encoder = ConditionEncoder.from_dict(records[0].get("condition") or {})
    networks = []
    for level, record in enumerate(records):
        path = _weights_in(folder, prior_name(level))
        prior = priors[level] if priors is not None else _prior(record, level, encoder.dim, _most_bytes(path))
        known = priors is not None or "architecture" in record
        _check_fingerprint(path, record, _loaded(prior, path, recorded=known))
        networks.append(prior)
    grids = tuple(tuple(int(n) for n in record["grid"]) for record in records)
    image_size = tuple(int(n) for n in records[0].get("image_size") or ())
    if image_size and tuple(autoencoder.grids(image_size)) != grids:
        raise CheckpointError(
            f"the priors in {folder} are for grids {list(grids)}, and images of {image_size} pixels become "
            f"{list(autoencoder.grids(image_size))}: train them again"
        )
    return LoadedPriors(
        tuple(networks),
        grids,
        encoder if encoder.dim else None,
        SamplingSettings.recorded(records),
        image_size,
        plane=records[0].get("plane"),
        pixel_mm=records[0].get("pixel_mm"),
    )


def _prior_record(folder: Path, level: int) -> dict[str, Any]:
    path = _weights_in(folder, prior_name(level))
    record = read_record(path, needed=("grid", "num_codes", "autoencoder_fingerprint"))
    if not record:
        where = record_path(path)
        raise CheckpointError(
            f"there is no prior of level {level} in {folder} ({where.name} "
            f"{'does not tell of one' if where.is_file() else 'is missing'}): train it first with "
            f"`python -m monai.bundle run training --config_file bundle/configs/train_prior.json --level {level}`, "
            "or give its folder as priors_dir"
        )
    if record.get("level") not in (None, level):
        raise CheckpointError(
            f"{record_path(path)} is the record of level {record['level']}: copy the files of each level again"
        )
    return record


def _check_made_for(records: Sequence[dict[str, Any]], folder: Path, mine: str) -> None:
    for level, record in enumerate(records):
        theirs = record["autoencoder_fingerprint"]
        if theirs != mine:
            raise CodesMismatchError(
                f"the prior of level {level} in {folder} was trained on the codes of another autoencoder "
                f"(fingerprint {theirs[:12]}..., this one's is {mine[:12]}...): give the model.pt that made its codes, "
                "or extract codes and train the priors again"
            )


def _prior(record: dict[str, Any], level: int, condition_dim: int, max_bytes: float) -> Any:
    """The recorded prior; for weights of version 0.1, which have no architecture, that of its release."""
    if "architecture" in record:
        return build(record["architecture"], max_bytes=max_bytes)
    layers, attention = (8, 0) if level else (10, 5)
    return GatedPixelCNN(
        int(record["num_codes"]),
        channels=64,
        num_layers=layers,
        attention_every=attention,
        coarser_codes=record.get("coarser", ()),
        condition_dim=condition_dim,
        dropout=0.1,
    )
