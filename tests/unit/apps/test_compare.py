"""Variants are read, set up and tabled as the list says."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from monai_vqgen.apps.compare import Variant, _variant_stages, comparison_section, read_variants
from monai_vqgen.apps.presets import PRESETS
from monai_vqgen.errors import InputError

ROOT = Path(__file__).parents[3]
FSQ = [{"_target_": "monai_vqgen.networks.FiniteScalarQuantizer", "levels": [8, 8, 8]}] * 2


def options(variant: Variant, stage: int = 0) -> dict[str, str]:
    stages = _variant_stages(variant, PRESETS["compare_128"], folder=Path("out"), minutes=2.0, seed=3)
    words = shlex.split(stages[stage].command)
    return {word[2:]: words[i + 1] for i, word in enumerate(words) if word.startswith("--")}


def test_the_committed_list_is_readable_and_starts_with_ours():
    variants = read_variants(ROOT / "configs/comparisons/autoencoder.yaml")
    assert variants[0] == Variant("ours", "architecture")
    overlays = {variant.overlay for variant in variants} - {None}
    assert overlays == {"configs/system_a.yaml", "configs/system_b.yaml"}
    assert all((ROOT / overlay).is_file() for overlay in overlays if overlay)
    groups = {variant.group for variant in variants}
    assert groups == {"architecture", "quantiser", "loss", "coarsest level", "training"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: a, group: g}\n- {name: A, group: g}", "given twice: a"),
        ("[]", "none at all"),
        ("- {name: a, group: g, option: 1}", "option"),
        ("- [", "no list of variants"),
        ("7", "no list of variants"),
    ],
)
def test_a_list_that_cannot_work_is_named_with_the_mend(tmp_path, text, message):
    path = tmp_path / "variants.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_variants(path)
    assert "variants.yaml" in str(error.value)
    with pytest.raises(InputError, match="nowhere"):
        read_variants(tmp_path / "nowhere.yaml")


def test_a_variant_takes_the_preset_but_for_what_it_changes():
    plain, wide = (
        options(variant)
        for variant in (Variant("ours", "g"), Variant("w", "g", options={"network_def::channels": 96, "batch_size": 7}))
    )
    assert {name for name in plain if plain[name] != wide.get(name)} == {
        "output_dir",
        "network_def::channels",
        "batch_size",
    }
    assert (wide["network_def::channels"], wide["batch_size"], wide["max_minutes"]) == ("96", "7", "2.0")
    assert plain["seed"] == "3"


def test_whole_quantisers_take_the_place_of_sizes_that_are_not_theirs():
    given = options(Variant("f", "g", options={"network_def::quantizers": FSQ}))
    assert "network_def::quantizers::0::num_codes" not in given
    assert given["network_def::channels"] == "64"


def test_an_overlay_keeps_its_own_network_in_training_and_evaluation():
    variant = Variant("a", "g", "configs/system_a.yaml", {"network_def::strides": [8, 4], "batch_size": 16})
    for stage in (0, 1):
        given = options(variant, stage)
        assert given["config_file"].endswith("configs/system_a.yaml']")
        assert given["network_def::strides"] == "[8, 4]"
        assert "network_def::channels" not in given
        assert ("batch_size" in given) == (stage == 0)


def test_the_table_compares_with_the_first():
    def figures(name: str, psnr: float) -> dict:
        return {
            "name": name,
            "group": "loss",
            "steps": 1234,
            "weights": 1_500_000,
            "reconstruction": {"psnr": psnr, "ssim_brain": 0.9},
            "top_only": {"psnr": 22.0},
            "codebook": [{"usage": 0.5, "perplexity": 100.0}, {"usage": 1.0, "perplexity": 300.0}],
            "rate": {"raw_bits_per_pixel": 0.703},
        }

    lines = comparison_section([figures("ours", 30.0), figures("L1", 29.25)], minutes=4).splitlines()
    assert lines[0].startswith("4 minutes")
    assert lines[-2] == "| ours | 0.703 | 30.00 |  | 0.900 | 22.00 | 50%, 100% | 100, 300 | 1,234 | 1.50 |"
    assert lines[-1] == "| loss: L1 | 0.703 | 29.25 | -0.75 | 0.900 | 22.00 | 50%, 100% | 100, 300 | 1,234 | 1.50 |"
