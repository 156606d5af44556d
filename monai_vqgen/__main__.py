"""The command line: `python -m monai_vqgen demo`, `... reproduce`, `... compare`, `... phantoms`, `... download`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

import monai_vqgen
from monai_vqgen.errors import VQGenError

__all__ = ["main"]

ERROR_STATUS = 2  # as argparse's own errors
TERMINATED_STATUS = 128 + signal.SIGTERM  # as shells have it
CHATTY = ("ignite", "monai.bundle.workflows", "monai.engines")  # starts and ends of every engine; ours say enough


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their options."""
    parser = argparse.ArgumentParser(
        prog="monai_vqgen",
        description="Discrete generative models of medical images for MONAI. Every stage of the demo is also a command "
        "of its own: python -m monai.bundle run --config_file bundle/configs/....json. Research use only.",
    )
    parser.add_argument("--version", action="version", version=f"monai_vqgen {monai_vqgen.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")

    demo = verbs.add_parser("demo", help="from scans to new slices, every stage, ends with a report to look at")
    demo.add_argument("--data", help="a folder of scans (NIfTI, BIDS or DICOM series); without it phantoms are made")
    demo.add_argument("--output", default="out/demo", help="where everything goes (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything that is random (default: %(default)s)")
    demo.add_argument("--size", help="small (default for phantoms), standard (default for scans) or tiny")

    reproduce = verbs.add_parser("reproduce", help="train and evaluate a release again; run again to go on")
    reproduce.add_argument("--data", required=True, help="a folder with the scans (see download)")
    reproduce.add_argument("--output", default="out/reproduce", help="where everything goes (default: %(default)s)")
    reproduce.add_argument(
        "--seed", type=int, default=0, help="seed of everything that is random (default: %(default)s)"
    )
    reproduce.add_argument("--size", default="release_128", help="the preset (default: %(default)s)")
    reproduce.add_argument(
        "--results", metavar="FILE", help="write the figures between the size's marks in this document"
    )

    compare = verbs.add_parser("compare", help="designs of the autoencoder side by side; run again to go on")
    compare.add_argument("--data", required=True, help="a folder with the scans (see download)")
    compare.add_argument(
        "--designs", default="configs/comparisons/autoencoder.yaml", help="a YAML list (default: %(default)s)"
    )
    compare.add_argument("--output", default="out/compare", help="where everything goes (default: %(default)s)")
    compare.add_argument("--minutes", type=float, default=5.0, help="training time of each (default: %(default)s)")
    compare.add_argument("--jobs", type=int, help="how many train at once (default: one a core, or one on a GPU)")
    compare.add_argument("--seed", type=int, default=0, help="seed of everything that is random (default: %(default)s)")
    compare.add_argument("--size", default="quick_128", help="the preset (default: %(default)s)")
    compare.add_argument("--results", metavar="FILE", help="write the table between the size's marks in this document")

    phantoms = verbs.add_parser("phantoms", help="make anatomical phantom volumes (NIfTI)")
    phantoms.add_argument("--output", default="out/phantoms", help="folder of the volumes (default: %(default)s)")
    phantoms.add_argument("--subjects", type=int, default=48, help="how many (default: %(default)s)")
    phantoms.add_argument("--seed", type=int, default=0, help="seed of their anatomy (default: %(default)s)")

    download = verbs.add_parser("download", help="fetch public scans of OpenNeuro, checked; run again to resume")
    download.add_argument("accession", nargs="?", default="ds002748", help="the data set (default: %(default)s)")
    download.add_argument("--output", help="folder of the scans (default: out/ and the accession)")
    download.add_argument("--subjects", nargs="+", metavar="NAME", help="which, as 01 or sub-01 (default: all)")
    download.add_argument("--suffix", default="T1w", help="which contrast (default: %(default)s)")
    download.add_argument("--overwrite", action="store_true", help="replace files that differ from the server's")
    download.add_argument("--mirror", metavar="URL", help="another S3 bucket than OpenNeuro's")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        if options.verb == "demo":
            from monai_vqgen.apps.demo import run_demo  # imports torch and MONAI: seconds that --help does not pay

            run_demo(options.data, options.output, seed=options.seed, size=options.size)
        elif options.verb == "reproduce":
            from monai_vqgen.apps.reproduce import reproduce

            reproduce(options.data, options.output, size=options.size, seed=options.seed, results=options.results)
        elif options.verb == "compare":
            from monai_vqgen.apps.compare import compare

            compare(
                options.data,
                options.output,
                designs=options.designs,
                minutes=options.minutes,
                jobs=options.jobs,
                size=options.size,
                seed=options.seed,
                results=options.results,
            )
        elif options.verb == "download":
            from monai_vqgen.data import download_openneuro

            download_openneuro(
                options.accession,
                options.output or f"out/{options.accession}",
                subjects=options.subjects,
                suffix=options.suffix,
                overwrite=options.overwrite,
                base_url=options.mirror,
            )
        else:
            from monai_vqgen.data import make_phantoms

            make_phantoms(options.output, options.subjects, seed=options.seed)
    except VQGenError as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR_STATUS
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED_STATUS))  # what has begun is put away before the end
    sys.exit(main())
