"""The extension module, nothing else: every other setting stands in pyproject.toml."""

import os
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
cflags = ["-std=gnu11", "-O3", "-fvisibility=hidden"]
if os.environ.get("PAGEMAP_DEV"):
    cflags += ["-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wstrict-prototypes", "-Wundef"]

setup(
    ext_modules=[
        Extension(
            "pagemap._pagemap",
            sources=sorted(str(path) for path in Path("src").glob("*.c")),
            depends=sorted(str(path) for path in Path("src").glob("*.h")),
            extra_compile_args=cflags,
            # The stable ABI does not exist for free-threaded builds yet: those get a wheel of their own.
            define_macros=[] if free_threaded else [("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=not free_threaded,
        )
    ],
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
