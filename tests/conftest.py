"""Eight CPU devices for the sharding tests, and every registered rotary method as a fixture."""

import dataclasses

import jax
import pytest

from longrope_jax import rotary

jax.config.update("jax_num_cpu_devices", 8)

# A value for each option that some method requires; a new method may need a line here.
REQUIRED = {"factor": 8.0}


def example(name):
    """The method registered as `name`, with a value for whatever has no default."""
    try:
        spec = rotary.build(name)
    except ValueError as error:
        known = {key: value for key, value in REQUIRED.items() if key in str(error)}
        spec = rotary.build(name, **known)
    assert dataclasses.is_dataclass(spec)
    return spec


@pytest.fixture(scope="session", params=rotary.names())
def spec(request):
    return example(request.param)
