"""Search engines, a file each. A file that lies here is imported, so that its engines are registered."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
