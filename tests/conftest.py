"""Fixtures: what a test needs of the machine is probed, set up where root can, or the reason to skip.

More random examples: HYPOTHESIS_PROFILE=thorough pytest --timeout 0
"""

import contextlib
import functools
import os
import signal
from pathlib import Path

import machine
import pytest
import setups
from hypothesis import HealthCheck, settings

_COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
if not os.access(Path(__file__).parent.parent, os.W_OK):
    _COMMON["database"] = None  # a read-only tree: no place for the examples that failed
settings.register_profile("quick", max_examples=100, **_COMMON)
settings.register_profile("thorough", max_examples=5000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in a shell's background ignores Ctrl-C, and so would the commands that are interrupted here.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_probe = functools.cache(lambda name: machine.PROBES[name]())


def _set_up(name):
    with contextlib.ExitStack() as undo:
        try:
            undo.enter_context(setups.kept(name))
        except machine.Missing as missing:
            pytest.skip(str(missing))
        yield


@pytest.fixture(scope="session")
def hugetlb():
    """Eight hugetlb pages."""
    yield from _set_up("hugetlb")


@pytest.fixture(scope="session")
def shmem_thp():
    """Transparent huge pages for shared memory."""
    yield from _set_up("shmem_thp")


@pytest.fixture(scope="session")
def swap():
    """Swap space on a zram device."""
    yield from _set_up("swap")


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
