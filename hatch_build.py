"""Refuses to build a package that would lack the folders behind its links."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LINKS = ("decoding", "eval")


class LinkCheck(BuildHookInterface):  # type: ignore[type-arg]
    """damro/decoding and damro/eval are relative links; git on Windows may write them as small text files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Ends the build with one sentence if a link is none."""
        missing = [name for name in LINKS if not (Path(self.root) / "damro" / name / "__init__.py").is_file()]
        if missing:
            names = " and ".join(f"damro/{name}" for name in missing)
            self.app.abort(
                f"{names} must be a symbolic link to the folder of that name at the top, which git did not make here: "
                "run 'git config core.symlinks true' and 'git checkout -- damro' (on Windows in developer mode), or "
                "build from a source archive"
            )
