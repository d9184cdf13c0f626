"""Eight virtual CPU devices for every test, set before jax is imported; for `pytest -m gpu` the machine's own devices."""

import os
import pathlib
import re

import pytest

from tests.environment import quick_codegen

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TESTS = pathlib.Path(__file__).parent
# Inputs that each test of generated inputs draws. 2,400 over the readers of text, checkpoints, data and servers:
#   ZSJAX_GENERATED_CASES=300 python -m pytest -k "generated or damaged"
GENERATED_CASES = int(os.environ.get("ZSJAX_GENERATED_CASES", "60"))

# Files that take more than some ten seconds, the longest first: they compile updates or rollouts, or run whole experiments.
# `bash launch/test.sh --quick` leaves them out; the whole run begins with them, lest a worker end with a long one alone.
LONG_FILES = """
    test_experiments test_notebooks rollout/test_continuous rollout/test_turns test_resume test_hosts test_train
    test_supervised test_no_compilation test_live_arrays test_plan plan/test_presets plan/test_document
    plan/test_targets rollout/test_host models/test_cache models/test_int8_cache models/test_parity
    search/test_engine_of_ones_own rollout/test_reranking test_sharding models/test_attention sampling/test_tags
    rollout/test_pairing tiny_world/test_reading models/test_lora models/test_gemma3 rl/test_packing test_readme
    rl/test_update campaigns/test_injection tuning/test_tune docs/test_minimal_loop test_accounting test_baselines
    rollout/test_what_ends_and_what_stays_text models/test_value seams/test_action models/test_quant rl/test_logprobs
    search/test_dense models/test_gguf models/test_induction seams/test_loss test_viewer tiny_world/test_hard_world
    tiny_world/test_learning campaigns/test_input
""".split()


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
        flags = f"{flags} --xla_force_host_platform_device_count=8 {quick_codegen()}"
        os.environ["XLA_FLAGS"] = flags.strip()


def pytest_ignore_collect(collection_path, config):
    """A GPU machine may lack what other tests import, so that only files with GPU tests are imported there."""
    if on_gpu(config) and re.match(r"test_.*\.py", collection_path.name):
        return "pytest.mark.gpu" not in collection_path.read_text() or None
    return None


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONG_FILES)}
    places = [place.get(item.path.relative_to(TESTS).with_suffix("").as_posix(), len(place)) for item in items]
    for item, at in zip(items, places, strict=True):
        if at < len(place):
            item.add_marker("long")
    items[:] = [item for _, item in sorted(zip(places, items, strict=True), key=lambda pair: pair[0])]


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


@pytest.fixture
def evil() -> str:
    """A text that would do harm on a page or a terminal if it were more than text."""
    return "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"> & \x1b[31m \u202e end"


@pytest.fixture
def trajectory_runs(tmp_path, evil):
    """The folders of two runs: three files of training and one of evaluation, and one file of training."""
    import json

    def record(i, reward, **fields):
        return {"id": f"q{i}", "question": f"Question {i}?", "golden_answers": [f"gold {i}"], "answer": f"answer {i}",
                "status": "answered", "search_status": ["ok"], "noisy": [i % 2 == 1], "num_searches": i % 4,
                "reward": reward,
                "segments": [{"role": "prompt", "text": f"Question {i}?\n"},
                             {"role": "policy", "text": "<search> x </search>"},
                             {"role": "document", "text": f"Doc 1: {i}"}], **fields}

    def write(run, name, rows, end=""):
        path = tmp_path / run / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + end)

    for step in (1, 11, 21):
        rows = [record(i, i / 20) for i in range(20)]
        rows[13]["segments"][2]["text"] += "Deep Down" * (step == 11)
        rows[4]["answer"] += 'say "\u00dc"\n' * (step == 21)
        write("first", f"trajectories/train_{step:06d}", rows, '{"question": "cut' if step == 21 else "")
    tagged = [record(20, None, em=None, f1=0.3, data_set="nq"),
              record(21, None, em=0, status="out_of_turns", data_set="popqa")]
    tagged[0]["segments"][2]["text"] = evil
    write("first", "evaluation/after-1", tagged, "[]\n")
    write("second", "trajectories/train_000011", [record(i, 1.0) for i in range(20)])
    return [tmp_path / "first", tmp_path / "second"]
