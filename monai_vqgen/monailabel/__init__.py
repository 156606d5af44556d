"""The MONAI Label app: reconstruction, new slices, completion, anomalies and training behind a viewer.

This folder is the app: `monailabel start_server --app <this folder> --studies <scans>`. It is the only place that
imports monailabel, and does without it until the server runs (`docs/MONAI_LABEL.md`).
"""

from __future__ import annotations
