"""The documentation site builds strictly and offline, its links lead somewhere, and every public name has a page."""

from __future__ import annotations

import base64
import html
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from monai.bundle import scripts

import monai_vqgen

ROOT = Path(__file__).parents[2]
ROOMS = (
    "data",
    "transforms",
    "networks",
    "coding",
    "inferers",
    "metrics",
    "engines",
    "handlers",
    "models",
    "evaluation",
    "errors",
)


class Page(HTMLParser):
    """Links and anchors of a page, and what a browser would load for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.anchors.add(known.get("id") or "")
        if tag == "a" and known.get("href"):
            self.links.append(known["href"])
        if tag in ("script", "img") and known.get("src"):
            self.loaded.append(known["src"])
        if tag == "link" and known.get("rel") in ("stylesheet", "preconnect", "icon") and known.get("href"):
            self.loaded.append(known["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_internal_links_and_anchors_lead_somewhere_and_nothing_comes_from_elsewhere(site):
    pages = {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 20
    for name, page in pages.items():
        if name == "404.html":
            continue  # has absolute addresses, for it is shown anywhere
        for target in page.loaded:
            assert not urlsplit(target).netloc, f"{name} loads {target}"
        for link in page.links:
            parts = urlsplit(urljoin(f"https://here/{name}", link))
            if parts.netloc != "here":
                continue
            path = unquote(parts.path).lstrip("/")
            path = f"{path}index.html" if path == "" or path.endswith("/") else path
            assert (site / path).exists(), f"{name}: {link}"
            if parts.fragment and path in pages:
                assert unquote(parts.fragment) in pages[path].anchors, f"{name}: {link}"


@pytest.mark.slow
def test_the_notebook_is_a_page_with_the_outputs_that_are_saved_in_it(site):
    notebook = json.loads((ROOT / "notebooks" / "evaluate.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    page = (site / "notebook" / "index.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    lines = [line for output in outputs for line in "".join(output.get("text", [])).splitlines()]
    assert len(lines) > 20
    assert all(line in text for line in lines)
    pictures = [output["data"]["image/png"] for output in outputs if "data" in output]
    shown = [
        site / "notebook" / target for target in Page(page).loaded if target.endswith(".png") and "/" not in target
    ]
    assert len(pictures) >= 10
    assert [base64.b64decode("".join(picture)) for picture in pictures] == [path.read_bytes() for path in shown]


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_an_entry(room):
    entries = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api" / f"{room}.md").read_text(), re.MULTILINE)
    names = importlib.import_module(f"monai_vqgen.{room}").__all__
    assert entries == [f"monai_vqgen.{room}.{name}" for name in names]


def test_the_reference_lists_the_names_of_the_package():
    page = (ROOT / "docs" / "api" / "index.md").read_text()
    assert re.findall(r"^- `(\w+)`$", page, re.MULTILINE) == monai_vqgen.__all__


def test_the_readme_is_a_landing_page_that_leads_to_every_page():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    for page in (ROOT / "docs").glob("*.md"):
        reached = f"docs/{page.name}" in readme or f"({page.name})" in (ROOT / "docs" / "index.md").read_text()
        assert reached or page.name in ("index.md", "RELIABILITY.md"), page.name


def test_the_errors_that_are_explained_are_errors_of_the_code():
    source = " ".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in sorted((ROOT / "monai_vqgen").rglob("*.py"))
    )
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| ", page, re.MULTILINE)
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert len(rows) >= 20
    for text in quoted:
        assert text in source, text


def test_the_warning_that_opens_every_command_is_explained():
    page = " ".join((ROOT / "docs" / "troubleshooting.md").read_text().split())
    assert "is passed to Python" in inspect.getsource(scripts)  # MONAI still warns, so the page still has to say why
    assert "Every command starts with MONAI's warning that config files are passed to Python's `eval()`." in page


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_forms_are_yaml_of_the_right_form(path):
    content = yaml.safe_load(path.read_text())
    if path.parent.name == "workflows":
        assert content.keys() >= {"name", "jobs"}
        for job in content["jobs"].values():
            assert job["steps"][0]["uses"].startswith("actions/checkout@")
    elif path.parent.name == "ISSUE_TEMPLATE":
        assert content.keys() == {"name", "description", "body"}
    else:
        assert content["version"] == 2


def test_the_version_is_written_in_one_place_and_repeated_rightly():
    version = monai_vqgen.__version__
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert "attr: monai_vqgen.__version__" in (ROOT / "setup.cfg").read_text()


def test_known_advisories_are_looked_for_in_public_and_what_is_found_is_explained():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    steps = yaml.safe_load(workflow)["jobs"]["audit"]["steps"]
    own, label = (step for step in steps if "pip_audit" in step.get("run", ""))
    assert not own.get("continue-on-error")
    assert label["continue-on-error"]
    told = (ROOT / "SECURITY.md").read_text()
    assert all(
        name in told for name in ("pip-audit", "pydicom >= 3.0.2", "pynetdicom < 3", "MONAI Label's environment")
    )
    extra = (ROOT / "setup.cfg").read_text().partition("\ndicom =")[2].partition("\nmlflow")[0]
    assert "pydicom>=3.0.2" in extra
