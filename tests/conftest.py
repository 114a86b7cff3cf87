"""Eight CPU devices, every registered rotary method, parameters that cost nothing to make."""

import atexit
import dataclasses
import os
import shutil
import tempfile
from functools import partial

# A program that several processes of a run want (workers, killed and resumed studies, notebooks) is
# compiled by the first of them. Set the variable to keep the programs for the next run as well.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="longrope_jax_programs_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax

# Compiling is most of the suite's time; without fusion emitters XLA compiles these small programs
# in two thirds of the time. The flag is gone from newer versions, which refuse unknown ones.
if jax.__version_info__ < (0, 11):
    _CHOSEN = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {_CHOSEN}".strip()

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

# Before the package is imported: see shapes.py.
install_import_hook("longrope_jax", "shapes.arrays")

from longrope_jax import llama, rotary  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

# A value for each option that some method requires; a new method may need a line here.
REQUIRED = {
    "factor": 8.0,
    "original_length": 512,
    "long_factor": 8.0,
    "inner": rotary.XPos(),
    "fraction": 0.5,
    "window": 16,
    "group": 4,
    "n_kv_heads": 2,
    "pattern": (0, 1),
    "methods": (rotary.RoPE(), rotary.NoPE()),
}


def example(name):
    """The method registered as `name`, with a value for whatever has no default."""
    try:
        spec = rotary.build(name)
    except ValueError as error:
        needed = str(error).partition(":")[0].replace(",", "").split()
        known = {key: value for key, value in REQUIRED.items() if key in needed}
        spec = rotary.build(name, **known)
    assert dataclasses.is_dataclass(spec)
    return spec


# All methods that give frequencies; by_layer has those of several, see test_by_layer.py.
@pytest.fixture(scope="session", params=[name for name in rotary.names() if name != "by_layer"])
def spec(request):
    return example(request.param)


@pytest.fixture(scope="session")
def random_params():
    """Function from a LlamaConfig to parameters drawn by numpy: no compilation, no init code."""

    def draw(config, seed=0):
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(partial(llama.init_params, config), jax.random.key(0))

        def one(path, x):
            if path[-1].key == "scale":
                return jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype)
            return jnp.asarray(rng.normal(size=x.shape) * config.d_model**-0.5, x.dtype)

        return jax.tree_util.tree_map_with_path(one, shapes)

    return draw


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """Drops a file's compiled programs when its tests are done: files share none."""
    yield
    jax.clear_caches()


@pytest.fixture
def unchecked_shapes():
    """For tests that give wrong shapes on purpose, to see the package's own words about them."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture
def compilations():
    """The names of the programs that are compiled while a test runs, such as jit(step)."""
    names = []

    def note(event, _, *, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)
