"""A build hook of hatchling: the commands go into the wheel beside the workflow's rules, without the library that lies in their folder."""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommandFiles(BuildHookInterface):
    """Adds scripts/*.py to the files of a wheel."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Map each command to its place in the package."""
        commands = sorted(Path(self.root, "scripts").glob("*.py"))
        build_data["force_include"] |= {str(path): f"bitplan/_workflow/scripts/{path.name}" for path in commands}
