"""What `monailabel start_server` looks for in the folder of an app: a `main.py` that names its app."""

from __future__ import annotations

from monai_vqgen.monailabel.server import MyApp

__all__ = ["MyApp"]
