"""Files that the package carries: the tiny world's tokenizer and models, and a sample of real questions.

"asset:tiny_world/base" can be given for a path: it is the folder `zsjax/data/assets/tiny_world/base`.
"""

import pathlib

from zsjax.errors import InputNotFound

PREFIX = "asset:"
_ROOT = pathlib.Path(__file__).resolve().parent


def list_assets() -> list[str]:
    """Names of the folders that hold files, such as "tiny_world/base"."""
    folders = {file.parent for file in _ROOT.glob("*/**/*") if file.is_file() and "__pycache__" not in file.parts}
    return sorted(folder.relative_to(_ROOT).as_posix() for folder in folders)


def asset_path(path: str | pathlib.Path) -> pathlib.Path:
    """The path of "asset:NAME", a carried folder or file; any other text is a path itself.

    Raises:
      FileNotFoundError: no such asset; the message lists those that exist. Other paths are not checked.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return pathlib.Path(path)
    name = text[len(PREFIX) :].strip("/")
    found = (_ROOT / name).resolve()
    if not name or not found.is_relative_to(_ROOT) or not found.exists():
        known = ", ".join(f"{PREFIX}{asset}" for asset in list_assets()) or "none"
        raise InputNotFound(f"no asset {text!r}; carried with the package: {known}")
    return found
