"""Where a slice is unlikely: bits a position, restorations, and scores against healthy slices."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.anomaly.healthy import AnomalyMaps as AnomalyMaps, HealthySlices as HealthySlices
    from monai_vqgen.anomaly.maps import nll_maps as nll_maps, restore as restore, unlikely_codes as unlikely_codes
    from monai_vqgen.anomaly.signals import Signals as Signals, anomaly_signals as anomaly_signals
else:
    __getattr__, __dir__, __all__ = attach(__name__)
