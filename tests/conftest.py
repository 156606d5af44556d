"""What all tests share: strict MONAI, one thread, and where the real scans are."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["MONAI_FAIL_ON_DUPLICATE_CONFIG"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans: MONAI_VQGEN_REAL_DATA, else ../shared/data; skips where there is none (CI fails)."""
    named = os.environ.get("MONAI_VQGEN_REAL_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not (folder / "volumes").is_dir():
        message = f"no real scans at {folder}; set MONAI_VQGEN_REAL_DATA to the folder that holds volumes/"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
