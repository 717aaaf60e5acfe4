"""Fixtures: what a test needs of the machine is probed, set up where root can, or the reason to skip."""

import contextlib
import functools
import os

import machine
import pytest
from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("quick", max_examples=100, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("thorough", max_examples=5000, deadline=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

_probe = functools.cache(lambda name: machine.PROBES[name]())


def _set_up(place):
    with contextlib.ExitStack() as undo:
        try:
            undo.enter_context(place)
        except machine.Missing as missing:
            pytest.skip(str(missing))
        yield


@pytest.fixture(scope="session")
def hugetlb():
    """Eight hugetlb pages."""
    yield from _set_up(machine.huge_pages(8))


@pytest.fixture(scope="session")
def shmem_thp():
    """Transparent huge pages for shared memory."""
    yield from _set_up(machine.shared_huge_pages())


@pytest.fixture(scope="session")
def swap():
    """Swap space on a zram device."""
    yield from _set_up(machine.swap())


@pytest.fixture
def need(request):
    """need(name, …): goes on only where the machine has these; sets them up where that takes root."""

    def require(*names):
        for name in names:
            if name in machine.PROBES:
                if reason := _probe(name):
                    pytest.skip(reason)
            else:
                request.getfixturevalue(name)

    return require


@pytest.fixture(params=["scan", "read"])
def engine(request, need):
    """Both engines, the ioctl where the kernel has it."""
    if request.param == "scan":
        need("scan")
    return request.param
