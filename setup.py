"""What setup.cfg cannot say: configs and tools travel in the wheel, in ``repl_mm/.mim``, as in every mm package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
CARRIED = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Copy ``CARRIED`` into the wheel; an editable installation reads them where they are."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        inside = Path(self.build_lib, 'repl_mm', '.mim')
        shutil.rmtree(inside, ignore_errors=True)  # of an older build
        inside.mkdir(parents=True)
        for name in CARRIED:
            if (HERE / name).is_dir():
                shutil.copytree(HERE / name, inside / name, ignore=shutil.ignore_patterns('__pycache__', '.*'))
            else:
                shutil.copy(HERE / name, inside)


setup(cmdclass={'build_py': BuildWithMim})
