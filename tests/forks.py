"""Modules run as `python -m MODULE` would run them, each in a fork of one process that has imported MONAI already.

Imports take longer than what most commands of the tests do. A fork has its own folder, environment, output and random
numbers. What is settled when Python starts or imports (`PYTHON...`, the hash seed, threads of OpenMP, variables that
MONAI and matplotlib read) it takes from the process that it is a fork of: where that matters, start a program.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

MODULES = ("monai.bundle", "monai_vqgen")
PRELOADED = ["monai.bundle", "monai.handlers", "ignite.engine", "monai_vqgen.bundles", "matplotlib.pyplot"]


def run_program(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run(arguments, text=True, capture_output=True, ...)`; `python -m MODULE` runs in a fork."""
    program, *words = arguments
    if program == "monai-vqgen":  # the same program
        program, words = "python", ["-m", "monai_vqgen", *words]
    if program in ("python", sys.executable) and words[:1] == ["-m"] and words[1] in MODULES:
        return _run_module(words[1:], folder, environment, timeout)
    options = {"capture_output": True, "text": True, "check": False}
    return subprocess.run(arguments, cwd=folder, env=environment, timeout=timeout, **options)


def _run_module(
    command: list[str], folder: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as written:
        streams = [Path(written, name) for name in ("stdout", "stderr")]
        process = context.Process(target=_run, args=(command, str(folder), dict(environment), *map(str, streams)))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        printed = [path.read_text(encoding="utf-8") if path.exists() else "" for path in streams]
    return subprocess.CompletedProcess(command, process.exitcode, *printed)


def _run(command: list[str], folder: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    """In the fork: a program of its own, up to what programs do at their end."""
    for stream, path in ((sys.stdout, stdout), (sys.stderr, stderr)):
        stream.flush()
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream.fileno())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = command[1:]
    tests = str(Path(__file__).parent)
    sys.path[:] = [folder, *(path for path in sys.path if path and not path.startswith(tests))]  # as `-m` has it
    np.random.seed()  # noqa: NPY002 - the generator that others share
    status = 0
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        status = 1
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exc()
        else:
            sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
