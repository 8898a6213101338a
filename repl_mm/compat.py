"""What mmengine has to be told so that ``PACKAGE::PATH`` names work: in OneDL's stack, and for our own configs."""

from importlib.metadata import PackageNotFoundError, distribution

from mmengine.config.utils import MODULE2PACKAGE

from .registry import PACKAGES


def know_packages() -> None:
    """Complete mmengine's table of packages whose configs may be named; called when ``repl_mm`` is imported.

    The table leads from the name in a config to a distribution, ``'mmseg'`` to ``'mmsegmentation'``, which OneDL calls
    ``onedl-mmsegmentation``: where the distribution is missing, mmengine finds the package by its own name.
    mmengine knows no other packages than those in the table, hence ours.
    """
    MODULE2PACKAGE['repl_mm'] = 'repl_mm'
    for package in PACKAGES:
        try:
            distribution(MODULE2PACKAGE.get(package, package))
        except PackageNotFoundError:
            MODULE2PACKAGE[package] = package
