"""What pyproject.toml cannot say: conf/ travels in the wheel, as lora_clip/conf.

Mapping it there by package-dir does that too, but makes `pip install -e .` install an import hook in place of a path;
Python, started in the folder above a checkout that is called lora_clip, then takes the checkout for the package.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Puts conf/ beside the modules; an editable install finds it where it lies."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            self.copy_tree("conf", str(Path(self.build_lib, "lora_clip", "conf")))


setup(cmdclass={"build_py": BuildWithConf})
