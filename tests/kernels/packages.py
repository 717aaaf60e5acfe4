"""Debian's kernel packages: which exist, and their parts unpacked into a cache.

apt runs on a state of its own (sources, lists, cache), so that the machine's sources stay as they are.
"""

from __future__ import annotations

import functools
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REGISTRY = Path(__file__).with_name("kernels.toml")

# What a guest loads: 9p over virtio for the file systems, zram for swap. Their dependencies come along.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "zram")

# Only these folders of the module tree are unpacked: they hold MODULES and everything those depend on.
MODULE_FOLDERS = re.compile(
    r"/kernel/(crypto|lib|mm|fs/(9p|netfs|fscache)|net/9p|drivers/(virtio|block/zram))/"
)

# linux-image-6.12.107+deb13-amd64, linux-image-6.1.0-50-amd64; not -cloud-, -rt-, -unsigned, -dbg
PACKAGE = re.compile(
    r"linux-(?P<part>image|binary|modules)-(?P<release>(?P<series>\d+\.\d+)[^-]*(-\d+)?-amd64)$"
)


class GoneError(Exception):
    """The archive has no usable kernel of a series."""


class UnavailableError(Exception):
    """This machine cannot run the matrix: what is missing, and what to do."""


@dataclass(frozen=True)
class Kernel:
    """One kernel, unpacked: `release` is its `uname -r`, `modules` are in the order of loading."""

    series: str
    release: str
    image: Path
    modules: tuple[Path, ...]


def registry() -> dict[str, str]:
    """The series of the matrix, oldest first, and why each is in it."""
    return {entry["series"]: entry["why"] for entry in _settings()["kernel"]}


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pagemap-kernels"


class Archive:
    """Debian's archive, seen through an apt state of its own in `cache`."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        state = cache / "apt"
        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        self._sources = state / "sources.list"
        self._options = [
            f"-oDir::Etc::sourcelist={self._sources}",
            "-oDir::Etc::sourceparts=/dev/null",
            f"-oDir::State::lists={state / 'lists'}",
            f"-oDir::Cache={state / 'cache'}",
            "-oAPT::Sandbox::User=root",
        ]

    def update(self) -> None:
        settings = _settings()
        keyring = Path(settings["keyring"])
        if not keyring.exists():
            raise UnavailableError(f"{keyring} is missing: install debian-archive-keyring")
        source = f"deb [arch=amd64 signed-by={keyring}] {settings['mirror']}"
        self._sources.write_text("".join(f"{source} {suite} main\n" for suite in settings["suites"]))
        self._apt("apt-get", "update", "-qq", "-oAPT::Update::Error-Mode=any")
        self._packages.cache_clear()

    @functools.cache  # noqa: B019 (one archive for each run)
    def _packages(self) -> dict[str, dict[str, dict[str, str]]]:
        """series -> release -> part -> package name"""
        found: dict[str, dict[str, dict[str, str]]] = {}
        for name in self._apt("apt-cache", "pkgnames", "linux-").split():
            if match := PACKAGE.match(name):
                releases = found.setdefault(match["series"], {})
                releases.setdefault(match["release"], {})[match["part"]] = name
        return found

    def newest(self, series: str) -> str:
        """The release of `series` to test: the newest that has both an image and its modules."""
        releases = self._packages().get(series, {})
        usable = [release for release, parts in releases.items() if _usable(parts)]
        if not usable:
            reason = "has images of it without modules only" if releases else "does not list it any more"
            raise GoneError(f"Linux {series} is gone: the archive {reason}")
        return max(usable, key=natural)

    def unpack(self, series: str) -> Kernel:
        """Downloads the newest kernel of `series` unless the cache has it."""
        release = self.newest(series)
        folder = self.cache / release
        if not folder.exists():
            parts = self._packages()[series][release]
            names = [parts["binary"], parts["modules"]] if "binary" in parts else [parts["image"]]
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            self._apt("apt-get", "download", "-qq", *names, cwd=partial)
            for package in partial.glob("*.deb"):
                _extract(package, partial)
                package.unlink()
            partial.rename(folder)
        modules = {module.stem.replace("-", "_"): module for module in folder.glob("*.ko")}
        return Kernel(series, release, folder / "vmlinuz", tuple(_load_order(modules)))

    def _apt(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        command = [tool, *self._options, *arguments]
        try:
            return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise UnavailableError(f"Debian's archive cannot be read: {error}") from error


@functools.cache
def _settings() -> dict:
    return tomllib.loads(REGISTRY.read_text())


def _usable(parts: dict[str, str]) -> bool:
    # Since 6.19 linux-image is an empty package that depends on linux-binary and linux-modules.
    return {"binary", "modules"} <= parts.keys() or ("image" in parts and "binary" not in parts)


def natural(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def _extract(package: Path, folder: Path) -> None:
    """Puts the kernel image and the modules of MODULE_FOLDERS, decompressed, into `folder`."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as dpkg,
        tarfile.open(fileobj=dpkg.stdout, mode="r|") as archive,
    ):
        for member in archive:
            name = Path(member.name).name
            if name == "vmlinuz" or name.startswith("vmlinuz-"):
                target = folder / "vmlinuz"
            elif MODULE_FOLDERS.search(member.name) and name.endswith((".ko", ".ko.xz")):
                target = folder / name.removesuffix(".xz")
            else:
                continue
            if content := archive.extractfile(member):
                data = content.read()
                target.write_bytes(lzma.decompress(data) if name.endswith(".xz") else data)
    if dpkg.returncode:
        raise SystemExit(f"dpkg-deb could not read {package}")


def _load_order(modules: dict[str, Path]) -> Iterator[Path]:
    """MODULES and what they depend on, dependencies first; one that is not a module is built in."""
    seen: set[str] = set()

    def visit(name: str) -> Iterator[Path]:
        if name in seen or name not in modules:
            return
        seen.add(name)
        match = re.search(rb"\0depends=([^\0]*)\0", modules[name].read_bytes())
        for dependency in match[1].decode().split(",") if match else ():
            yield from visit(dependency.replace("-", "_"))
        yield modules[name]

    for module in MODULES:
        yield from visit(module)
