"""One guest: an initramfs, a shared folder with jobs, QEMU without hardware virtualization, a time limit."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packages import Kernel, UnavailableError

HERE = Path(__file__).parent

# An oops ends the guest at once; mitigations and page clearing only cost time; facts.py looks for the last.
PARAMETERS = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off init_on_alloc=0 pagemap.guest"

# What a kernel prints when something in it went wrong.
COMPLAINT = re.compile(
    r"BUG:|Oops|Kernel panic|WARNING: |blocked for more than|soft lockup|general protection fault"
)


@dataclass(frozen=True)
class Job:
    """A command line for the guest, run by `uid` in the guest's working directory."""

    name: str
    command: Sequence[str]
    uid: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a job: `status` is None when it did not end; `folder` holds its output and its results."""

    status: int | None
    output: str
    folder: Path


@dataclass(frozen=True)
class Boot:
    """What came of a boot: `complaints` are the kernel's own lines, `timed_out` says that QEMU was killed."""

    outcomes: dict[str, Outcome]
    complaints: list[str]
    timed_out: bool
    seconds: float


def tools() -> tuple[str, Path]:
    """QEMU and a static busybox, installed by apt-get where root may and they are missing."""
    qemu, busybox = shutil.which("qemu-system-x86_64"), shutil.which("busybox")
    if not (qemu and busybox) and os.geteuid() == 0:
        packages = ["qemu-system-x86", "busybox-static"]
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        for command in (["apt-get", "update", "-qq"], install):  # the lists of a new machine are empty
            subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        qemu, busybox = shutil.which("qemu-system-x86_64"), shutil.which("busybox")
    if not (qemu and busybox):
        raise UnavailableError("missing: apt-get install qemu-system-x86 busybox-static")
    return qemu, Path(busybox)


async def boot(
    kernel: Kernel,
    jobs: Sequence[Job],
    results: Path,
    *,
    directory: Path,
    limit: float,
    processors: int = 1,
    memory: str = "2G",
    hugepages: int = 16,
) -> Boot:
    """Boots `kernel`, runs `jobs` one after the other in `directory`, powers off; all within `limit` seconds.

    `results` is emptied; it receives console.log, boot.json and, in jobs/NAME, what came of each job.
    """
    qemu, busybox = tools()
    shutil.rmtree(results, ignore_errors=True)
    (results / "jobs").mkdir(parents=True)
    shutil.copy(HERE / "guest.sh", results)
    (results / "directory").write_text(f"{directory}\n")
    (results / "reach").write_text("".join(f"{path}\n" for path in _reach(directory)))
    for job in jobs:
        folder = results / "jobs" / job.name
        folder.mkdir()
        (folder / "uid").write_text(f"{job.uid}\n")
        (folder / "command").write_text(shlex.join(job.command) + "\n")
    started = time.monotonic()
    with tempfile.NamedTemporaryFile(suffix=".cpio") as initramfs:
        initramfs.write(_initramfs(busybox, kernel))
        initramfs.flush()
        command = [
            *(qemu, "-accel", "tcg", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            # NumPy needs x86-64-v2, and gets no more: its sort by AVX2 crashes on the AVX2 of QEMU 7.2, and
            # five-level page tables would move the end of the address space. A second processor makes
            # emulation slower, not faster: it costs locks and TLB shootdowns.
            *("-cpu", "Nehalem", "-smp", str(processors), "-m", memory),
            *("-kernel", str(kernel.image), "-initrd", initramfs.name),
            *("-append", f"{PARAMETERS} hugepages={hugepages}"),
            *("-serial", f"file:{results / 'console.log'}"),
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
            *("-virtfs", f"local,path={results},mount_tag=share,security_model=none"),
        ]
        process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL)
        timed_out = False
        try:
            await asyncio.wait_for(process.wait(), limit)
        except TimeoutError:
            timed_out = True
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode and not timed_out:
        raise SystemExit(f"{qemu} failed with exit status {process.returncode}")
    ended = {"timed_out": timed_out, "seconds": time.monotonic() - started}
    (results / "boot.json").write_text(json.dumps(ended))
    return read_boot(results)


def read_boot(results: Path) -> Boot:
    """What boot() left in `results`."""
    console = (results / "console.log").read_text(errors="replace").splitlines()
    return Boot(
        {folder.name: _outcome(folder) for folder in sorted((results / "jobs").iterdir())},
        [line.strip() for line in console if COMPLAINT.search(line)],
        **json.loads((results / "boot.json").read_text()),
    )


def _outcome(folder: Path) -> Outcome:
    status, output = folder / "status", folder / "output"
    return Outcome(
        int(status.read_text()) if status.exists() else None,
        output.read_text(errors="replace") if output.exists() else "",
        folder,
    )


def _reach(directory: Path) -> list[Path]:
    """The folders that an ordinary user of the guest must be able to reach."""
    paths = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)} | {directory.resolve()}
    paths.discard(Path("/usr"))
    return sorted(path for path in paths if not any(parent in paths for parent in path.parents))


def _initramfs(busybox: Path, kernel: Kernel) -> bytes:
    archive = _Cpio()
    archive.folder("bin")
    archive.folder("modules")
    archive.file("bin/busybox", busybox.read_bytes())
    archive.file("init", (HERE / "init.sh").read_bytes())
    archive.file("modules/order", "".join(f"{module.name}\n" for module in kernel.modules).encode())
    for module in kernel.modules:
        archive.file(f"modules/{module.name}", module.read_bytes())
    return archive.bytes()


class _Cpio:
    """The 'newc' archive of Documentation/driver-api/early-userspace/buffer-format.rst."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._inode = 0

    def folder(self, name: str) -> None:
        self._entry(name, 0o040755, b"")

    def file(self, name: str, content: bytes) -> None:
        self._entry(name, 0o100755, content)

    def bytes(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"")
        return self._out.getvalue()

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        self._out.write(b"070701" + b"".join(b"%08x" % field for field in fields) + path)
        self._pad()
        self._out.write(content)
        self._pad()

    def _pad(self) -> None:
        self._out.write(b"\0" * (-self._out.tell() % 4))
