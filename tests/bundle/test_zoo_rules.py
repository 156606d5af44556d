"""What MONAI's Model Zoo asks of a bundle: style of the JSON, metadata, versions, sizes, properties of every workflow.

The published schema is not copied here. `SCHEMA` states the same demands in our words, and more of them where the
bundle specification or the Zoo's own checks ask for more.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow, verify_metadata, verify_net_in_out
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils import BundleProperty, BundlePropertyConfig

import monai_vqgen

REPOSITORY = Path(__file__).parents[2]
BUNDLE = REPOSITORY / "bundle"
CONFIGS = BUNDLE / "configs"
JSON_FILES = sorted(CONFIGS.glob("*.json"))
LARGEST_FILE = 25 * 2**20  # bytes; the Zoo's README
MANDATORY = (
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
    "description", "authors", "copyright", "network_data_format",
)  # fmt: skip
FURTHER = ("changelog", "name", "supported_apps", "intended_use", "data_source", "data_type", "references")
TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        **dict.fromkeys(("type", "format", "modality", "dtype"), TEXT),
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}},
        "value_range": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "additionalProperties": TEXT},
    },
}
NETWORK: dict[str, Any] = {
    "type": "object",
    "required": ["inputs", "outputs"],
    "additionalProperties": {"type": "object", "minProperties": 1, "additionalProperties": TENSOR},
}
VERSION = {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}
SCHEMA = {
    "type": "object",
    "required": [*MANDATORY, *FURTHER],
    "properties": {
        **dict.fromkeys(("schema", "name", "task", "description", "authors", "copyright", "intended_use"), TEXT),
        **dict.fromkeys(("data_source", "data_type", "image_classes", "label_classes", "pred_classes"), TEXT),
        **dict.fromkeys(("version", "monai_version", "pytorch_version", "numpy_version"), VERSION),
        **{key: {"type": "object"} for key in ("required_packages_version", "supported_apps", "eval_metrics")},
        "changelog": {"type": "object", "minProperties": 1, "additionalProperties": TEXT},
        "references": {"type": "array", "items": TEXT},
    },
    "patternProperties": {"_data_format$": NETWORK},
}


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    assert len(keys) == len(set(keys)), f"twice: {sorted({key for key in keys if keys.count(key) > 1})}"
    return dict(pairs)


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return json.loads((CONFIGS / "metadata.json").read_text())


@pytest.mark.parametrize("path", JSON_FILES, ids=lambda path: path.name)
def test_json_has_each_key_once_and_is_indented_by_four(path):
    text = path.read_text(encoding="utf-8")
    content = json.loads(text, object_pairs_hook=no_duplicates)
    assert text == json.dumps(content, indent=4, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("path", JSON_FILES, ids=lambda path: path.name)
def test_whatever_says_how_a_stage_begins_has_its_options_checked(path):
    content = json.loads(path.read_text())
    if "run" in content or "initialize" in content:
        first = content["initialize"] if isinstance(content["initialize"], str) else content["initialize"][0]
        assert first == "$monai_vqgen.engines.check_command_line()"


@pytest.mark.parametrize(
    "name", ["anomaly", "evaluate", "evaluate_anomaly", "export", "extract_codes", "inference", "sample"]
)
def test_a_stage_replaces_earlier_results_at_its_end(name):
    """`extract_slices` claims and publishes in the function that it calls."""
    content = json.loads((CONFIGS / f"{name}.json").read_text())
    assert "claim_" in content["place"]
    assert content["run"][-1] == "$monai_vqgen.handlers.publish_output(@place)"


@pytest.mark.parametrize("name", ["train", "train_prior"])
def test_a_training_claims_its_folder_last_and_is_guarded_saved_and_shown(name):
    content = json.loads((CONFIGS / f"{name}.json").read_text())
    assert "claim_training" in content["run"][-3]
    told = json.dumps(content)
    for handler in ("GradientGuard(@objective, @gradient_norm)", "TrainingState", "BestCheckpoint", "TrainingProgress"):
        assert f"monai_vqgen.handlers.{handler}" in told


def test_a_key_that_stands_twice_would_be_found():
    with pytest.raises(AssertionError, match=r"twice: \['b'\]"):
        json.loads('{"a": {"b": 1, "b": 2}}', object_pairs_hook=no_duplicates)


def verify(path: Path, schema: Path) -> None:
    """MONAI's own `verify_metadata`, which downloads nothing where its schema's file already exists."""
    content = json.dumps(SCHEMA).encode()
    schema.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    verify_metadata(meta_file=str(path), filepath=str(schema), hash_val=digest, hash_type="sha256")


def test_metadata_passes_monais_own_verification(tmp_path):
    verify(CONFIGS / "metadata.json", tmp_path / "schema.json")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        *[({key: None}, f"'{key}' is a required property") for key in MANDATORY],
        ({"version": 0.1}, "not of type 'string'"),
        ({"prior_level0_data_format": {"inputs": {}}}, "'outputs' is a required property"),
    ],
)
def test_metadata_that_breaks_the_rules_does_not_pass(metadata, tmp_path, broken, message):
    changed = {key: value for key, value in {**metadata, **broken}.items() if value is not None}
    (tmp_path / "metadata.json").write_text(json.dumps(changed))
    expected = "must provide the `schema` field" if "schema" in broken else message
    with pytest.raises(ValueError, match=expected):
        verify(tmp_path / "metadata.json", tmp_path / "schema.json")


def test_the_schema_named_is_the_one_the_zoo_uses(metadata):
    assert re.fullmatch(r"https://\S+/meta_schema_20240725\.json", metadata["schema"])


def test_the_version_is_in_the_changelog_and_is_the_packages(metadata):
    assert metadata["version"] in metadata["changelog"]
    assert metadata["version"] == monai_vqgen.__version__
    versions = [tuple(map(int, version.split("."))) for version in metadata["changelog"]]
    assert versions == sorted(versions, reverse=True), "the newest stands first"


STAGES = [path for path in JSON_FILES if path.name != "metadata.json"]
MOST_LINES = {"train.json": 260, "train_prior.json": 260}
MOST_LINES_OF_ALL_STAGES, LONGEST_EXPRESSION = 1000, 120


@pytest.mark.parametrize("name", MOST_LINES)
def test_a_training_is_read_in_one_sitting(name):
    assert len((CONFIGS / name).read_text().splitlines()) <= MOST_LINES[name]


def test_all_stages_together_are_read_in_one_sitting():
    assert len(STAGES) == 17
    assert sum(len(path.read_text().splitlines()) for path in STAGES) <= MOST_LINES_OF_ALL_STAGES


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.name)
def test_expressions_are_short_stand_once_and_name_what_they_refer_to(path):
    expressions = [text for text in walk(json.loads(path.read_text())) if text.startswith("$")]
    assert [text for text in expressions if len(text) > LONGEST_EXPRESSION] == []
    assert sorted({text for text in expressions if expressions.count(text) > 1}) == []
    assert [text for text in walk(json.loads(path.read_text())) if re.search(r"@[\w:#]*(::|#)\d", text)] == []


def walk(content: Any) -> Iterator[str]:
    """Every string in a configuration."""
    if isinstance(content, dict):
        for value in content.values():
            yield from walk(value)
    elif isinstance(content, list):
        for value in content:
            yield from walk(value)
    elif isinstance(content, str):
        yield content


def required_packages() -> set[str]:
    """Top-level packages that the configs import or take targets from, but for what MONAI itself needs."""
    found = set()
    for path in JSON_FILES:
        for text in walk(json.loads(path.read_text())):
            found |= set(re.findall(r"^\$import (\w+)", text))
            found |= set(re.findall(r"^(\w+)(?:\.\w+)*\.[A-Za-z]\w*$", text)) & set(sys.modules)
    return found - {"monai", "torch", "numpy"} - set(sys.stdlib_module_names)


def test_packages_that_the_configs_need_are_named(metadata):
    needed = set(required_packages())
    assert "monai_vqgen" in needed
    assert needed <= {name.replace("monai-vqgen", "monai_vqgen") for name in metadata["required_packages_version"]}


def test_no_file_is_too_big_and_no_path_is_personal():
    for path in BUNDLE.rglob("*"):
        if path.is_file() and "out" not in path.relative_to(BUNDLE).parts:
            assert path.stat().st_size <= LARGEST_FILE, path
            if path.suffix in (".json", ".md", ".conf", ".yml"):
                assert not re.search(r"(?<![\w.])/(home|Users|root|mnt|work|tmp)/", path.read_text()), path


def test_the_readme_has_the_sections_of_the_zoos_template():
    headings = re.findall(r"^#+ (.+)$", (BUNDLE / "docs" / "README.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == "Model Overview"
    for section in ("Data", "Training configuration", "Performance", "MONAI Bundle Commands", "References", "License"):
        assert section in headings


# --- properties of every workflow, on a tiny model and tiny slices

KINDS = {"train": "train", "train_prior": "train", "inference": "infer", "evaluate": "infer", "sample": "infer"}


def workflow(*files: str, kind: str, **options: Any) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=[str(CONFIGS / f"{name}.json") for name in files],
        meta_file=str(CONFIGS / "metadata.json"),
        workflow_type=kind,
        logging_file=False,
        bundle_root=str(BUNDLE),
        **options,
    )


def missing_ids(flow: ConfigWorkflow, kind: str) -> list[str]:
    """The required ids that are not there: where one is, `check_properties` itself ends in a KeyError."""
    properties = TrainProperties if kind == "train" else InferProperties
    required = [item[BundlePropertyConfig.ID] for item in properties.values() if item[BundleProperty.REQUIRED]]
    assert len(required) >= 7
    return [name for name in required if name not in flow.parser]


@pytest.mark.parametrize("name", KINDS)
def test_every_workflow_has_the_properties_that_monai_asks_for(name, tiny_run, tmp_path):
    flow = workflow(name, kind=KINDS[name], **tiny_run.options(name, tmp_path / "out"))
    assert missing_ids(flow, KINDS[name]) == []
    flow.initialize()
    assert flow.check_properties() == []
    flow.finalize()


@pytest.mark.parametrize(
    "files",
    [
        ("train", "multi_gpu_train"),
        ("train_prior", "multi_gpu_train_prior"),
        ("train", "train_generative"),
        ("train", "train_generative", "train_decoder"),
    ],
)
def test_overlays_take_no_property_away(files):
    assert missing_ids(workflow(*files, kind="train"), "train") == []


def test_metadata_describes_the_network_that_the_configuration_makes():
    options = {"network_def::channels": 8, "network_def::residual_channels": 4}
    files = {"config_file": str(CONFIGS / "train.json"), "meta_file": str(CONFIGS / "metadata.json")}
    verify_net_in_out(net_id="network_def", device="cpu", **files, **options)


def test_shared_blocks_are_equal_in_every_configuration():
    files = [json.loads(path.read_text()) for path in sorted(CONFIGS.glob("*.json"))]
    for block in ("network_def", "load_transforms"):
        copies = [json.dumps(content[block], sort_keys=True) for content in files if block in content]
        # The others read it from the weights, and the overlay train_generative.json has a network of another kind.
        built = {
            copy
            for copy in copies
            if "recorded_autoencoder" not in copy and "@trained" not in copy and "GenerativeVQVAE" not in copy
        }
        assert len(built) == 1, block
