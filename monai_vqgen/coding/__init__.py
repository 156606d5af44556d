"""Codes as bytes: the container `.vqg`, expected frequencies, and the codec that joins them."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.coding.codec import CodeCodec as CodeCodec, DecodedStream as DecodedStream
    from monai_vqgen.coding.container import Header as Header, unpack_stream as unpack_stream
else:
    __getattr__, __dir__, __all__ = attach(__name__)
