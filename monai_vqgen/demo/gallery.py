"""A page to look at a model without installing anything: slices drawn beforehand, sliders that choose among them."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from monai_vqgen.demo.report import as_data_uri, page_template
from monai_vqgen.errors import InputError, OutputExistsError
from monai_vqgen.files import replace_file
from monai_vqgen.models.samples import asked_for, drawn_with
from monai_vqgen.models.trained_model import TrainedModel
from monai_vqgen.plots.pictures import save_png

__all__ = ["write_gallery"]

PAGE = "gallery.html"
POSITIONS, OTHER_VALUES = 8, 3  # values of the position, and of any other condition in numbers
TEMPERATURES = (0.8, 1.0)
SEEDS = 2
MOST_TILES = 400  # about a minute of drawing on one core, and two megabytes
STAMP = "synthetic"
STAMP_PX, STAMP_GRAY = 12, 150


class Control(NamedTuple):
    """What a visitor chooses: a name, what stands beside it, and its values; numbers have a slider, words a list."""

    name: str
    label: str
    values: tuple[Any, ...]


def gallery_controls(model: TrainedModel, *, seed: int = 0) -> list[Control]:
    """The controls of a model's page: its conditions, the position first, temperature and seed.

    Conditions that would make more than `MOST_TILES` pictures are left out, and are unknown to the priors.
    """
    drawing = [
        Control("temperature", "Temperature", TEMPERATURES),
        Control("seed", "Seed", tuple(range(seed, seed + SEEDS))),
    ]
    conditions: list[Control] = []
    for control in _condition_controls(model):
        tiles = _count([*conditions, control, *drawing])
        if tiles <= MOST_TILES:
            conditions.append(control)
    return [*conditions, *drawing]


def _condition_controls(model: TrainedModel) -> list[Control]:
    encoder, controls = model.condition, []
    if encoder is None:
        return []
    for name in sorted(encoder.continuous, key=lambda name: (name != "position_mm", name)):
        low, high = encoder.continuous[name]
        steps = np.linspace(low, high, POSITIONS if name == "position_mm" else OTHER_VALUES)
        values = dict.fromkeys(float(np.clip(step.round(), low, high)) for step in steps)  # each once, in order
        controls.append(Control(name, "Position (mm)" if name == "position_mm" else _words(name), tuple(values)))
    return [*controls, *(Control(name, _words(name), tuple(values)) for name, values in encoder.categorical.items())]


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _count(controls: Sequence[Control]) -> int:
    return int(np.prod([len(control.values) for control in controls]))


def write_gallery(
    model: TrainedModel, folder: str | Path, *, seed: int = 0, overwrite: bool = False, progress: bool = True
) -> Path:
    """Write `gallery.html`: one file without a server, which fetches nothing; every slice is drawn beforehand.

    Each picture is stamped as synthetic, and the line below it says how it was drawn.

    Args:
        model: with priors, of slices.
        folder: of the page.
        seed: the first of the seeds.
        overwrite: whether a page that is there is replaced.
        progress: whether to draw a progress bar.

    Returns:
        The page's path.

    Raises:
        InputError: a model of volumes.
        CheckpointError: the model has no priors.
        OutputExistsError: the folder has such a page, and `overwrite` is false.
    """
    path = Path(folder) / PAGE
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} is there already: give another output folder, or --overwrite")
    if model.autoencoder.spatial_dims != 2:
        raise InputError("this model is one of volumes: a gallery shows slices")
    if (channels := model.autoencoder.in_channels) > 1:
        raise InputError(f"a gallery shows slices of one channel, and this model has {channels}")
    controls = gallery_controls(model, seed=seed)
    tiles_nhw, captions = _draw(model, controls, progress)
    columns = int(np.ceil(np.sqrt(len(tiles_nhw))))
    height, width = tiles_nhw.shape[1:]
    page = page_template("gallery.html").render(
        controls=controls,
        data={"counts": [len(control.values) for control in controls], "columns": columns, "captions": captions},
        sprite=_sprite(tiles_nhw, columns),
        width=width,
        height=height,
        weights=model.record.fingerprint,
        count=len(captions),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        file.write(page.encode())
    return path


def _draw(model: TrainedModel, controls: Sequence[Control], progress: bool) -> tuple[np.ndarray, list[str]]:
    """Tiles `(n, h, w)` in [0, 1] of all values of the controls, the last control's fastest, and a caption each."""
    *conditions, temperatures, seeds = controls
    names = [control.name for control in conditions]
    rows = [dict(zip(names, values, strict=True)) for values in itertools.product(*(c.values for c in conditions))]
    ways = list(itertools.product(temperatures.values, seeds.values))
    drawn = []
    for temperature, seed in tqdm(ways, desc="drawing", unit="set", disable=not progress):
        drawn.append(model.sample(len(rows), seed=seed, temperature=temperature, conditions=rows))
    tiles = torch.stack([samples.images[:, 0] for samples in drawn], 1).flatten(0, 1)
    captions = [
        "; ".join(filter(None, [drawn_with(samples.seed, samples.settings), asked_for(row)]))
        for row in rows
        for samples in drawn
    ]
    return np.stack([_stamped(tile.numpy()) for tile in tiles]), captions


def _stamped(tile_hw: np.ndarray) -> np.ndarray:
    """A slice with a line below that says what it is, so that it does so wherever it is copied to."""
    strip = Image.new("L", (tile_hw.shape[1], STAMP_PX))
    ImageDraw.Draw(strip).text((2, 0), STAMP, fill=STAMP_GRAY)
    return np.concatenate([tile_hw, np.asarray(strip, dtype=np.float32) / 255])


def _sprite(tiles_nhw: np.ndarray, columns: int) -> str:
    """All tiles in one PNG, row by row, as a data URI."""
    count, height, width = tiles_nhw.shape
    sheet = np.zeros((-(-count // columns) * height, columns * width), dtype=np.float32)
    for index, tile_hw in enumerate(tiles_nhw):
        row, column = divmod(index, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile_hw
    with tempfile.TemporaryDirectory() as folder:
        save_png(sheet, Path(folder) / "sprite.png", description="Synthetic slices; not for clinical use.")
        return str(as_data_uri(Path(folder) / "sprite.png"))
