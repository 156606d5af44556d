"""A gallery holds the slices that its sliders name, each stamped, in one file that fetches nothing."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from factories import tiny_autoencoder, tiny_model, tiny_priors
from PIL import Image

from monai_vqgen.demo.gallery import STAMP_PX, gallery_controls, write_gallery
from monai_vqgen.errors import CheckpointError, InputError, OutputExistsError
from monai_vqgen.models import TrainedModel
from monai_vqgen.models.loading import LoadedPriors
from monai_vqgen.networks import ConditionEncoder

CONDITION = ConditionEncoder({"position_mm": (40.0, 99.01), "age": (19.0, 52.0)}, {"sex": ("f", "m")})


@pytest.fixture(scope="module")
def model():
    return tiny_model((24, 16), condition=CONDITION, num_layers=1)


@pytest.fixture(scope="module")
def page(model, tmp_path_factory) -> str:
    return write_gallery(model, tmp_path_factory.mktemp("gallery"), seed=5, progress=False).read_text()


def test_controls_cover_the_trained_ranges_from_end_to_end(model):
    position, age, sex, temperature, seed = gallery_controls(model, seed=5)
    assert (position.name, len(position.values), position.values[0], position.values[-1]) == ("position_mm", 8, 40, 99)
    assert (age.values, sex.values, seed.values) == ((19.0, 36.0, 52.0), ("f", "m"), (5, 6))
    assert temperature.values == (0.8, 1.0)


def test_conditions_that_would_make_too_many_pictures_are_left_out():
    names = {f"measure{i}": (0.0, 9.0) for i in range(6)}
    controls = gallery_controls(tiny_model((16, 16), condition=ConditionEncoder(names), num_layers=1))
    assert [control.name for control in controls] == [
        "measure0",
        "measure1",
        "measure2",
        "measure3",
        "temperature",
        "seed",
    ]


def test_the_tile_that_the_sliders_name_is_the_slice_of_these_values(model, page):
    """Of every control one value that is not its first; numbered by hand as the page's script does."""
    data = json.loads(re.search(r"const data = (.*);", page)[1])
    assert data["counts"] == [8, 3, 2, 2, 2]
    (uri,) = re.findall(r"data:image/png;base64,([^\"]+)", page)
    picture = Image.open(io.BytesIO(base64.b64decode(uri)))
    assert picture.text["Description"].startswith("Synthetic")
    sheet = np.asarray(picture)
    tile = (((5 * 3 + 2) * 2 + 1) * 2 + 0) * 2 + 1
    row, column = divmod(tile, data["columns"])
    shown = sheet[row * (24 + STAMP_PX) :, column * 16 :][:24, :16]
    positions = np.linspace(40, 99.01, 8).round()
    rows = [
        {"position_mm": float(position), "age": age, "sex": sex}
        for position in positions
        for age in (19.0, 36.0, 52.0)
        for sex in "fm"
    ]
    drawn = model.sample(48, seed=6, temperature=0.8, conditions=rows).images[35, 0].numpy()
    np.testing.assert_array_equal(shown, (drawn * 255 + 0.5).astype(np.uint8))
    assert data["captions"][tile] == f"Synthetic: seed 6, temperature 0.8, 0.8; {positions[5]:g} mm 52 m"


def test_every_tile_is_stamped_and_every_caption_says_synthetic(page):
    data = json.loads(re.search(r"const data = (.*);", page)[1])
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.findall(r"base64,([^\"]+)", page)[0]))))
    assert len(data["captions"]) == 8 * 3 * 2 * 2 * 2
    strips = [
        sheet[row * (24 + STAMP_PX) + 24 :, column * 16 :][:STAMP_PX, :16]
        for row, column in (divmod(tile, data["columns"]) for tile in range(len(data["captions"])))
    ]
    assert all(np.array_equal(strip, strips[0]) for strip in strips)
    assert strips[0].max() > 100
    assert all(caption.startswith("Synthetic: ") for caption in data["captions"])


def test_the_page_fetches_nothing_and_may_not(page):
    links = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']?([^"'>\s]+)""", page)
    assert [link[:22] for link in links] == ["data:image/png;base64,"]
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", page)
    assert "default-src 'none'; img-src data:;" in page


def test_a_model_without_conditions_has_temperature_and_seed_alone(tmp_path):
    page = write_gallery(tiny_model((16, 16), num_layers=1), tmp_path, progress=False).read_text()
    data = json.loads(re.search(r"const data = (.*);", page)[1])
    assert data["counts"] == [2, 2]
    assert data["captions"][3] == "Synthetic: seed 1, temperature 1.0, 1.0"


def test_names_of_a_record_cannot_break_out_of_the_page(tmp_path):
    evil = "</script><script>alert(1)</script>"
    condition = ConditionEncoder({}, {"sex": (evil, "m")})
    text = write_gallery(tiny_model((16, 16), condition=condition, num_layers=1), tmp_path, progress=False).read_text()
    assert "alert(1)" in text
    assert "<script>alert" not in text


def test_a_page_that_is_there_is_kept_and_models_that_cannot_be_shown_are_refused(model, tmp_path):
    page = tmp_path / "gallery.html"
    page.write_text("mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_gallery(model, tmp_path)
    assert page.read_text() == "mine"
    with pytest.raises(CheckpointError, match="no priors"):
        write_gallery(tiny_model(with_priors=False), tmp_path / "new")
    solid = tiny_autoencoder(strides=(4,), spatial_dims=3)
    priors = LoadedPriors(networks=tiny_priors((8,), spatial_dims=3), grids=((4, 4, 4),))
    with pytest.raises(InputError, match="one of volumes"):
        write_gallery(TrainedModel(solid, priors), tmp_path / "new")
    assert not Path(tmp_path / "new").exists()
