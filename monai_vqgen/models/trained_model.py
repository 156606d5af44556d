"""A trained model: an autoencoder, its priors, and the record of how they are used.

Shape legend: n samples, b batch, c channels, s spatial axes (2 or 3).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from monai_vqgen.errors import CheckpointError, InputError, OutputExistsError
from monai_vqgen.models.loading import LoadedPriors, load_autoencoder, load_priors, weights_file
from monai_vqgen.models.record import ModelRecord, SamplingSettings, prior_name
from monai_vqgen.models.samples import (
    Samples,
    check_count,
    check_names,
    code_masks,
    draw_conditions,
    encode_conditions,
    sample_affines,
)
from monai_vqgen.transforms.tensors import as_numbers
from monai_vqgen.weights import fingerprint

if TYPE_CHECKING:
    from monai_vqgen.anomaly import AnomalyMaps, HealthySlices

__all__ = ["TrainedModel"]

Self = TypeVar("Self", bound="TrainedModel")
T = TypeVar("T")
_FARTHEST = (-1.0, 2.0)  # resampling overshoots [0, 1] a little; 0 to 255, z-scores and NaN are mistakes


class TrainedModel:
    """What a folder of weights holds, ready to use.

    ::

        images --encode--> codes --decode--> images         scan --reconstruct--> scan
        images --denoise--> images
        conditions --sample--> images                       images, mask --complete--> images
        images --nll_maps, anomaly_map--> maps              images --restore--> images
        codes --log_prob--> nats                            images --compress--> bytes --decompress--> images

    Nothing that a model does changes it: encoding, sampling and scoring are pure, and random draws depend on the seed
    and the sample's index alone.

    Args:
        autoencoder: trained; keeps the contract of `HierarchicalVQVAE`.
        priors: one a level with what their records say; without them a model encodes, decodes and reconstructs.
        record: what is known of the weights.

    Attributes:
        batch_size: images or slices at once, 16; changes memory and time only.

    Raises:
        InputError, CheckpointError, CodesMismatchError: see the methods.

    Examples:
        >>> model = TrainedModel.from_bundle()  # the weights that come with the package
        >>> model.sample(2, position_mm=65, sex="f", age=30, seed=7).images.shape  # doctest: +SKIP
        torch.Size([2, 1, 128, 128])
    """

    def __init__(
        self, autoencoder: Any, priors: LoadedPriors | None = None, *, record: ModelRecord | None = None
    ) -> None:
        priors, record = priors or LoadedPriors(), record or ModelRecord()
        self.autoencoder, self.priors, self.condition = autoencoder.eval(), priors.networks, priors.condition
        self.settings: SamplingSettings = priors.settings
        known = {name: getattr(priors, name) for name in ("image_size", "plane", "pixel_mm") if getattr(priors, name)}
        self.record = record._replace(**{"fingerprint": record.fingerprint or fingerprint(autoencoder), **known})
        self.grids = priors.grids or (tuple(autoencoder.grids(record.image_size)) if record.image_size else ())
        self.batch_size = 16

    @classmethod
    def from_bundle(
        cls: type[Self],
        path: str | os.PathLike[str] | None = None,
        *,
        priors_dir: str | os.PathLike[str] | None = None,
        with_priors: bool = True,
        device: torch.device | str = "cpu",
        network: Any | None = None,
        priors: Sequence[Any] | None = None,
    ) -> Self:
        """Load a trained model.

        Args:
            path: a bundle's folder or zip, a run's output folder, or a `model.pt`; "faithful" (as None), "generative"
                or "denoising" for weights that come with the package: they reconstruct closely, draw images, denoise.
            priors_dir: folder of the priors where it is another one.
            with_priors: whether to load priors; where there are none of any level, a model without priors comes back.
            device: where the networks go.
            network: autoencoder for weights without a recorded architecture; see `save`.
            priors: likewise, one a level, coarsest first.

        Raises:
            InputError: no weights are there.
            CheckpointError: a file is damaged, of a newer format or another architecture, or a level is missing.
            CodesMismatchError: the priors were trained on the codes of another autoencoder.
        """
        with weights_file(None if path is None else os.fspath(path)) as weights:
            autoencoder, record = load_autoencoder(weights, network)
            home = weights.parent if priors_dir is None else Path(priors_dir)
            wanted = with_priors and (priors_dir is not None or any(home.glob(f"{prior_name(0)[:-1]}*")))
            loaded = load_priors(home, autoencoder, priors) if wanted else LoadedPriors()
        return cls(autoencoder, loaded, record=record).to(device)

    @property
    def plane(self) -> str:
        """What the model is shown: the plane of its slices, axial where that is not known, or "volume"."""
        from monai_vqgen.transforms.geometry import VOLUME

        return VOLUME if self.autoencoder.spatial_dims == 3 else self.record.plane or "axial"

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        device: torch.device = next(self.autoencoder.parameters()).device
        return device

    def to(self: Self, device: torch.device | str) -> Self:
        """Move the networks; returns the model."""
        for module in (self.autoencoder, *self.priors):
            module.to(device)
        return self

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Integer grids `(b, *grid)` a level, coarsest first, of images `(b, c, *s)` in [0, 1].

        Raises:
            InputError: images of another shape, not finite, or of another range such as 0 to 255.
        """
        images_bcs = self._checked_images(images)
        parts = self._in_batches(lambda part: self._encode_batch(images_bcs[part]), len(images_bcs))
        return tuple(torch.cat(level) for level in zip(*parts, strict=True))

    def _in_batches(self, work: Callable[[slice], T], count: int) -> list[T]:
        from monai_vqgen.inferers.draws import in_memory

        batches = [slice(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]
        return [result for part in batches for result in in_memory(work, part)]

    def _checked_images(self, images: Any) -> Tensor:
        images_bcs = as_numbers(images, "images")
        dims, channels = self.autoencoder.spatial_dims, self.autoencoder.in_channels
        if images_bcs.ndim != dims + 2 or images_bcs.shape[1] != channels or not len(images_bcs):
            axes = "h, w" if dims == 2 else "x, y, z"
            raise InputError(f"images of shape {tuple(images_bcs.shape)}: give (b, {channels}, {axes})")
        low, high = images_bcs.aminmax()
        if not low >= _FARTHEST[0] or not high <= _FARTHEST[1]:
            raise InputError(f"images between {low:g} and {high:g}: scale them to [0, 1], as the model was trained")
        return images_bcs

    @torch.inference_mode()
    def _encode_batch(self, images_bcs: Tensor) -> tuple[Tensor, ...]:
        codes: tuple[Tensor, ...] = self.autoencoder.encode(images_bcs.to(self.device, torch.float32))
        return codes

    def decode(self, codes: Sequence[Tensor], image_size: Sequence[int] | None = None) -> Tensor:
        """Images `(b, c, *s)` in [0, 1] of grids of codes, coarsest first, on the model's device.

        Args:
            codes: integers `(b, *grid)` a level.
            image_size: of the images that were encoded, which codes do not tell where the stride does not divide it:
                images of 33 x 47 pixels come back as 40 x 48 without it, and as 33 x 47 with it. None takes the
                recorded size where the codes are those of images of that size, else the grid's times the stride.

        Raises:
            InputError: no list of integer grids, or a size of other axes.
            CodesMismatchError: codes of another autoencoder, or of images of another size.
        """
        _check_grids(codes)
        if image_size is None and self.grids and tuple(codes[0].shape[1:]) == self.grids[0]:
            image_size = self.record.image_size or None
        work = lambda part: self._decode_batch([grid[part] for grid in codes], image_size)  # noqa: E731
        return torch.cat(self._in_batches(work, len(codes[0])))

    @torch.inference_mode()
    def _decode_batch(self, codes: Sequence[Tensor], image_size: Sequence[int] | None) -> Tensor:
        images_bcs: Tensor = self.autoencoder.decode([grid.to(self.device) for grid in codes], image_size)
        return images_bcs.clamp(0, 1)

    def denoise(self, images: Tensor, *, shifts: int = 4) -> Tensor:
        """Images `(b, c, *s)` in [0, 1] without most of their noise, on the model's device; see `CycleSpinning`.

        Use the weights "denoising", which were trained for it; others keep more noise or lose more detail. A scan of
        little noise loses by it. For scans there is `reconstruct(scan, shifts=4)`.

        Args:
            images: float `(b, c, *s)`, clean ones in [0, 1]; noise may add a little.
            shifts: reconstructions of which the mean is taken, from 1 to the coarsest stride to the power of the axes;
                more take longer and give a little less error.

        Raises:
            InputError: images of another shape or range, not finite; a number of shifts out of range.

        Examples:
            >>> TrainedModel.from_bundle("denoising").denoise(torch.rand(1, 1, 128, 128)).shape
            torch.Size([1, 1, 128, 128])
        """
        from monai_vqgen.models.denoising import CycleSpinning

        images_bcs, spinning = self._checked_images(images), CycleSpinning(self.autoencoder, shifts)
        return torch.cat(self._in_batches(lambda part: self._spin(spinning, images_bcs[part]), len(images_bcs)))

    @torch.inference_mode()
    def _spin(self, spinning: Callable[[Tensor], Tensor], images_bcs: Tensor) -> Tensor:
        return spinning(images_bcs.to(self.device, torch.float32))

    def reconstruct(
        self, volume: Any, *, plane: str | None = None, pixel_mm: float | None = None, shifts: int = 1
    ) -> Any:
        """A scan through the autoencoder, slice by slice or as one volume, in its own geometry and units.

        Args:
            volume: path of a NIfTI file or of a folder with one DICOM series; or a MetaTensor or array `(X, Y, Z)`,
                `(1, X, Y, Z)`; an array is taken as RAS+ with voxels of 1 mm.
            plane: of the slices; by default the one the model was trained on. A model of volumes takes none.
            pixel_mm: pixel or voxel size to resample to; by default the model's, or 1.736 mm where its record does not
                tell.
            shifts: reconstructions of which the mean is taken; more than 1 denoise, as `denoise` does.

        Returns:
            A MetaTensor with the input's shape, affine and units.

        Raises:
            InputError: an input of other dimensions, a plane for a model of volumes, or shifts out of range.
            ScanError: a file that cannot be read, or a volume without contrast.
        """
        from monai_vqgen.models.denoising import CycleSpinning
        from monai_vqgen.models.scans import BUNDLE_PIXEL_MM, as_volume

        spinning, image = CycleSpinning(self.autoencoder, shifts), as_volume(volume)
        pixel_mm = pixel_mm or self.record.pixel_mm or BUNDLE_PIXEL_MM
        inferer = self.reconstruction_inferer(plane=plane, pixel_mm=pixel_mm)
        shown = image[None] if image.ndim == 4 else image[None, None]
        result = inferer(shown.to(self.device), spinning)[0]
        return (result if image.ndim == 4 else result[0]).cpu()

    def reconstruction_inferer(self, *, plane: str | None = None, pixel_mm: float | None = None, **options: Any) -> Any:
        """The inferer behind `reconstruct`, with the recorded plane, pixel size and intensity window.

        Args:
            plane: another plane; a model of volumes has none.
            pixel_mm: another pixel size in mm.
            options: further arguments of `VolumeReconstructionInferer`.
        """
        from monai_vqgen.inferers.reconstruction import VolumeReconstructionInferer

        if plane not in (None, self.plane) and self.autoencoder.spatial_dims == 3:
            raise InputError(f"this model is one of volumes, and plane is {plane!r}: leave it out")
        if (channels := self.autoencoder.in_channels) > 1:
            raise InputError(f"this model is one of {channels} channels, and a scan has one: use encode and decode")
        lower, upper = self.record.percentiles
        window = {"lower": lower, "upper": upper, "window": self.record.window, "batch_size": self.batch_size}
        return VolumeReconstructionInferer(
            plane or self.plane, pixel_mm=pixel_mm or self.record.pixel_mm, **{**window, **options}
        )

    def sampler(self, *, temperature: Any = None, top_k: Any = None, top_p: Any = None) -> Any:
        """The `AncestralSampler` of the priors with the recorded settings, or what is given instead.

        Raises:
            CheckpointError: the model has no priors.
        """
        from monai_vqgen.inferers.ancestral import AncestralSampler

        if not self.priors:
            raise CheckpointError(
                "this model has no priors, so it can neither draw nor score codes: train them with train_prior.json, "
                "or give their folder as priors_dir"
            )
        settings = self.settings.replaced(temperature=temperature, top_k=top_k, top_p=top_p)
        return AncestralSampler(self.priors, **settings._asdict(), batch_size=self.batch_size)

    def sample(
        self,
        num_samples: int = 1,
        *,
        seed: int = 0,
        first_sample: int = 0,
        temperature: float | Sequence[float] | None = None,
        top_k: int | Sequence[int | None] | None = None,
        top_p: float | Sequence[float | None] | None = None,
        conditions: Sequence[Mapping[str, Any]] | None = None,
        **condition: Any,
    ) -> Samples:
        """Draw synthetic images.

        Args:
            num_samples: how many.
            seed: equal seeds give equal samples: bit for bit on one machine with the same batch size and threads,
                otherwise up to near-ties of float32.
            first_sample: number of the first; samples 4 to 7 are the same drawn alone or after 0 to 3.
            temperature: a number or one a level, coarsest first; by default the recorded one, as with the next two.
            top_k: draw from the k likeliest codes only.
            top_p: draw from the likeliest codes that hold this much probability.
            conditions: values by name of each sample, in place of the next; a name that is left out is unknown.
            condition: values by name for all samples (`position_mm=65, sex="f"`); a name that is left out is drawn
                from the trained range.

        Raises:
            InputError: a value out of its range.
            CheckpointError: the model has no priors.
        """
        from monai_vqgen.engines.seeding import check_seed
        from monai_vqgen.inferers.draws import finished_time, one_thread

        check_seed(seed)
        sampler = self.sampler(temperature=temperature, top_k=top_k, top_p=top_p)
        check_count(num_samples, first_sample=first_sample)
        if conditions is None:
            drawn = draw_conditions(self.condition, first_sample + num_samples, seed=seed, given=condition)
            conditions = drawn[first_sample:]
        elif condition or len(conditions) != num_samples:
            raise InputError(f"{len(conditions)} conditions for {num_samples} samples: give one a sample, and no other")
        for row in conditions:
            check_names(self.condition, row)
        features = None if self.condition is None else self.condition.encode(conditions).to(self.device)
        start = finished_time(self.device)
        with one_thread():
            codes = sampler.sample(
                self.grids, num_samples=num_samples, seed=seed, first_sample=first_sample, condition=features
            )
        seconds = finished_time(self.device) - start
        images = self.decode(codes).cpu()
        settings = self.settings.replaced(temperature=temperature, top_k=top_k, top_p=top_p)
        rows = [dict(row) if self.condition is None else self.condition.read(row) for row in conditions]
        return Samples(images, codes, rows, self._affines(rows, images.shape[2:]), seed, settings, seconds)

    def _affines(self, conditions: Sequence[Mapping[str, Any]], image_size: Sequence[int]) -> Tensor | None:
        if self.record.pixel_mm is None or (self.record.plane is None and len(image_size) == 2):
            return None
        positions = [row.get("position_mm") for row in conditions]
        return sample_affines(self.plane, image_size, self.record.pixel_mm, positions)

    @property
    def covered_size(self) -> tuple[int, ...]:
        """Pixels that the grids cover, padding included; empty where the image size is not known."""
        return tuple(size * self.autoencoder.strides[-1] for size in (self.grids[-1] if self.grids else ()))

    def complete(
        self,
        images: Tensor,
        mask: Tensor,
        *,
        seed: int = 0,
        temperature: float | Sequence[float] | None = None,
        top_k: int | Sequence[int | None] | None = None,
        top_p: float | Sequence[float | None] | None = None,
        **condition: Any,
    ) -> Tensor:
        """Draw what lies under a mask anew, given the codes before it in raster order (`AncestralSampler.complete`).

        Args:
            images: `(b, c, *s)` in [0, 1]; what lies under the mask is hidden before encoding.
            mask: booleans `(*s)`, `(b, *s)` or `(b, 1, *s)`, true where pixels are to be drawn.
            seed: of the draw.
            temperature: as in `sample`, with the next two.
            top_k: draw from the k likeliest codes only.
            top_p: draw from the likeliest codes that hold this much probability.
            condition: values by name, one for all images or one each; a name that is left out counts as unknown.

        Returns:
            Images like `images`; pixels outside the mask as they were.

        Raises:
            InputError: a mask of another size or of no pixel, images of another size than the priors were trained on.
            CheckpointError: the model has no priors.
        """
        sampler = self.sampler(temperature=temperature, top_k=top_k, top_p=top_p)
        images = as_numbers(images, "images")
        mask_bs = self._checked_mask(images, mask)
        hidden = mask_bs[:, None]
        codes = self.encode(torch.where(hidden, 0.0, images.cpu()))
        masks = code_masks(mask_bs, self.grids, image_size=self.covered_size)
        features = encode_conditions(self.condition, len(images), condition)
        filled = sampler.complete(codes, masks, seed=seed, condition=features)
        return torch.where(hidden, self.decode(filled).cpu(), images.cpu())

    def _checked_mask(self, images: Tensor, mask: Tensor) -> Tensor:
        """The mask `(b, *s)` on the CPU."""
        size = tuple(images.shape[2:])
        if images.ndim != self.autoencoder.spatial_dims + 2 or tuple(self.autoencoder.grids(size)) != self.grids:
            known = self.record.image_size or f"grids {list(self.grids)}"
            raise InputError(f"images of shape {tuple(images.shape)}: the priors were trained on images of {known}")
        mask = as_numbers(mask, "the mask")
        if mask.ndim == images.ndim and mask.shape[1] == 1:
            mask = mask[:, 0]
        if tuple(mask.shape) not in (size, (1, *size), (len(images), *size)):
            raise InputError(
                f"the mask has shape {tuple(mask.shape)}, the images {tuple(images.shape)}: give one value a pixel"
            )
        if not mask.any():
            raise InputError("the mask marks no pixel: there is nothing to complete")
        return mask.bool().cpu().expand(len(images), *size)

    def log_prob(self, codes: Sequence[Tensor], **condition: Any) -> tuple[Tensor, ...]:
        """Log-probability in nats, float32 `(b,)` a level, of grids of codes under the priors as trained.

        Args:
            codes: integers `(b, *grid)` a level, coarsest first.
            condition: values by name, one for all images or one each; a name that is left out counts as unknown.

        Raises:
            InputError: codes or conditions that do not fit.
            CheckpointError: the model has no priors.
        """
        _check_grids(codes)
        features = encode_conditions(self.condition, len(codes[0]), condition)
        result: tuple[Tensor, ...] = self.sampler().log_prob(codes, condition=features)
        return result

    def log_prob_maps(self, codes: Sequence[Tensor], **condition: Any) -> tuple[Tensor, ...]:
        """The same a position: nats `(b, *grid)` a level, which sum to `log_prob`; where a slice is unlikely.

        Args and errors as of `log_prob`.
        """
        _check_grids(codes)
        features = encode_conditions(self.condition, len(codes[0]), condition)
        result: tuple[Tensor, ...] = self.sampler().log_prob_maps(codes, condition=features)
        return result

    def nll_maps(self, images: Tensor, *, mirrored: bool = True, **condition: Any) -> tuple[Tensor, ...]:
        """Bits of each position, `(b, *s)` a level, over the pixels that it covers (`monai_vqgen.anomaly.nll_maps`).

        Args:
            images: `(b, c, *s)` in [0, 1].
            mirrored: whether to take the mean with the mirror image.
            condition: values by name, one for all images or one each; a name that is left out counts as unknown.

        Raises:
            InputError: images or conditions that do not fit.
            CheckpointError: the model has no priors.
        """
        from monai_vqgen.anomaly import nll_maps

        features = encode_conditions(self.condition, len(images), condition)
        return nll_maps(self, images, condition=features, mirrored=mirrored)

    def restore(
        self,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        quantile: float = 0.95,
        draws: int = 3,
        seed: int = 0,
        **condition: Any,
    ) -> Tensor:
        """Draw the unlikely codes anew, or those under a mask (`monai_vqgen.anomaly.restore`).

        Args:
            images: `(b, c, *s)` in [0, 1].
            mask: booleans as of `complete`, but here what it hides is still looked at; by default the codes of more
                bits than `quantile` of the slice's.
            quantile: in [0, 1).
            draws: restorations of each image.
            seed: of the draws.
            condition: values by name, one for all images or one each; a name that is left out counts as unknown.

        Returns:
            Reconstructions `(b, draws, c, *s)` in [0, 1], on the CPU.

        Raises:
            InputError: a mask of another size or of no pixel, or another argument that does not fit.
            CheckpointError: the model has no priors.
        """
        from monai_vqgen.anomaly import restore, unlikely_codes
        from monai_vqgen.anomaly.maps import check_images

        self.sampler()
        images = check_images(self, images)
        features = encode_conditions(self.condition, len(images), condition)
        codes = self.encode(images)
        if mask is None:
            masks = unlikely_codes(self, codes, quantile=quantile, condition=features)
        else:
            masks = code_masks(self._checked_mask(images, mask), self.grids, image_size=self.covered_size)
        size = tuple(images.shape[2:])
        return restore(self, codes, masks, image_size=size, draws=draws, seed=seed, condition=features)

    def anomaly_map(
        self, images: Tensor, healthy: HealthySlices, *, position_mm: Sequence[float], seed: int = 0, **condition: Any
    ) -> AnomalyMaps:
        """How far slices are from healthy ones at their positions (`monai_vqgen.anomaly.HealthySlices`).

        Args:
            images: `(b, 1, h, w)` in [0, 1].
            healthy: statistics that were made with this model.
            position_mm: of each slice, as extracted.
            seed: of restorations, where the statistics have them.
            condition: further values by name. Values outside the trained range are moved into it; the result says so.

        Raises:
            InputError: images, positions or statistics that do not fit, an unknown name.
            CheckpointError: the model has no priors, or the statistics are of other weights.
        """
        from monai_vqgen.anomaly.healthy import score_slices

        check_names(self.condition, condition)
        return score_slices(self, images, healthy, positions_mm=position_mm, seed=seed, condition=condition)

    def compress(
        self,
        images: Tensor,
        *,
        mode: str | None = None,
        chunk_size: int | None = None,
        lossless: bool = False,
        **condition: Any,
    ) -> bytes:
        """Images as the bytes of their codes, which the priors make few; `decompress` gives what `decode` would give.

        Args:
            images: `(b, c, *s)` in [0, 1]; for scans see `compress_scan`.
            mode: "model" (default where there are priors): the priors' probabilities, the fewest bytes. "anywhere":
                counts in whole numbers, which decode on any machine, in more bytes. The stream says which.
            chunk_size: images coded together, at most 1,024; by default 32 in mode "model", 256 in mode "anywhere".
            lossless: also keep what the codes lose, so that `decompress` gives these very images, bit for bit and on
                any machine; they have at most 65,536 different values, as images of 8 or 16 bits do.
            condition: values by name, one for all images or one each; a name that is left out counts as unknown.

        Raises:
            InputError: images or conditions that do not fit, or the package `constriction` is missing.
            CheckpointError: mode "model" without priors.
        """
        from monai_vqgen.models.streams import compress_images

        options: dict[str, Any] = {"mode": mode, "chunk_size": chunk_size, "lossless": lossless}
        return compress_images(self, images, condition=condition, **options)

    def decompress(self, stream: bytes, *, lossy: bool = False) -> Tensor:
        """The images `(b, c, *s)` in [0, 1], on the CPU, of a stream; of a scan's, its slices.

        Args:
            stream: of `compress` or `compress_scan`.
            lossy: the reconstructions also where the stream keeps the images themselves.

        Raises:
            StreamError: it is damaged, of other weights or a newer format, or does not decode on this machine.
        """
        from monai_vqgen.models.streams import decompress_images

        return decompress_images(self, stream, lossy=lossy)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write weights and records, from which `from_bundle` loads the same model.

        Raises:
            OutputExistsError: the folder holds a model's weights or records, and `overwrite` is false.
        """
        from monai_vqgen.models.saving import saved_files, write_model

        path = Path(folder)
        if (earlier := saved_files(path)) and not overwrite:
            raise OutputExistsError(f"{path} holds {', '.join(earlier)}: give another folder, or overwrite=True")
        return write_model(self, path)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | None = None,
        cache_dir: str | None = None,
        with_priors: bool = True,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load a model from the Hugging Face Hub (`pip install 'monai-vqgen[hub]'`), or from a folder.

        Only records and weights are downloaded, once; no code of a repository runs. A folder is read as by
        `from_bundle`, and so is a repository that is a bundle: its `models/` is loaded.

        Args:
            name_or_folder: `owner/name`, or a folder that is there.
            revision: a branch, tag or commit of the repository.
            subfolder: of the repository or folder, such as `models/generative` of the bundle.
            token: of the hub, where the one of `hf auth login` is not to be used.
            cache_dir: another place for the downloads than the hub's cache.
            with_priors: as in `from_bundle`.
            device: where the networks go.

        Raises:
            InputError: neither a folder nor a repository's name; no weights in the folder; no huggingface_hub.
            DownloadError: the repository is unknown, or cannot be reached and is not in the cache.
            CheckpointError: it is no model of this package, or a file is damaged.
            CodesMismatchError: the priors were trained on the codes of another autoencoder.
        """
        from monai_vqgen.models.hub import fetch

        folder = Path(name_or_folder, subfolder)
        if not Path(name_or_folder).is_dir():
            name = os.fspath(name_or_folder)
            folder = fetch(name, revision=revision, subfolder=subfolder, token=token, cache=cache_dir)
        return cls.from_bundle(folder, with_priors=with_priors, device=device)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, overwrite: bool = False, datasets: Sequence[str] = ()
    ) -> Path:
        """Write a repository for the hub: `.safetensors` files, `config.json`, and a card unless there is one.

        `from_pretrained` and `from_bundle` load the same model from the folder.

        Args:
            folder: of the repository.
            overwrite: replace a model's files that are there; a `README.md` stays.
            datasets: names for the card.

        Raises:
            OutputExistsError: the folder holds a model's files or a `config.json`, and `overwrite` is false.
        """
        from monai_vqgen.models.hub import model_card
        from monai_vqgen.models.record import CONFIG
        from monai_vqgen.models.saving import saved_files, write_pretrained

        path = Path(folder)
        earlier = [*saved_files(path), *([CONFIG] if (path / CONFIG).exists() else [])]
        if earlier and not overwrite:
            raise OutputExistsError(f"{path} holds {', '.join(earlier)}: give another folder, or overwrite=True")
        return write_pretrained(self, path, model_card(self, datasets=datasets))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str = "Upload a model of monai_vqgen",
        datasets: Sequence[str] = (),
    ) -> str:
        """Commit what `save_pretrained` writes to a repository of the hub, which is created where it is missing.

        Args:
            repo_id: `owner/name`.
            private: whether a new repository is; None for the owner's default.
            revision: the branch.
            token: of the hub, where the one of `hf auth login` is not to be used.
            commit_message: in the repository's history.
            datasets: names for the card; a card that the repository has stays.

        Returns:
            The address of the commit.

        Raises:
            InputError: no name of a repository; no huggingface_hub (`pip install 'monai-vqgen[hub]'`).
            DownloadError: the hub refuses, or cannot be reached.
        """
        from monai_vqgen.models.hub import model_card, push
        from monai_vqgen.models.saving import write_pretrained

        card = model_card(self, repository=repo_id, datasets=datasets)
        return push(
            lambda folder: write_pretrained(self, folder, card),
            repo_id,
            private=private,
            revision=revision,
            token=token,
            message=commit_message,
        )

    def __repr__(self) -> str:
        from monai_vqgen.models.saving import describe

        return describe(self)


def _check_grids(codes: Any) -> None:
    grids = codes if isinstance(codes, list | tuple) else ()
    whole = [isinstance(g, Tensor) and not (g.is_floating_point() or g.is_complex()) for g in grids]
    if not whole or not all(whole) or any(g.dtype == torch.bool for g in grids):
        raise InputError("codes must be a sequence of integer grids (b, *grid), one a level, coarsest first")
