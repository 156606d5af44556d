"""What a training step of each design costs, noted as soon as it is measured."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from monai_vqgen.demo.sizes import Size
from monai_vqgen.errors import root_cause
from monai_vqgen.files import write_json
from tools.designs import Design, design_step
from tools.step_costs import relative_cost

__all__ = ["DesignCosts", "design_costs"]

logger = logging.getLogger(__name__)

COSTS = "step_costs.json"


class DesignCosts(NamedTuple):
    """Costs of a step by the design's folder, in steps of the first design; what was wrong with designs left out."""

    costs: dict[str, float]
    failures: list[str]


def design_costs(designs: Sequence[Design], size: Size, *, folder: Path) -> DesignCosts:
    """Costs of all designs: 1 for the first, measured in turns with it for those not in `step_costs.json` yet."""
    noted = json.loads((folder / COSTS).read_text()) if (folder / COSTS).is_file() else {}
    costs = {
        designs[0].folder: 1.0,
        **{design.folder: noted[design.folder] for design in designs[1:] if design.folder in noted},
    }
    missing = [design for design in designs if design.folder not in costs]
    failures: list[str] = []
    if not missing:
        return DesignCosts(costs, failures)
    reference = design_step(designs[0], size, folder=folder)
    for design in missing:
        try:
            costs[design.folder] = relative_cost(design_step(design, size, folder=folder), reference)
        except Exception as error:  # whatever it is, the other designs go on
            failures.append(f"{design.name}: {root_cause(error)}")
            logger.error("%s", failures[-1])
            continue
        logger.info("A step of %s costs %.2f of the first design's", design.name, costs[design.folder])
        write_json(folder / COSTS, {**noted, **costs})
    return DesignCosts(costs, failures)
