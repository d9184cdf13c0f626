"""Search engines, a file each. Every file of this folder is imported, which registers its engines."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
