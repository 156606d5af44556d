"""The tests with the versions that setup.cfg allows: `pip install nox`, then `nox --list`, and `nox` for all of them.

Words after `--` go to pytest in place of the quick tests: `nox -s "versions(numpy1)" -- tests/unit/networks`.
"""

import nox

PYTHONS = ["3.10", "3.11", "3.12"]
VERSIONS = {
    "oldest": ["torch==2.10.*", "monai==1.6.1", "numpy==1.26.*"],
    "numpy1": ["--constraint", "constraints.txt", "numpy==1.26.*"],
    "newest": ["--upgrade", "torch", "monai", "numpy"],
    "monai_next": ["--constraint", "constraints.txt"],
}
"""By name, what pip takes beside the package; no name but the last asks for a version that is not released."""
QUICK = ["-m", "not slow", "-n", "2", "--dist", "loadfile"]

nox.options.reuse_existing_virtualenvs = True


def run_tests(session: nox.Session, *wanted: str) -> None:
    """Install the package as it is here with what is wanted, and run the tests."""
    session.install("--editable", ".[dev]", *wanted)
    if "monai_next" in session.name:  # MONAI's development wheels have a name of their own
        session.run("python", "-m", "pip", "uninstall", "--yes", "monai")
        session.install("--no-deps", "--pre", "--force-reinstall", "monai-weekly")  # both own the same folder
    session.run(
        "python", "-m", "pytest", *(session.posargs or QUICK), env={"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    )


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Each Python, with the versions that `make` and CI hold fixed."""
    run_tests(session, "--constraint", "constraints.txt")


@nox.session(python="3.11")
@nox.parametrize("name", list(VERSIONS), ids=list(VERSIONS))
def versions(session: nox.Session, name: str) -> None:
    """Each set of versions, with one Python."""
    run_tests(session, *VERSIONS[name])
