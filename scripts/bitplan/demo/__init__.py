"""The bundled model: its folder, its story generator and its training."""

from bitplan.core.places import workflow_folder

DEMO = workflow_folder() / "demo"
