"""Draws slices with numpy and onnxruntime alone, from the files of `export.json`: no torch, no MONAI, no monai_vqgen.

    python examples/onnx_sampling.py EXPORT slices.npz --num_samples 4 --seed 7 --condition position_mm=65 sex=f

The codes are those that `TrainedModel.sample` draws with this seed and these conditions. Each position costs a pass
over its row, and each row hands on, as caches, what the next ones need of it.

Legend of suffixes: b batch, f condition features, k number of codes, n raster positions, s spatial axes.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray


def gumbel_noise(seed: int, sample: int, *, level: int, num_codes: int, count: int) -> NDArray:
    """Noise `(n, k)` of one sample: a function of its arguments alone, the same as the package's."""
    words = 4 * -(-num_codes // 4)  # Philox gives four at once
    key = np.array([seed, (sample << 16) | level], dtype=np.uint64)
    drawn = np.random.Philox(counter=0, key=key).random_raw(count * words).reshape(count, words)[:, :num_codes]
    uniform = np.maximum((drawn >> np.uint64(11)) * 2.0**-53, 2.0**-54)
    return (-np.log(-np.log(uniform))).astype(np.float32)


def truncated(logits_bk: NDArray, *, temperature: float, top_k: int | None, top_p: float | None) -> NDArray:
    """Logits over the temperature; all but the `top_k` largest, and what lies outside the nucleus `top_p`, are -inf."""
    logits_bk = logits_bk / np.float32(temperature)
    order_bk = np.argsort(-logits_bk, axis=1, kind="stable")
    ordered_bk = np.take_along_axis(logits_bk, order_bk, axis=1)
    ordered_bk[:, top_k or logits_bk.shape[1] :] = -np.inf
    if top_p is not None and top_p < 1:
        weights_bk = np.exp(ordered_bk - ordered_bk[:, :1])
        probability_bk = weights_bk / weights_bk.sum(1, keepdims=True)
        outside_bk = probability_bk.cumsum(1) - probability_bk >= top_p
        outside_bk[:, 0] = False
        ordered_bk[outside_bk] = -np.inf
    np.put_along_axis(logits_bk, order_bk, ordered_bk, axis=1)
    return logits_bk


def encode_condition(encoder: Mapping[str, Any], values: Mapping[str, str]) -> list[float]:
    """Features `(f,)`: numbers scaled to [-1, 1] beside a one, options as one of several; zeros for what is unknown."""
    known = {**encoder["continuous"], **encoder["categorical"]}
    if unknown := values.keys() - known.keys():
        raise SystemExit(f"no condition is named {sorted(unknown)}; there are {sorted(known)}")
    features: list[float] = []
    for name, (low, high) in encoder["continuous"].items():
        given = name in values
        if given and not low <= float(values[name]) <= high:
            raise SystemExit(f"{name}={values[name]} is outside of {low} to {high}, the range trained on")
        scaled = 2 * (float(values[name]) - low) / (high - low) - 1 if given and high > low else 0.0
        features += [scaled, float(given)]
    for name, options in encoder["categorical"].items():
        if name in values and values[name] not in options:
            raise SystemExit(f"{name}={values[name]} is none of {options}")
        features += [float(values.get(name) == option) for option in options]
    return features


def draw_codes(folder: Path, count: int, *, seed: int, values: Mapping[str, str]) -> list[NDArray]:
    """Grids of codes `(b, *s)`, one a level, coarsest first."""
    about = json.loads((folder / "sampling.json").read_text())
    given: dict[str, NDArray] = {}
    if about["condition"] or values:
        encoder = about["condition"] or {"continuous": {}, "categorical": {}}
        given["condition"] = np.array([encode_condition(encoder, values)] * count, dtype=np.float32)
    for level, (grid, num_codes) in enumerate(zip(about["grids"], about["num_codes"], strict=True)):
        prior = onnxruntime.InferenceSession(folder / f"prior_level{level}.onnx", providers=["CPUExecutionProvider"])
        positions, row = int(np.prod(grid)), int(np.prod(grid[1:]))
        noise = [gumbel_noise(seed, i, level=level, num_codes=num_codes, count=positions) for i in range(count)]
        noise_bnk = np.stack(noise)
        codes_bn = np.zeros((count, positions), dtype=np.int64)
        settings = {name: about[name][level] for name in ("temperature", "top_k", "top_p")}
        caches = {name: np.zeros((count, *shape), np.float32) for name, shape in about["caches"][level].items()}
        for n in range(positions):
            inputs = {
                **given,
                **caches,
                "index": np.array([n // row]),
                f"codes_{level}": codes_bn.reshape(count, *grid),
            }
            logits, *following = prior.run(None, inputs)
            logits_bk = logits.reshape(count, num_codes, row)[:, :, n % row]
            codes_bn[:, n] = (truncated(logits_bk, **settings) + noise_bnk[:, n]).argmax(1)
            if n % row == row - 1:
                caches = dict(zip(caches, following, strict=True))
        given[f"codes_{level}"] = codes_bn.reshape(count, *grid)
    return [given[f"codes_{level}"] for level in range(len(about["grids"]))]


def main() -> None:
    """Read the command line, draw, decode, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what export.json has written, with priors")
    parser.add_argument("output", type=Path, help="a .npz file: images (b, 1, h, w) in [0, 1], codes_0, ...")
    parser.add_argument("--num_samples", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--condition", nargs="*", default=[], help="NAME=VALUE; what is not given counts as unknown")
    options = parser.parse_args()
    values = dict(pair.split("=", 1) for pair in options.condition)
    codes = draw_codes(options.folder, options.num_samples, seed=options.seed, values=values)
    named = {f"codes_{level}": grid_bs for level, grid_bs in enumerate(codes)}
    decoder = onnxruntime.InferenceSession(options.folder / "decoder.onnx", providers=["CPUExecutionProvider"])
    images = decoder.run(["pred"], named)[0].clip(0, 1)
    size = json.loads((options.folder / "sampling.json").read_text())["image_size"]
    images = images[(..., *(slice(length) for length in size))]
    np.savez(options.output, images=images, **named)
    print(f"{options.output}: {len(images)} synthetic images of {' x '.join(map(str, images.shape[2:]))} pixels")


if __name__ == "__main__":
    main()
