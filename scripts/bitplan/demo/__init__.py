"""The bundled model: its folder, its story generator and its training."""

from pathlib import Path

DEMO = Path(__file__).resolve().parents[3] / "demo"
