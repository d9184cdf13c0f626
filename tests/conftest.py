"""Eight virtual CPU devices for every test, set before jax is imported; for `pytest -m gpu` the machine's own devices."""

import os
import re

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Inputs that each test of generated inputs draws. 2,400 over the readers of text, checkpoints, data and servers:
#   ZSJAX_GENERATED_CASES=300 python -m pytest -k "generated or damaged"
GENERATED_CASES = int(os.environ.get("ZSJAX_GENERATED_CASES", "60"))


def on_gpu(config) -> bool:
    return config.option.markexpr == "gpu"


def pytest_configure(config):
    if on_gpu(config):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes may share the device
        return
    if os.environ.get("ZSJAX_TEST_PLATFORM", "cpu") != "cpu":
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()


def pytest_ignore_collect(collection_path, config):
    """A GPU machine may lack what other tests import, so that only files with GPU tests are imported there."""
    if on_gpu(config) and re.match(r"test_.*\.py", collection_path.name):
        return "pytest.mark.gpu" not in collection_path.read_text() or None
    return None


def pytest_generate_tests(metafunc):
    if "generated_seed" in metafunc.fixturenames:
        metafunc.parametrize("generated_seed", range(GENERATED_CASES))


@pytest.fixture(scope="session")
def generated_cases() -> int:
    return GENERATED_CASES


@pytest.fixture(scope="session")
def gpu():
    """The machine's first GPU. ZSJAX_GPU_DRY_RUN=1 gives a CPU instead: a check of the tests themselves."""
    import jax

    device = jax.devices()[0]
    if device.platform != "gpu" and not os.environ.get("ZSJAX_GPU_DRY_RUN"):
        pytest.fail(f"marked gpu, but jax finds {device.platform} only")
    return device


@pytest.fixture
def cpu():
    """A context in which programs are traced for, and run on, the CPU beside a GPU."""
    import contextlib

    import jax

    from zsjax.parallel.constrain import compiling_for

    @contextlib.contextmanager
    def context():
        with jax.default_device(jax.devices("cpu")[0]), compiling_for("cpu"):
            yield

    return context


@pytest.fixture(scope="session")
def simulator():
    """A random simulator with the policy's tokenizer, of tests/small_models.py."""
    from tests.small_models import make_simulator

    return make_simulator()
