"""A trained model on the Hugging Face Hub, or on any server that speaks its API (`HF_ENDPOINT`).

    README.md                          the model card: front matter, what the model is, how it is loaded
    config.json                        the records of all weights, sealed
    model.safetensors                  the autoencoder
    model_prior_level0.safetensors     a prior, one a level

A bundle's folder is such a repository too: its weights are `models/model.pt` and what lies beside them.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from monai_vqgen.errors import CheckpointError, DownloadError, InputError
from monai_vqgen.files import read_json
from monai_vqgen.models.record import CARD, CONFIG, STATISTICS, prior_name

__all__ = ["REPOSITORY", "fetch", "model_card", "push"]

REPOSITORY = re.compile(r"(?!out/|\.)[\w.-]+/[\w.-]+")
"""Its name: `owner/name`; commands write to `out`, so `out/model` is a run, there or not, and so is a hidden folder."""
_PRIORS = f"{prior_name(0)[:-1]}*"
_RECORDS = (CONFIG, "model.json", f"{_PRIORS}.json", CARD)
_WEIGHTS = ("model.safetensors", "model.pt", f"{_PRIORS}.safetensors", f"{_PRIORS}.pt", STATISTICS)
_LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-3.0"}
"""Identifiers of licenses that the hub shares with SPDX; any other has a name of its own there."""
_TAGS = ("medical", "monai", "vq-vae", "pixelcnn")
_OPENNEURO = re.compile(r"\bds\d{6}\b")

_BODY = """
# {title}

{about}

Loaded by [monai_vqgen](https://github.com/monai-vqgen/monai_vqgen), which runs no code of the files:

```python
from monai_vqgen import TrainedModel

model = TrainedModel.from_pretrained("{repository}")
```

```
{text}
```

For research: not a medical device, not for diagnosis. Samples are synthetic and show nobody; a model trained on few
subjects may repeat what it has seen.
"""


def model_card(model: Any, *, repository: str = "OWNER/NAME", datasets: Sequence[str] = ()) -> str:
    """The text of a `README.md` with YAML front matter: license, library, tags, data sets.

    Args:
        model: a `TrainedModel`.
        repository: its name on the hub.
        datasets: by their names on the hub; where there are none, those of OpenNeuro that the record names.
    """
    license = model.record.license
    front: dict[str, Any] = {"library_name": "monai_vqgen"}
    if license:
        known = license.lower() in _LICENSES
        front |= {"license": license.lower()} if known else {"license": "other", "license_name": license}
    front["pipeline_tag"] = "unconditional-image-generation" if model.priors else "image-to-image"
    front["tags"] = list(_TAGS if model.priors else _TAGS[:-1])
    names = datasets or [f"openneuro/{name}" for name in sorted({*_OPENNEURO.findall(model.record.data)})]
    if names:
        front["datasets"] = list(names)
    about = "An autoencoder with discrete codes" + (" and priors that draw them." if model.priors else ".")
    body = _BODY.format(title=repository.split("/")[-1], about=about, repository=repository, text=repr(model))
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n{body}"


def fetch(
    name: str, *, revision: str | None = None, subfolder: str = "", token: str | None = None, cache: str | None = None
) -> Path:
    """Download the records of a repository, and where they are of a model of ours its weights, into the hub's cache.

    Where the server is not reached, what the cache has of it serves.

    Args:
        name: `owner/name`.
        revision: a branch, tag or commit; None for the main branch.
        subfolder: of the repository.
        token: where the one that `hf auth login` keeps is not to be used.
        cache: another folder than the one of `HF_HOME`.

    Returns:
        A folder for `TrainedModel.from_bundle`.

    Raises:
        InputError: no name of a repository, or huggingface_hub is not installed.
        DownloadError: no such repository, or it cannot be reached.
        CheckpointError: the repository holds no model of ours.
    """
    if not REPOSITORY.fullmatch(name):
        raise InputError(f"{name!r} is neither a folder nor the name of a repository: give a folder, or OWNER/NAME")
    home = subfolder.strip("/")
    prefixes = [f"{home}/" if home else "", f"{home}/models/" if home else "models/"]
    options = {"repo_id": name, "revision": revision, "token": token, "cache_dir": cache}
    patterns = [prefix + file for prefix in prefixes for file in _RECORDS]
    with _named_errors(name) as api:
        folder = Path(api().snapshot_download(**options, allow_patterns=patterns)) / home
    if not _holds_record(folder):
        raise CheckpointError(
            f"{name}{f' ({home})' if home else ''} holds no model of monai_vqgen: neither its {CONFIG} nor a "
            "model.json, there or in models/, describes one"
        )
    patterns += [prefix + file for prefix in prefixes for file in _WEIGHTS]
    with _named_errors(name) as api:
        return Path(api().snapshot_download(**options, allow_patterns=patterns)) / home


def _holds_record(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        if "model" in read_json(folder / CONFIG):
            return True
    return any((folder / place / "model.json").is_file() for place in ("", "models"))


def push(
    save: Callable[[Path], object],
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload a model of monai_vqgen",
) -> str:
    """Create a repository unless it is there, and commit a model to it; a card that it has stays as it is.

    Args:
        save: writes the model's files to a folder.
        name: `owner/name`.
        private: whether a new repository is; None for the owner's default.
        revision: the branch.
        token: where the one that `hf auth login` keeps is not to be used.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        InputError: no name of a repository, or huggingface_hub is not installed.
        DownloadError: the server refuses, or cannot be reached.
    """
    if not REPOSITORY.fullmatch(name):
        raise InputError(f"{name!r} is no name of a repository: give OWNER/NAME")
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        with _named_errors(name) as api:
            server = api(token=token)
            server.create_repo(name, private=private, exist_ok=True)
            has_card = server.file_exists(name, CARD, revision=revision)
            done = server.upload_folder(
                repo_id=name,
                folder_path=folder,
                revision=revision,
                commit_message=message,
                ignore_patterns=[CARD] if has_card else None,
                delete_patterns=[*_WEIGHTS, "model.json", f"{_PRIORS}.json"],  # those of the earlier model
            )
    return str(done.commit_url)


@contextlib.contextmanager
def _named_errors(name: str) -> Iterator[Callable[..., Any]]:
    """Give `HfApi`, and turn what it raises into errors that say what to do."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise InputError("the hub needs huggingface_hub: pip install 'monai-vqgen[hub]'") from error
    server = huggingface_hub.constants.ENDPOINT
    try:
        yield huggingface_hub.HfApi
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{name} on {server} has no such revision: give a branch, a tag or a commit") from error
    except errors.RepositoryNotFoundError as error:  # gated ones among them; a private one is told as missing
        raise DownloadError(
            f"there is no repository {name} on {server}, or it is not yours to use: check the name, or log in with "
            "`hf auth login`"
        ) from error
    except errors.HFValidationError as error:
        raise InputError(f"{name!r} is no name of a repository: give OWNER/NAME ({error})") from error
    except errors.HfHubHTTPError as error:
        raise DownloadError(f"{server} refuses this of {name} ({_first_line(error)}): check your rights") from error
    except (errors.LocalEntryNotFoundError, errors.FileMetadataError, errors.HTTPError, ConnectionError) as error:
        raise DownloadError(
            f"{server} cannot be reached for {name} ({_first_line(error)}): check the network, or give a folder"
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
