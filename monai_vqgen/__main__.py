"""The command line: stages under short names; `plan`, `demo`, `gallery`, `compress`, `verify`, `run` and others."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import shtab

import monai_vqgen
from monai_vqgen.errors import VQGenError, in_one_line, root_cause

__all__ = ["build_parser", "main"]

PROGRAM = "monai-vqgen"
"""As it is installed; shells complete this name. `python -m monai_vqgen` is the same program."""
ERROR_STATUS = 2  # as argparse's own errors
INTERRUPTED_STATUS = 128 + signal.SIGINT
TERMINATED_STATUS = 128 + signal.SIGTERM  # as shells have it
CHATTY = ("ignite", "monai.bundle.workflows", "monai.engines")  # starts and ends of every engine; ours say enough
DESCRIPTION = """\
Discrete generative models of medical images for MONAI: scans -> slices -> codes -> priors -> new slices.
Research use only, not for diagnosis.
"""
EPILOG = """\
examples:
  monai-vqgen sample --position_mm 65 --sex f         slices drawn with the weights that come with the package
  monai-vqgen reconstruct SCAN_OR_FOLDER              scans written into codes and read back
  monai-vqgen denoise SCAN_OR_FOLDER                  noisy scans with less noise
  monai-vqgen compress SCAN --output out/compressed   a scan in some kilobytes; decompress brings it back
  monai-vqgen plan SCANS --minutes 60                 settings for your scans, time and machine, to change
  monai-vqgen train SCANS --size plan.yaml            a model of your own scans, and a report on it
  monai-vqgen demo                                    phantoms to a report, about ten minutes on two cores
  monai-vqgen demo --data SCANS --output out/mine     the same with scans of your own
  monai-vqgen gallery                                 a page whose sliders show what the weights draw
  monai-vqgen demo --help                             every option of a verb

sample, reconstruct, denoise, anomaly, slices and evaluate print the command of MONAI's that does the same, and take all
of its options.
"""


class Stage(NamedTuple):
    """A stage of the bundle as a verb."""

    config: str
    folder: str | None
    output: str
    summary: str
    preset: Mapping[str, object] = {}  # options that the verb gives, where the user does not


STAGES = {
    "sample": Stage("sample", None, "out/samples", "draw new slices with trained weights"),
    "reconstruct": Stage("inference", "SCANS", "out/reconstructions", "write scans into codes and read them back"),
    "denoise": Stage(
        "inference",
        "SCANS",
        "out/denoised",
        "take noise out of scans; helps where there is much of it",
        {"model": "denoising", "shifts": 4, "output_postfix": "denoised"},
    ),
    "anomaly": Stage("anomaly", "SCANS", "out/anomaly", "show where scans are unlikely"),
    "slices": Stage("extract_slices", "SCANS", "out/slices", "cut scans into slices, split by subject"),
    "evaluate": Stage("evaluate", "SLICES", "out/evaluation", "score a model on the test subjects' slices"),
}

SCANS = "a folder of scans (NIfTI, BIDS or DICOM series)"
FOLDERS = {
    "SCANS": f"a scan, or {SCANS}",
    "SLICES": "a folder that slices has written, or of pictures by split",
}
"""What stages take, by the name of their argument, for the error where it does not exist."""
INPUTS = {
    "demo": SCANS,
    "train": SCANS,
    "plan": "a folder of scans, or of slices by split",
    "verify": "scans, weights, or a folder that a stage has written",
}
"""What the other verbs take, likewise."""

Verbs = Any  # argparse gives what add_subparsers returns no public name


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their options; each verb names the function that it runs as `run`."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"monai_vqgen {monai_vqgen.__version__}")
    shtab.add_argument_to(parser, "--print-completion", help="print what makes a shell complete this command")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for name, stage in STAGES.items():  # their options are MONAI's, as those of `run`: `main` hands them on
        add_verb(verbs, name, stage.summary, _verify)
    ours = (_add_train, _add_plan, _add_demo, _add_gallery, _add_compress, _add_decompress)
    for add in (*ours, _add_phantoms, _add_download, _add_verify):
        add(verbs)
    add_verb(verbs, "run", "a stage of the bundle: takes what `python -m monai.bundle run` takes", _verify)
    return parser


def _add_demo(verbs: Verbs) -> None:
    verb = add_verb(verbs, "demo", "from scans to new slices, every stage, ends with a report to look at", _demo)
    add_path(verb, "--data", help=f"{SCANS}; without it phantoms are made")
    add_path(verb, "--output", default="out/demo", help="where everything goes")
    add_seed(verb)
    verb.add_argument("--size", help="small (default for phantoms), standard (default for scans), tiny, or a YAML file")
    _add_dimensions(verb)


def _add_train(verbs: Verbs) -> None:
    verb = add_verb(verbs, "train", "train a model of your own scans, every stage, and report on it", _demo)
    verb.add_argument("data", metavar="SCANS", help=SCANS)
    add_path(verb, "--output", default="out/model", help="where everything goes")
    add_seed(verb)
    verb.add_argument("--size", help="standard (default), small, tiny, or a YAML file, such as a plan")
    _add_dimensions(verb)


def _add_dimensions(verb: Any) -> None:
    verb.add_argument("--dimensions", type=int, choices=(2, 3), help="3: whole volumes in place of slices")


def _add_plan(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "plan", "propose sizes and settings for scans of your own, as a file to read and change", _plan
    )
    folder: Any = verb.add_argument("data", metavar="DATA", help="a folder of scans, or of slices by split")
    folder.complete = shtab.DIRECTORY
    add_file(verb, "--output", default="plan.yaml", help="the YAML file")
    verb.add_argument("--minutes", type=float, default=45.0, help="for all stages (default: %(default)g)")
    verb.add_argument("--memory_gb", type=float, help="default: what is free on the GPU, or half of the machine's")
    verb.add_argument("--plane", choices=("axial", "coronal", "sagittal"), help="in place of the one proposed")
    verb.add_argument("--suffix", default="T1w", help="which contrast of a BIDS tree (default: %(default)s)")
    verb.add_argument("--subject_pattern", help="regular expression for the subject in a file's name or path")
    verb.add_argument("--overwrite", action="store_true", help="replace an earlier file")


def _add_gallery(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "gallery", "write a page whose sliders show what a model draws; it needs no server", _gallery
    )
    add_path(verb, "--output", default="out/gallery", help="folder of the page")
    add_path(verb, "--model", default="generative", help="a bundle, a run, or weights that come with the package")
    add_seed(verb, "first of the two seeds that the page has")
    verb.add_argument("--overwrite", action="store_true", help="replace a page that is there")


def _add_phantoms(verbs: Verbs) -> None:
    verb = add_verb(verbs, "phantoms", "make anatomical phantom volumes (NIfTI)", _phantoms)
    add_path(verb, "--output", default="out/phantoms", help="folder of the volumes")
    verb.add_argument("--subjects", type=int, default=48, help="how many (default: %(default)s)")
    add_seed(verb, "seed of their anatomy")


def _add_download(verbs: Verbs) -> None:
    verb = add_verb(verbs, "download", "fetch public scans of OpenNeuro, checked; run again to resume", _download)
    verb.add_argument("accession", nargs="?", default="ds002748", help="the data set (default: %(default)s)")
    add_path(verb, "--output", help="folder of the scans (default: out/ and the accession)")
    verb.add_argument("--subjects", nargs="+", metavar="NAME", help="which, as 01 or sub-01 (default: all)")
    verb.add_argument("--suffix", default="T1w", help="which contrast (default: %(default)s)")
    verb.add_argument("--overwrite", action="store_true", help="replace files that differ from the server's")
    verb.add_argument("--mirror", metavar="URL", help="another S3 bucket than OpenNeuro's")


def _add_compress(verbs: Verbs) -> None:
    verb = add_verb(verbs, "compress", "write scans and pictures as small .vqg files", _compress)
    _add_files(verb, "NIfTI files, pictures, or folders of scans or DICOM series", "out/compressed")
    verb.add_argument("--mode", choices=("model", "anywhere"), help="fewest bytes (default), or decodes on any machine")
    verb.add_argument("--plane", choices=("axial", "coronal", "sagittal"), help="of slices (default: the model's)")
    verb.add_argument("--condition", nargs="+", default=(), metavar="NAME=VALUE", help="what is known, as sex=f age=30")
    verb.add_argument("--lossless", action="store_true", help="also keep all voxels and pixels as they are stored")


def _add_decompress(verbs: Verbs) -> None:
    verb = add_verb(verbs, "decompress", "write what .vqg files hold as NIfTI and PNG", _decompress)
    _add_files(verb, "that compress has written", "out/decompressed")
    verb.add_argument("--lossy", action="store_true", help="write reconstructions also of files that are lossless")


def _add_files(verb: argparse.ArgumentParser, what: str, output: str) -> None:
    files: Any = verb.add_argument("files", nargs="+", metavar="FILE", help=what)
    files.complete = shtab.FILE
    add_path(verb, "--output", default=output, help="folder of the results")
    verb.add_argument("--model", help="faithful, generative, a bundle or a run's folder (default: the package's own)")
    verb.add_argument("--overwrite", action="store_true", help="replace earlier results")


def _add_verify(verbs: Verbs) -> None:
    verb = add_verb(verbs, "verify", "check scans, slices, codes or weights before they are used", _verify)
    folder: Any = verb.add_argument("folder", help="of scans, or a folder that a stage has written")
    folder.complete = shtab.DIRECTORY
    verb.add_argument("--plane", default="axial", choices=("axial", "coronal", "sagittal"), help="of slices cut")
    verb.add_argument("--suffix", default="T1w", help="which contrast of a BIDS tree (default: %(default)s)")
    verb.add_argument("--subject_pattern", help="regular expression for the subject in a file's name or path")


def add_verb(
    verbs: Verbs, name: str, summary: str, run: Callable[[argparse.Namespace], object]
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        name, help=summary, description=f"{name}: {summary}.", allow_abbrev=False
    )
    verb.set_defaults(run=run)
    return verb


def add_path(
    verb: argparse.ArgumentParser, name: str, *, help: str, default: str | None = None, required: bool = False
) -> None:
    """Add a folder; shells complete folders there."""
    _completed(verb, name, shtab.DIRECTORY, help=help, default=default, required=required)


def add_file(verb: argparse.ArgumentParser, name: str, *, help: str, default: str | None = None) -> None:
    """Add a file; shells complete files there."""
    _completed(verb, name, shtab.FILE, help=help, default=default, metavar="FILE")


def _completed(verb: argparse.ArgumentParser, name: str, choices: Mapping[str, Any], *, help: str, **more: Any) -> None:
    shown = f"{help} (default: %(default)s)" if more.get("default") else help
    action: Any = verb.add_argument(name, help=shown, **more)
    action.complete = choices  # where shtab looks


def add_seed(verb: argparse.ArgumentParser, of: str = "seed of everything that is random") -> None:
    verb.add_argument("--seed", type=int, default=0, help=f"{of} (default: %(default)s)")


# Each imports what it runs: torch and MONAI take seconds, which --help and completion do not pay.


def _demo(options: argparse.Namespace) -> None:
    from monai_vqgen.demo.run import run_demo

    run_demo(options.data, options.output, seed=options.seed, size=options.size, dimensions=options.dimensions)


def _plan(options: argparse.Namespace) -> None:
    from monai_vqgen.data import ScanOptions
    from monai_vqgen.demo.plan import plan_run

    plan = plan_run(
        options.data,
        options.output,
        minutes=options.minutes,
        memory_gb=options.memory_gb,
        plane=options.plane,
        scans=ScanOptions(options.suffix, options.subject_pattern),
        overwrite=options.overwrite,
    )
    skipped = [f"skipped: {entry['file']}: {entry['reason']}" for entry in plan.survey.skipped]
    _, *lines = plan.text(options.data, options.output).splitlines()
    first, *others = plan.commands(options.data, options.output)
    print("\n".join([*skipped, *lines, "", f"Written to {options.output}; read and change it. Next:", first]))
    print("\n".join(["Or every stage by itself:", *others] if len(plan.survey.spacing_mm) else others))


def _gallery(options: argparse.Namespace) -> None:
    from monai_vqgen.demo.gallery import write_gallery
    from monai_vqgen.models import TrainedModel

    model = TrainedModel.from_bundle(options.model)
    page = write_gallery(model, options.output, seed=options.seed, overwrite=options.overwrite)
    print(f"Written: {page}; open it in a browser")


def _phantoms(options: argparse.Namespace) -> None:
    from monai_vqgen.data import make_phantoms

    make_phantoms(options.output, options.subjects, seed=options.seed)


def _download(options: argparse.Namespace) -> None:
    from monai_vqgen.data import download_openneuro

    download_openneuro(
        options.accession,
        options.output or f"out/{options.accession}",
        subjects=options.subjects,
        suffix=options.suffix,
        overwrite=options.overwrite,
        base_url=options.mirror,
    )


def _compress(options: argparse.Namespace) -> None:
    from monai_vqgen.errors import InputError
    from monai_vqgen.models import compress_files

    pairs = [pair.partition("=") for pair in options.condition]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise InputError(f"--condition {wrong[0]} has no value: give NAME=VALUE, as sex=f")
    condition = {name: value for name, _, value in pairs} or None
    given = {name: getattr(options, name) for name in ("model", "mode", "plane", "lossless", "overwrite")}
    _list(compress_files(options.files, options.output, condition=condition, **given))


def _decompress(options: argparse.Namespace) -> None:
    from monai_vqgen.models import decompress_files

    given = {name: getattr(options, name) for name in ("model", "lossy", "overwrite")}
    _list(decompress_files(options.files, options.output, **given))


def _list(paths: Sequence[os.PathLike[str]]) -> None:
    for path in paths:
        print(f"{path}: {os.path.getsize(path):,} bytes")


def _verify(options: argparse.Namespace) -> int:
    from monai_vqgen.data import ScanOptions, SliceOptions
    from monai_vqgen.data.verify import verify_folder
    from monai_vqgen.models import TrainedModel

    scans = ScanOptions(options.suffix, options.subject_pattern)
    found = verify_folder(
        options.folder, scans=scans, slices=SliceOptions(options.plane), load_weights=TrainedModel.from_bundle
    )
    print(found.table())
    return int(bool(found.findings))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in STAGES:
        return _run_stage(words[0], words[1:])
    if words[:1] == ["run"] and words[1:] not in (["-h"], ["--help"]):  # its options are MONAI's, not argparse's
        from monai_vqgen.engines.command_line import run_bundle

        run_bundle(words[1:])
        return 0
    options = build_parser().parse_args(words)
    for name in ("data", "folder"):
        if (path := getattr(options, name, None)) and not _is_there(path):
            print(f"error: {path} does not exist: give {INPUTS[options.verb]}", file=sys.stderr)
            return ERROR_STATUS
    return run_verb(options)


def _run_stage(verb: str, words: list[str]) -> int:
    """Run a stage by its short name: the folder stands alone, hyphens are as good as underscores."""
    stage = STAGES[verb]
    helped = bool({"-h", "--help"} & {*words})
    given: list[str] = []
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        given += [f"--{name[2:].replace('-', '_')}" if word.startswith("--") else name, *([value] if equals else [])]
    if stage.folder and given and not given[0].startswith("--"):
        given.insert(0, "--dataset_dir")
    if stage.folder and not helped and (problem := _input_problem(verb, stage.folder, given)):
        print(f"error: {problem}", file=sys.stderr)
        return ERROR_STATUS
    from monai_vqgen.bundles import bundle_root
    from monai_vqgen.files import read_json

    root = bundle_root()
    file = root / "configs" / f"{stage.config}.json"
    if helped:
        print(_stage_help(verb, stage, read_json(file)))
        return 0
    for option, default in {"output_dir": stage.output, **stage.preset}.items():
        if f"--{option}" not in given:
            given += [f"--{option}", str(default)]
    command = ["--config_file", str(file), "--bundle_root", str(root), *given]
    print(f"python -m monai.bundle run {shlex.join(command)}", flush=True)  # before imports take their seconds
    from monai_vqgen.engines.command_line import run_bundle

    run_bundle(command)
    return 0


def _input_problem(verb: str, folder: str, words: Sequence[str]) -> str:
    """What is wrong with a stage's input, told before imports take their seconds; empty where nothing is."""
    values = [value for name, value in itertools.pairwise(words) if name == "--dataset_dir"]
    if not values:
        return f"{verb} needs {folder}: {PROGRAM} {verb} {folder}"
    path = values[-1].strip("'\"")  # the last counts, and quotes keep digits from being read as a number
    if path.startswith(("--", "$", "@", "%")) or _is_there(path):
        return ""
    return f"{path} does not exist: give {FOLDERS[folder]}"


def _is_there(path: str) -> bool:
    return os.path.lexists(os.path.expanduser(path))


def _stage_help(verb: str, stage: Stage, config: Mapping[str, Any]) -> str:
    """Usage, and the options that are plain values; what MONAI computes from them is for those who read the file."""
    lines = [f"usage: {PROGRAM} {verb} {stage.folder + ' ' if stage.folder else ''}[--option value ...]", ""]
    lines += [f"{stage.summary}; options and their defaults:", ""]
    for name, value in {**config, **stage.preset}.items():
        computed = isinstance(value, list | dict) or str(value)[:1] in "$%"
        if name != "bundle_root" and (name == "model" or not computed):
            lines.append(f"  --{name:20} {json.dumps(value)}")
    return "\n".join(lines)


def run_verb(options: argparse.Namespace) -> int:
    """Run the verb that was parsed, any error told in one line; returns the exit status.

    The environment variable MONAI_VQGEN_TRACEBACK=1 shows the whole traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return options.run(options) or 0
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("MONAI_VQGEN_TRACEBACK"):
            raise
        own = root_cause(error)
        print(f"error: {own if isinstance(own, VQGenError) else in_one_line(error)}", file=sys.stderr)
        return INTERRUPTED_STATUS if isinstance(error, KeyboardInterrupt) else ERROR_STATUS


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED_STATUS))  # what has begun is put away before the end
    sys.exit(main())
