"""Every input that the fuzzer found worth keeping, once more, against the sources as they are: `make fuzz`
looks for new ones."""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import pagemap
from pagemap import _pagemap

HERE = Path(__file__).parent / "fuzz"
SOURCES = Path(__file__).parent.parent / "src"
TARGETS = ("maps", "entries", "calls")


@functools.cache
def missing():
    """Why the targets cannot be built here, or None."""
    if shutil.which("cc") is None:
        return "no C compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "no headers of this Python"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "the targets are built for the stable ABI, which free-threaded builds lack"
    if not (Path(sysconfig.get_config_var("LIBDIR")) / sysconfig.get_config_var("LDLIBRARY")).exists():
        return "no library of this Python to link with"
    return None


def replay(program, files):
    # No memory of the interpreter's own, so that the C library's checks see every block.
    checks = {"PYTHONHOME": sys.base_prefix, "PYTHONMALLOC": "malloc", "MALLOC_CHECK_": "3"}
    return subprocess.run(
        [program, *files], capture_output=True, text=True, timeout=100, env=os.environ | checks, check=False
    )


def compiler(*arguments, folder):
    include = sysconfig.get_path("include")
    common = ["cc", "-std=gnu11", "-g", "-O1", "-w", f"-I{SOURCES}", f"-I{HERE}", f"-I{include}"]
    subprocess.run([*common, *map(str, arguments)], check=True, cwd=folder)


def link(source, objects, folder):
    """The program of one target; returns its path."""
    place, library = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDLIBRARY")
    name = library.removeprefix("lib").removesuffix(".so").removesuffix(".a")
    needs = [f"-L{place}", f"-l{name}", f"-Wl,-rpath,{place}", "-lpthread", "-lm", "-ldl", "-lutil"]
    program = folder / source.stem
    compiler("-DFUZZ_REPLAY", HERE / "harness.c", source, *objects, *needs, "-o", program, folder=folder)
    return program


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """The extension, compiled."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("fuzz")
    compiler("-DPy_LIMITED_API=0x030B0000", "-c", *SOURCES.glob("*.c"), folder=folder)
    return list(folder.glob("*.o"))


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus(objects, tmp_path, target):
    files = sorted(str(path) for path in (HERE / "corpus" / target).iterdir())
    assert len(files) > 10
    done = replay(link(HERE / f"fuzz_{target}.c", objects, tmp_path), files)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(files)} inputs\n"


def test_the_harness_notices(objects, tmp_path):
    """The program that is trusted above ends badly where answers are wrong: its model has another rule."""
    wrong = tmp_path / "wrong.c"
    wrong.write_text((HERE / "fuzz_entries.c").read_text().replace("{63, 3}", "{63, 4}"))
    done = replay(link(wrong, objects, tmp_path), sorted(map(str, (HERE / "corpus/entries").iterdir())))
    assert done.returncode != 0
    assert "not so" in done.stderr


# What they found, as tests of their own.


@pytest.mark.parametrize("fd", [1 << 31, 1 << 64, -(1 << 64)])
def test_a_descriptor_beyond_the_numbers_of_c(fd):
    """It was an OverflowError out of the C API."""
    with pytest.raises(ValueError, match="fd must be at most"):
        pagemap.pagemap_scan(fd, 0, 0)


@pytest.mark.parametrize("masks", [None, [0, 0, 0, 0], (), (0, 0, 0), (0, 0, 0, 0, 0)])
def test_masks_that_are_no_tuple_of_four(masks):
    """It was a SystemError out of the C API, or what was too much went unseen."""
    for call in (_pagemap.scan_small, _pagemap.RegionBuffer(4).scan_whole):
        with pytest.raises(TypeError, match="masks must be a tuple of four"):
            call(0, 0, 4096, masks)


def unaligned(count, dtype):
    return np.zeros(count * np.dtype(dtype).itemsize + 1, np.uint8)[1:]


def test_memory_that_is_not_aligned():
    """It was read and written as if it were: undefined, and a trap on some machines."""
    regions, entries = np.zeros(4, pagemap.REGION_DTYPE), np.zeros(4, np.uint64)
    with pytest.raises(ValueError, match="aligned"):
        _pagemap.decode_entries(unaligned(4, np.uint64), 0, regions, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="aligned"):
        _pagemap.decode_entries(entries, 0, unaligned(4, pagemap.REGION_DTYPE), 0, 0, 0, 0, 0)
    ranges = unaligned(4, np.uint64).view(np.uint64)
    with pagemap.PageMap() as pm, pytest.raises(ValueError, match="aligned"):
        _pagemap.RegionBuffer(4).read(0, pm.fileno(), ranges, 0, 0, 0, 0, 0, 0, 0)
