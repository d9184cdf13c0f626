import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "zsjax" / "__init__.py").read_text()).group(1)
README = ROOT / "README.md"


class BuildWithExperiments(build_py):
    """A wheel carries the experiments with their data (6 MB) as zsjax/experiments: `zsjax ask` and `zsjax play` need one."""

    def run(self):
        super().run()
        if not self.editable_mode:
            made = pathlib.Path(self.build_lib) / "zsjax" / "experiments"
            shutil.copytree(ROOT / "experiments" / "data", made / "data", dirs_exist_ok=True)
            for file in sorted((ROOT / "experiments").glob("*.py")):
                shutil.copy(file, made)


setup(
    name="zsjax",
    version=VERSION,
    description="Train language models to search without searching, in JAX",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["zsjax", "zsjax.*"]),
    package_data={"zsjax": ["py.typed", "data/assets/**/*", "**/*.txt", "**/*.j2"]},
    cmdclass={"build_py": BuildWithExperiments},
    entry_points={"console_scripts": ["zsjax = zsjax.launch:console"]},
    # Neither torch nor TensorFlow: transformers reads tokenizers and configs without torch, TFDS reads array records
    # without TensorFlow, tensorboardX writes events without either.
    install_requires=[
        "jax>=0.10.2,<0.12",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "numpy>=2.0",
        "ml-collections>=1.1",
        "safetensors>=0.8",  # reads and writes bfloat16 as numpy
        "huggingface-hub>=1.3",
        "transformers>=5.0",
        "tokenizers>=0.22.1",
        "jinja2>=3.1",  # the report, and transformers' chat templates
        "sentencepiece>=0.2",
        "tensorflow-datasets>=4.9.9",
        "pyarrow>=17",
        "bm25s>=0.3.10",
        "httpx>=0.27",
        "tenacity>=9",
        "tensorboardX>=2.6",
        "rich>=13",
    ],
    extras_require={
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=1.0"],  # bash launch/docs.sh
        "release": ["build>=1.2", "mypy>=1.15"],  # python -m build; tests/test_types.py
        "cuda12": ["jax[cuda12]>=0.10.2,<0.12"],
        "cuda13": ["jax[cuda13]>=0.10.2,<0.12"],
        "tpu": ["jax[tpu]>=0.10.2,<0.12"],
        "plan": ["jax[tpu]>=0.10.2,<0.12"],  # the TPU's compiler (libtpu), which needs no TPU
        "plan-gpu": ["jax[cuda12]>=0.10.2,<0.12"],  # NVIDIA's, which needs no GPU (3 GB)
        "test": ["pytest>=8", "pytest-xdist>=3.6.1", "hypothesis>=6.100", "ruff>=0.8", "torch==2.13.0",
                 "gguf>=0.17", "nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29", "matplotlib>=3.9"],
        "browser": ["playwright>=1.50"],  # pytest -m browser, with any Chromium
        "gguf": ["gguf>=0.17"],  # python -m zsjax.launch import FILE.gguf OUT
        "serving": ["transformers[serving]>=5.0"],  # a chat server to try the chat simulator with
        "notebooks": ["jupyterlab>=4", "matplotlib>=3.9", "ipykernel>=6.29"],
    },
)
