"""What maintainers run from a clone: `python -m tools reproduce`, `... compare`, `... package_bundle`, `... fuzz`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

from monai_vqgen.__main__ import TERMINATED_STATUS, Verbs, add_file, add_path, add_seed, add_verb, run_verb

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their options; each verb names the function that it runs as `run`."""
    parser = argparse.ArgumentParser(prog="python -m tools", description="Tools for maintainers, run from a clone")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for add in (
        _add_reproduce,
        _add_compare,
        _add_bitstream,
        _add_blank_cells,
        _add_denoising,
        _add_whole_volumes,
        _add_package_bundle,
        _add_imagenet_features,
        _add_fuzz,
        _add_soak,
    ):
        add(verbs)
    return parser


def _add_reproduce(verbs: Verbs) -> None:
    verb = add_verb(verbs, "reproduce", "train and evaluate a release again; run again to go on", _reproduce)
    add_path(verb, "--data", required=True, help="a folder with the scans (see download)")
    add_path(verb, "--output", default="out/reproduce", help="where everything goes")
    add_seed(verb)
    verb.add_argument("--size", default="release_128", help="of configs/sizes, or a YAML file (default: %(default)s)")
    add_file(verb, "--results", help="write the figures between the marks of size and device in this document")
    add_path(verb, "--pictures", help="put the pictures there, in a folder of size and device, and into the results")
    add_path(verb, "--models", help="put the weights there as well; bundle/models ships them")


def _add_compare(verbs: Verbs) -> None:
    verb = add_verb(verbs, "compare", "designs of the autoencoder side by side; run again to go on", _compare)
    add_path(verb, "--data", required=True, help="a folder with the scans (see download)")
    add_file(verb, "--designs", default="configs/comparisons/autoencoder.yaml", help="a YAML list")
    add_path(verb, "--output", default="out/compare", help="where everything goes")
    verb.add_argument(
        "--steps", type=int, default=2000, help="of the first design; each may cost as much (default: %(default)s)"
    )
    verb.add_argument("--jobs", type=int, help="how many train at once (default: one a core, or one on a GPU)")
    add_seed(verb)
    verb.add_argument("--size", default="quick_128", help="of configs/sizes, or a YAML file (default: %(default)s)")
    verb.add_argument(
        "--split", default="validation", help="whose subjects judge: validation or test (default: %(default)s)"
    )
    add_file(verb, "--results", help="write the table between the marks of the list, size and split in this document")


def _add_bitstream(verbs: Verbs) -> None:
    verb = add_verb(verbs, "bitstream", "rate, exactness and time of compressed slices, and other codecs'", _bitstream)
    add_path(verb, "--slices", required=True, help="a folder of slices (see extract_slices.json)")
    add_path(verb, "--output", default="out/bitstream", help="folder of bitstream.json")
    verb.add_argument("--model", default="faithful", help="whose codes (default: %(default)s)")
    verb.add_argument("--split", default="test", help="whose subjects (default: %(default)s)")
    verb.add_argument("--subjects", type=int, help="how many of them (default: all)")
    verb.add_argument("--no_codecs", dest="codecs", action="store_false", help="without other codecs")


def _add_blank_cells(verbs: Verbs) -> None:
    verb = add_verb(verbs, "blank_cells", "a code for blank cells in weights that have none", _blank_cells)
    verb.add_argument("--model", default="faithful", help="the weights (default: %(default)s)")
    add_path(verb, "--slices", required=True, help="a folder of slices (see extract_slices.json)")
    add_path(verb, "--output", required=True, help="a folder for the new weights")
    verb.add_argument("--threshold", type=float, default=0.01, help="brightest background (default: %(default)s)")
    verb.add_argument(
        "--margin", type=int, nargs="+", default=(1, 0), help="cells around content that are not blank, one a level"
    )
    verb.add_argument("--steps", type=int, default=5000, help="of the decoder's training (default: %(default)s)")


def _add_denoising(verbs: Verbs) -> None:
    verb = add_verb(verbs, "denoising", "gain and cost of denoising, beside NLM, TV and BM3D", _denoising)
    add_path(verb, "--slices", required=True, help="a folder of slices (see extract_slices.json)")
    add_path(verb, "--output", default="out/denoising", help="folder of denoising.json and a picture")
    verb.add_argument("--model", default="denoising", help="beside the faithful weights (default: %(default)s)")
    verb.add_argument("--split", default="test", help="whose subjects (default: %(default)s)")
    verb.add_argument("--sigmas", type=float, nargs="+", default=(0.03, 0.06, 0.1), help="of the Rician noise")
    verb.add_argument("--shifts", type=int, nargs="+", default=(1, 4, 8), help="reconstructions to take the mean of")
    verb.add_argument("--every", type=int, default=10, help="one slice of so many (default: %(default)s)")
    add_seed(verb, "seed of the noise")


def _add_whole_volumes(verbs: Verbs) -> None:
    verb = add_verb(verbs, "whole_volumes", "how well whole scans come back", _whole_volumes)
    add_path(verb, "--data", required=True, help="a folder of scans")
    add_path(verb, "--output", default="out/whole_volumes", help="folder of whole_volumes.json")
    add_file(verb, "--split_file", default="configs/splits/ds002748.json", help="subjects of each split")
    verb.add_argument("--split", default="test", help="whose scans (default: %(default)s)")
    verb.add_argument("--model", default="faithful", help="the weights (default: %(default)s)")
    verb.add_argument("--shifts", type=int, nargs="+", default=(1, 4), help="reconstructions to take the mean of")


def _add_package_bundle(verbs: Verbs) -> None:
    verb = add_verb(verbs, "package_bundle", "the bundle as the zip that MONAI downloads", _package_bundle)
    add_path(verb, "--output", default="dist", help="folder of the zip")


def _add_imagenet_features(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "imagenet_features", "a feature network of ImageNet for reports on samples", _imagenet_features
    )
    add_file(verb, "--output", default="out/efficientnet_lite0.ts", help="a TorchScript file (default: %(default)s)")
    verb.add_argument("--scales", action="store_true", help="features at four scales, for train_decoder.json")


def _add_fuzz(verbs: Verbs) -> None:
    verb = add_verb(verbs, "fuzz", "changed files through the product's readers, in processes with limits", _fuzz)
    add_path(verb, "--output", default="out/fuzz", help="findings go there, and fuzz.json")
    verb.add_argument("--targets", nargs="*", default=(), metavar="NAME", help="kinds of files (default: all)")
    verb.add_argument("--count", type=int, default=20_000, help="files of each kind (default: %(default)s)")
    add_seed(verb, "seed of the changes")


def _add_soak(verbs: Verbs) -> None:
    verb = add_verb(verbs, "soak", "a tiny training, killed each minute and resumed, against one left alone", _soak)
    add_path(verb, "--output", default="out/soak", help="an empty or new folder")
    verb.add_argument("--minutes", type=float, default=30.0, help="how long (default: %(default)s)")
    verb.add_argument("--within", type=float, default=60.0, help="seconds in which a kill comes (default: %(default)s)")
    verb.add_argument("--epochs", type=int, default=60, help="of the training (default: %(default)s)")
    add_seed(verb, "seed of the moments of the kills")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """What was typed or stands as default, by the names of the function's arguments."""
    return {name: value for name, value in vars(options).items() if name not in ("verb", "run")}


def _reproduce(options: argparse.Namespace) -> None:
    from tools.reproduce import reproduce

    reproduce(**_given(options))


def _compare(options: argparse.Namespace) -> None:
    from tools.compare import Comparison, compare

    comparison = Comparison(*(getattr(options, name) for name in Comparison._fields))
    compare(options.data, options.output, comparison, jobs=options.jobs, results=options.results)


def _bitstream(options: argparse.Namespace) -> None:
    from tools.bitstream import measure_bitstream

    print(json.dumps(measure_bitstream(**_given(options)), indent=1))


def _blank_cells(options: argparse.Namespace) -> None:
    from tools.blank_cells import add_blank_cells

    print(add_blank_cells(**_given(options)))


def _denoising(options: argparse.Namespace) -> None:
    from tools.denoising import measure_denoising, table

    print(table(measure_denoising(**_given(options))))


def _whole_volumes(options: argparse.Namespace) -> None:
    from tools.whole_volumes import measure_whole_volumes, table

    print(table(measure_whole_volumes(**_given(options))))


def _package_bundle(options: argparse.Namespace) -> None:
    from tools.package_bundle import package_bundle

    package_bundle(options.output)


def _imagenet_features(options: argparse.Namespace) -> None:
    from tools.imagenet_features import write_imagenet_features

    print(write_imagenet_features(options.output, scales=options.scales))


def _fuzz(options: argparse.Namespace) -> int:
    from tools.fuzz import fuzz

    return int(fuzz(options.output, targets=options.targets, count=options.count, seed=options.seed) > 0)


def _soak(options: argparse.Namespace) -> int:
    from tools.soak import soak

    return int(soak(**_given(options)) > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    return run_verb(build_parser().parse_args(arguments))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED_STATUS))
    sys.exit(main())
