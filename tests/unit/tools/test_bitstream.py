"""The figures of compressed slices are those of the streams, and other codecs are asked at their rate."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from factories import POSITIONS, tiny_model, write_slices

from monai_vqgen.coding.codec import entropy_coder
from monai_vqgen.coding.exact import pack_exact
from monai_vqgen.transforms import LoadSlice
from tools.bitstream import measure_bitstream


def test_rate_and_exactness_are_those_of_the_streams(tmp_path):
    model = tiny_model(condition=POSITIONS)
    model.save(tmp_path / "weights")
    write_slices(tmp_path / "slices", counts={"training": 2, "validation": 2, "test": 3})
    figures = measure_bitstream(tmp_path / "slices", tmp_path / "out", model=str(tmp_path / "weights"), subjects=2)
    assert json.loads((tmp_path / "out/bitstream.json").read_text()) == json.loads(json.dumps(figures))
    images = [LoadSlice()(tmp_path / f"slices/images/test{i}.nii.gz").as_tensor()[None] for i in (0, 1)]
    streams = [model.compress(image, position_mm=40.0 + i) for i, image in enumerate(images)]
    assert (figures["slices"], figures["model"]["exact_slices"], figures["anywhere"]["exact_slices"]) == (2, 2, 2)
    assert figures["model"]["bytes"] == sum(map(len, streams))
    assert figures["model"]["bits_per_pixel"] == pytest.approx(8 * sum(map(len, streams)) / (2 * 256))
    nats = [
        float(sum(level.double().sum() for level in model.log_prob(model.encode(image), position_mm=40.0 + i)))
        for i, image in enumerate(images)
    ]
    assert figures["cross_entropy_bits_per_pixel"] == pytest.approx(-sum(nats) / math.log(2) / (2 * 256))
    decoded = torch.cat([model.decompress(stream) for stream in streams])
    squared = (decoded - torch.cat(images)).square().flatten(1).mean(1)
    assert figures["quality"]["psnr"] == pytest.approx(float((-10 * squared.log10()).mean()), rel=1e-4)
    assert {"JPEG", "WebP", "AVIF", "JPEG 2000"} <= figures["codecs"].keys() | figures["codecs"]["skipped"].keys()
    exact = figures["lossless"]
    stacks = [np.rint(image[:, 0].numpy() * 255).astype(np.uint8) for image in images]
    sizes = [len(pack_exact(stack, entropy_coder())) for stack in stacks]
    assert exact["exact"]
    assert exact["bits_per_pixel"]["model"] == pytest.approx(8 * (sum(sizes) + sum(map(len, streams))) / (2 * 256))
    assert exact["others"]["PNG"] > 0
    assert "codecs" not in measure_bitstream(
        tmp_path / "slices", tmp_path / "bare", model=str(tmp_path / "weights"), codecs=False
    )
