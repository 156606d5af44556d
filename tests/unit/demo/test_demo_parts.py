"""The parts of the demo that need no training: sizes, commands, folders, pictures, the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from PIL import Image

import monai_vqgen
from monai_vqgen.__main__ import main
from monai_vqgen.bundles import bundle_root, run_stage, stage_command
from monai_vqgen.data import make_phantoms
from monai_vqgen.demo import report
from monai_vqgen.demo.report import _portable, write_report
from monai_vqgen.demo.run import claim_demo_folder, run_demo
from monai_vqgen.demo.sizes import read_size, size_names
from monai_vqgen.demo.stages import StageRecord, bundle_stages
from monai_vqgen.engines import check_command_line
from monai_vqgen.errors import DatalistError, InputError, OutputExistsError
from monai_vqgen.plots.pictures import FAINT, INK, Curve, PictureRow, save_curves, save_grid, save_png, save_rows, style
from tools.reproduce import reproduce
from tools.results import check_section


@pytest.mark.parametrize("name", size_names())
def test_every_command_of_the_demo_is_one_that_its_config_understands(name, tmp_path, monkeypatch):
    monkeypatch.chdir(bundle_root().parent)
    stages = bundle_stages(read_size(name), scans=tmp_path, output=tmp_path / "out", seed=1)
    assert len(stages) == 8
    for stage in stages:
        words = shlex.split(stage.command)
        assert words[:4] == ["python", "-m", "monai.bundle", "run"]
        check_command_line(["/site-packages/monai/bundle/__main__.py", *words[3:]])


def test_the_last_epoch_of_every_training_is_validated(tmp_path):
    """The weights kept are the best on validation; an odd number of epochs must not leave the last one out."""
    for name in size_names():
        for stage in bundle_stages(read_size(name), scans=tmp_path, output=tmp_path / "out", seed=1):
            words = shlex.split(stage.command)
            if "training" not in words:
                continue
            config = ConfigParser.load_config_file(bundle_root().parent / words[words.index("--config_file") + 1])
            options = dict(zip(words[7::2], words[8::2], strict=True))
            interval = int(options.get("--val_interval", config["val_interval"]))
            assert int(options["--max_epochs"]) % interval == 0, stage.name


def test_an_option_that_no_config_knows_is_refused():
    with pytest.raises(InputError, match="num_sample"):
        run_stage("sample", options={"num_sample": 3})


def test_commands_quote_what_the_shell_would_split():
    command = stage_command("inference", options={"dataset_dir": "/my scans/a", "image_size": [64, 64]})
    assert shlex.split(command)[-4:] == ["--dataset_dir", "/my scans/a", "--image_size", "[64, 64]"]


def test_earlier_demos_are_moved_to_the_next_free_number(tmp_path):
    for expected in ("first", "second"):
        folder = claim_demo_folder(tmp_path / "demo")
        (folder / "demo.json").write_text("{}")
        (folder / "who").write_text(expected)
    claim_demo_folder(tmp_path / "demo")
    assert (tmp_path / "demo.1" / "who").read_text() == "first"
    assert (tmp_path / "demo.2" / "who").read_text() == "second"
    assert list((tmp_path / "demo").iterdir()) == []


def test_a_file_or_a_foreign_folder_is_never_moved(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(OutputExistsError, match=name):
            claim_demo_folder(tmp_path / name)


def test_a_grid_places_images_row_by_row_under_its_title(tmp_path):
    images = np.stack([np.full((128, 128), value) for value in (0.2, 0.4, 0.6)])

    save_grid(images, tmp_path / "grid.png", columns=2, title="three images")

    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("L"), dtype=float) / 255
    assert picture.shape == (2 * 128 + 28, 2 * 128)
    assert picture[28 + 64, 64] == pytest.approx(0.2, abs=0.01)
    assert picture[28 + 64, 128 + 64] == pytest.approx(0.4, abs=0.01)
    assert picture[28 + 128 + 64, 64] == pytest.approx(0.6, abs=0.01)
    assert (picture[:24] < 0.5).any()
    assert (picture[28 + 130 :, 130:] == 1).all()


def test_a_long_title_takes_as_many_lines_as_it_needs(tmp_path):
    for name, title in {"short": "one", "long": "a title that is far longer than two images are wide"}.items():
        save_grid(np.ones((2, 128, 128)), tmp_path / f"{name}.png", title=title)
    short, long = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("short", "long"))
    assert short.shape[1] == long.shape[1] == 256
    assert long.shape[0] > short.shape[0] + 15
    assert (long[: long.shape[0] - 128, -4:] > 250).all()  # no letter runs over the edge


def test_a_picture_says_in_itself_what_it_shows(tmp_path):
    save_png(np.zeros((4, 4)), tmp_path / "a.png", description="Synthetic: seed 3; 65 mm")
    assert Image.open(tmp_path / "a.png").text == {"Description": "Synthetic: seed 3; 65 mm"}


def test_png_keeps_the_fixed_range(tmp_path):
    save_png(np.array([[-1.0, 0.0, 0.5], [1.0, 2.0, np.nan]]), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), [[0, 0, 128], [255, 255, 0]])


def test_rows_show_images_in_their_place_and_differences_in_color(tmp_path):
    bright, dark = np.ones((1, 32, 32)), np.zeros((1, 32, 32))
    rows = [PictureRow("a", bright), PictureRow("b", dark), PictureRow("c", bright, signed=True)]
    save_rows(rows, tmp_path / "rows.png", pixels=100)
    with Image.open(tmp_path / "rows.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (300, 225, 3)
    assert (pixels[50, 180] > 240).all()
    assert (pixels[150, 180] < 15).all()
    red, _, blue = pixels[250, 180]
    assert red > blue + 50


@pytest.mark.parametrize(("level", "seen"), [(1.0, lambda gray: gray.min() < 80), (0.0, lambda gray: gray.max() > 180)])
def test_marks_are_read_on_light_and_on_dark_images(level, seen, tmp_path):
    save_rows([PictureRow("", np.full((1, 32, 32), level), marks=["65 mm"])], tmp_path / "rows.png")
    picture = np.asarray(Image.open(tmp_path / "rows.png").convert("L"))
    image = picture[10:-10, -110:-10]  # its edge is the figure's white
    assert seen(image)


def test_curves_are_drawn_with_their_points_one_panel_a_name(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("monai_vqgen.plots.pictures.save_figure", lambda figure, path: figures.append((figure, path)))
    panels = {
        "falling": [Curve("training", [1, 2, 3], [100.0, 10.0, 1.0]), Curve("validation", [2], [20.0])],
        "flat": [Curve("training", [1, 2], [2.0, float("nan")])],
        "signed": [Curve("training", [1, 2], [-1.0, 100.0])],
    }
    save_curves(panels, tmp_path / "a.png", y={"falling": "error", "flat": "bits", "signed": "change"})
    ((figure, path),) = figures
    assert path == tmp_path / "a.png"
    assert [axes.get_title() for axes in figure.axes] == list(panels)
    assert [axes.get_ylabel() for axes in figure.axes] == ["error", "bits", "change"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    for axes, curves in zip(figure.axes, panels.values(), strict=True):
        for line, curve in zip(axes.lines, curves, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), np.stack([curve.x, curve.y], axis=1))
            assert line.get_label() == curve.label
    for axes in figure.axes:
        assert all(float(tick).is_integer() for tick in axes.get_xticks()), "there is no epoch 1.5"
    assert figure.axes[0].lines[1].get_marker() == "o"  # a single point would be invisible as a line


@pytest.mark.parametrize(
    ("folder", "command", "shown"),
    [
        (
            "/home/me/out",
            "run --dataset_dir /home/me/out/slices --a /home/me/out",
            "out/slices --a out",
        ),
        ("/home/my runs/out", "run --dataset_dir '/home/my runs/out/slices' --a 1/2", "out/slices --a 1/2"),
        ("/home/me/out", "run --dataset_dir /data/scans/ds & wait", "ds & wait"),
        ("/home/me/out", "run --dataset_dir '/data/my scans/it'\"'\"'s' --b /home/me/out2", "'it'\"'\"'s' --b out2"),
        ("/home/me/out", "run --dataset_dir '$\"/a/\" + @b' --c 'see /a/b'", "'$\"/a/\" + @b' --c 'see /a/b'"),
        ("out/demo", "run --dataset_dir out/demo/slices --output_dir ./x", "out/demo/slices --output_dir ./x"),
    ],
)
def test_commands_of_a_report_do_not_tell_where_on_a_machine_things_lie(folder, command, shown):
    assert _portable(command, Path(folder)) == f"run --dataset_dir {shown}"


def test_files_in_a_list_do_not_tell_it_either():
    shown = _portable(stage_command("train", options={}, overlays=["/x y/a.json", "/me/out/b.json"]), Path("/me/out"))
    assert shlex.split(shown)[-1] == "['bundle/configs/train.json', 'a.json', 'out/b.json']"


def test_a_report_shows_commands_without_places_and_takes_no_text_for_markup(tmp_path, monkeypatch):
    told = {}

    class Template:
        def render(self, **values):
            told.update(values)
            return "page"

    page = report.page_template("report.html").environment.from_string("{{ reason }}").render(reason="<script>")
    assert page == "&lt;script&gt;"
    (tmp_path / "metrics.json").write_text('{"codebook": [], "x": 1}')
    monkeypatch.setattr(report, "page_template", lambda name: Template())
    write_report(tmp_path, stages=[StageRecord("a", 1.0, f"run --data /elsewhere/scans --out {tmp_path}/a")])
    assert [stage.command for stage in told["stages"]] == [f"run --data scans --out {tmp_path.name}/a"]


def test_the_mark_of_a_demo_does_not_tell_where_the_scans_lie(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_vqgen.demo.run.run_stages", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_demo(output=tmp_path / "demo", size="tiny")
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["data"] == "phantoms"


def test_a_report_needs_metrics(tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"metrics\.json is damaged"):
        write_report(tmp_path / "damaged", stages=[])
    with pytest.raises(InputError, match=r"metrics\.json"):
        write_report(tmp_path, stages=[])


def test_the_command_line_tells_its_version_and_mends(tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        main(["--version"])
    assert status.value.code == 0
    assert monai_vqgen.__version__ in capsys.readouterr().out
    assert main(["demo", "--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_phantoms_are_made_by_the_command_line(tmp_path):
    assert main(["phantoms", "--output", str(tmp_path / "p"), "--subjects", "1", "--seed", "4"]) == 0
    assert [path.name for path in (tmp_path / "p").glob("*.nii.gz")] == ["sub-01_T1w.nii.gz"]


def test_a_release_keeps_its_hands_off_other_folders(tmp_path):
    make_phantoms(tmp_path / "scans", 3, seed=1, voxel_mm=8.0, progress=False)
    for name, content in {"other": "model.pt", "another": "reproduce.json"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text('{"seed": 5}')
        with pytest.raises(OutputExistsError, match=r"another output folder"):
            reproduce(tmp_path / "scans", tmp_path / name, size="tiny")
        (left,) = (tmp_path / name).iterdir()
        assert left.read_text() == '{"seed": 5}'
    with pytest.raises(InputError, match=r"nowhere\.md cannot be read"):
        reproduce(tmp_path / "scans", tmp_path / "out", size="tiny", results=tmp_path / "nowhere.md")
    with pytest.raises(DatalistError, match=r"none of its .* subjects has a scan"):
        reproduce(tmp_path / "scans", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["release_128_cpu", "release_128_gpu", "comparison_autoencoder_quick_128_validation"])
def test_the_published_results_have_a_place_for_the_release_and_each_comparison(name):
    check_section(bundle_root().parent / "docs" / "RESULTS.md", name)


def test_all_labels_of_an_axis_have_one_color():
    """A logarithmic axis of less than a decade writes numbers at its minor ticks, which have a color of their own."""
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.plot([1, 2], [0.2, 0.7])
    style(axes, x="epoch", y="error")
    figure.draw_without_rendering()
    labels = [*axes.get_yticklabels(which="minor"), *axes.get_yticklabels(which="major")]
    assert [label for label in axes.get_yticklabels(which="minor") if label.get_text()]
    assert all(same_color(label.get_color(), FAINT) for label in labels)
    assert same_color(axes.yaxis.label.get_color(), INK)
