"""The switch that records the golden values anew, and which arithmetic computes: equal bits need the same."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="record the golden values instead of comparing them")


@pytest.fixture(scope="session")
def machine() -> dict[str, str | int]:
    """The processor's capability, the versions, the threads, and a digest of arithmetic that differs among processors.

    Two processors of one capability may still add in another order (MKL and oneDNN choose their kernels by vendor and
    model), hence the digest: of a convolution, a matrix product, a softmax and numpy's elementary functions.
    """
    random = np.random.default_rng(0)
    image, kernel, matrix = (
        torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
        for shape in ((2, 16, 33, 31), (24, 16, 3, 3), (257, 129))
    )
    results: list[Tensor] = [
        torch.nn.functional.conv2d(image, kernel, padding=1),
        torch.nn.functional.conv_transpose2d(image, kernel.transpose(0, 1), stride=2),
        matrix.T @ matrix,
        matrix.softmax(1),
        matrix.tanh(),
        torch.from_numpy(np.sin(matrix.numpy())),
        torch.from_numpy(np.exp(matrix.numpy())),
    ]
    digest = hashlib.sha256(b"".join(result.contiguous().numpy().tobytes() for result in results)).hexdigest()
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "arithmetic": digest[:16],
    }
