"""Designs are read, set up and tabled as the list says."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from monai_vqgen.demo.sizes import read_size, size_names
from monai_vqgen.errors import InputError
from tools.__main__ import build_parser
from tools.compare import Comparison, DesignFigures, compare, comparison_section
from tools.designs import Design, design_stages, read_designs
from tools.step_costs import ROUNDS, STEPS, relative_cost

ROOT = Path(__file__).parents[3]
LIST = ROOT / "configs/comparisons/autoencoder.yaml"
COMMITTED = sorted(LIST.parent.glob("*.yaml"))
FSQ = [{"_target_": "monai_vqgen.networks.FiniteScalarQuantizer", "levels": [8, 8, 8]}] * 2


def options(design: Design, stage: int = 0) -> dict[str, str]:
    size = read_size("quick_128")
    stages = design_stages(design, size, folder=Path("out"), steps=120, cost=1.37, split="test", seed=3)
    words = shlex.split(stages[stage].command)
    return {word[2:]: words[i + 1] for i, word in enumerate(words) if word.startswith("--")}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_list_starts_with_ours_and_is_run_by_the_command_above_it(path):
    assert read_designs(path)[0] == Design("ours", "architecture")
    words = shlex.split(path.read_text().splitlines()[0])
    assert words[:4] == ["#", "python", "-m", "tools"]
    given = build_parser().parse_args(words[4:])
    assert (given.verb, given.designs) == ("compare", str(path.relative_to(ROOT)))
    assert given.size in size_names()


def test_the_list_of_designs_sets_the_default_beside_everything_it_was_chosen_among():
    designs = read_designs(LIST)
    assert {design.overlay for design in designs} - {None} == {"configs/system_a.yaml", "configs/system_b.yaml"}
    assert sum(design.group == "noise" for design in designs) >= 2
    varied = {name.rpartition("::")[2] for design in designs for name in design.options}
    assert varied >= {"num_codes", "code_dim", "quantizers", "strides", "finer_dropout"}  # networks
    assert varied >= {"ssim_weight", "l1_weight"}
    assert varied >= {"lr_scheduler", "amp", "network", "affine_probability", "gamma_probability"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: a, group: g}\n- {name: A, group: g}", "given twice: design_a"),
        ("[]", "none at all"),
        ("- {name: a, group: g, option: 1}", "option"),
        ("- [", "no list of designs"),
        ("7", "no list of designs"),
        ("- {name: 7, group: g}", "7 must be text"),
        ("- {name: a, group: g, options: null}", "options names with values"),
        ("- {name: ä, group: g}", "no letter of a to z"),
        ("- {name: a, group: g, overlay: configs/nowhere.yaml}", "overlay configs/nowhere.yaml of 'a' is not in"),
        ("- {name: a, group: g, options: {max_epochs: 3, batch_size: 2}}", "'a' sets max_epochs, which all"),
    ],
)
def test_a_list_that_cannot_work_is_named_with_the_mend(tmp_path, text, message):
    path = tmp_path / "designs.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_designs(path)
    assert "designs.yaml" in str(error.value)
    with pytest.raises(InputError, match="nowhere"):
        read_designs(tmp_path / "nowhere.yaml")


def test_subjects_that_the_design_was_trained_on_cannot_judge(tmp_path):
    with pytest.raises(InputError, match="split='training': designs are judged on validation or test subjects"):
        compare(tmp_path, tmp_path / "out", Comparison(LIST, split="training"))
    assert not (tmp_path / "out").exists()


def test_no_name_leaves_the_output_folder_or_meets_the_slices():
    for name in ("slices", "..", "a/../../b", "/etc"):
        folder = Design(name, "g").folder
        assert folder != "slices"
        assert "/" not in folder
        assert folder.startswith("design_")


def test_a_design_takes_the_size_but_for_what_it_changes():
    plain = options(Design("ours", "g"))
    wide = options(Design("w", "g", options={"network_def::channels": 96, "batch_size": 7}))
    changed = {name for name in plain if plain[name] != wide.get(name)}
    assert changed == {"output_dir", "network_def::channels", "batch_size"}
    assert (wide["network_def::channels"], wide["batch_size"], wide["max_minutes"]) == ("96", "7", "2.0")
    assert (plain["seed"], plain["budget_clock"]) == ("3", "1.37")


def test_a_design_may_have_a_seed_of_its_own():
    assert options(Design("other", "noise", options={"seed": 1}))["seed"] == "1"


def test_a_design_is_judged_without_priors_on_the_subjects_asked_for():
    given = options(Design("ours", "g"), stage=1)
    assert (given["with_priors"], given["split"], given["model"]) == ("False", "test", "out/design_ours/model.pt")


def test_whole_quantizers_take_the_place_of_sizes_that_are_not_theirs():
    own = {"network_def::quantizers": FSQ, "network_def::quantizers::0::levels": [4, 4]}
    given = options(Design("f", "g", options=own), 0)
    assert "network_def::quantizers::0::num_codes" not in given
    assert given["network_def::quantizers::0::levels"] == "[4, 4]"
    assert given["network_def::channels"] == "64"


def test_an_overlay_brings_its_own_network_to_the_training_and_the_evaluation_reads_it_in_the_record():
    design = Design("a", "g", "configs/system_a.yaml", {"network_def::strides": [8, 4], "batch_size": 16})
    training, evaluation = options(design, 0), options(design, 1)
    assert training["config_file"].endswith("configs/system_a.yaml']")
    assert training["network_def::strides"] == "[8, 4]"
    assert "network_def::channels" not in training
    assert training["batch_size"] == "16"
    assert "system_a" not in evaluation["config_file"]
    assert not [name for name in evaluation if name.startswith("network_def") or name == "batch_size"]


def figures(name: str, psnr: float) -> DesignFigures:
    metrics = {
        "reconstruction": {"psnr": psnr, "ssim_brain": 0.9},
        "top_only": {"psnr": 22.0},
        "codebook": [{"usage": 0.5, "perplexity": 100.0}, {"usage": 1.0, "perplexity": 300.0}],
        "rate": {"raw_bits_per_pixel": 0.703},
        "data": {"slices": {"training": 2880, "test": 480}, "subjects": {"training": 48, "test": 8}},
    }
    return DesignFigures(name, "loss", 1234, 0.97, 1_500_000, metrics)


def test_the_table_compares_with_the_first():
    lines = comparison_section(
        [figures("ours", 30.0), figures("L1", 29.25)], first="ours", steps=1300, split="test"
    ).splitlines()
    assert lines[0] == (
        "Each at the cost of 1,300 steps of the first, on 2,880 slices of 48 training subjects; judged on 480 "
        "slices of 8 test subjects."
    )
    assert lines[-2] == "| ours | 0.703 | 30.00 |  | 0.900 | 22.00 | 50%, 100% | 100, 300 | 1,234 | 0.97 | 1.50 |"
    assert (
        lines[-1] == "| loss: L1 | 0.703 | 29.25 | -0.75 | 0.900 | 22.00 | 50%, 100% | 100, 300 | 1,234 | 0.97 | 1.50 |"
    )


def test_without_the_first_no_other_takes_its_place():
    lines = comparison_section([figures("L1", 29.25)], first="ours", steps=1300, split="test").splitlines()
    assert lines[-1].startswith("| loss: L1 | 0.703 | 29.25 |  | 0.900 |")


class Machine:
    """A clock that only work moves; from the third turn on everything takes four times as long."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, []

    def work(self, name: str, seconds: float):
        def step() -> None:
            self.done.append(name)
            slow = 4.0 if len(self.done) > 5 * STEPS else 1.0
            self.now += slow * seconds

        return step


def test_the_ratio_holds_on_a_machine_that_slows_down():
    machine = Machine()
    cost = relative_cost(machine.work("b", 0.6), machine.work("a", 0.2), clock=lambda: machine.now)
    assert cost == pytest.approx(3.0)
    timed = machine.done[-2 * STEPS * ROUNDS :]
    assert timed == (["b"] * STEPS + ["a"] * STEPS) * ROUNDS, "in turns"
