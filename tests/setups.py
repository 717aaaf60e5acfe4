"""What root can set up for the tests: hugetlb pages, huge pages for shared memory, swap space.

As a program, `setups.py NAME` sets one up, says so, and undoes it when its standard input ends: also when the
test run that started it was killed.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

import witness
from machine import THP, Missing, chosen

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
FREE_HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
ZRAM = Path("/sys/class/zram-control")
SWAP_BYTES = 64 << 20
READY = "ready"

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def hugetlb(count=8):
    """`count` more hugetlb pages of 2 MiB, taken back at the end; without root those that are free."""

    def change(by):
        with HUGE_PAGES.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # against another run of these tests
            now = int(file.read())
            file.seek(0)
            file.write(str(now + by))
            file.flush()
            file.seek(0)
            return int(file.read()) - now

    try:
        got = change(count)
    except OSError as error:
        if not FREE_HUGE_PAGES.exists() or int(FREE_HUGE_PAGES.read_text()) < count:
            raise Missing(f"{HUGE_PAGES}: {error.strerror}, and not {count} pages are free") from error
        yield
        return
    try:
        if got < count:
            raise Missing(f"memory is too scattered for {count} hugetlb pages: {got}")
        yield
    finally:
        change(-got)


@contextlib.contextmanager
def shmem_thp():
    """Transparent huge pages of shared memory, for those who ask with madvise."""
    setting = THP / "shmem_enabled"
    before = chosen(setting)
    if before in ("always", "within_size", "advise", "force"):
        yield
        return
    try:
        setting.write_text("advise")
    except OSError as error:
        raise Missing(f"shared huge pages are switched off ({setting}): {error.strerror}") from error
    try:
        yield
    finally:
        setting.write_text(before)


@contextlib.contextmanager
def swap():
    """A zram device of our own as swap space, taken away at the end."""
    with contextlib.ExitStack() as undo:
        try:
            number = int((ZRAM / "hot_add").read_text())
        except OSError as error:
            raise Missing(f"no zram device for swap: {error.strerror}") from error
        undo.callback((ZRAM / "hot_remove").write_text, str(number))
        block = Path(f"/sys/block/zram{number}")
        device = Path(f"/dev/zram{number}")
        (block / "disksize").write_text(str(SWAP_BYTES))
        undo.callback((block / "reset").write_text, "1")
        if not device.exists():
            major, minor = map(int, (block / "dev").read_text().split(":"))
            os.mknod(device, 0o600 | 0o060000, os.makedev(major, minor))
            undo.callback(device.unlink)
        _make_swap_space(device)
        if _libc.swapon(str(device).encode(), 0) != 0:
            code = ctypes.get_errno()
            raise Missing(f"swapon: {os.strerror(code)} ({errno.errorcode[code]})")
        undo.callback(_libc.swapoff, str(device).encode())
        yield


def _make_swap_space(device):
    """The header of include/linux/swap.h, as mkswap(8) writes it."""
    header = bytearray(witness.PAGE)
    struct.pack_into("<III", header, 1024, 1, SWAP_BYTES // witness.PAGE - 1, 0)
    header[-10:] = b"SWAPSPACE2"
    with device.open("r+b") as file:
        file.write(header)


SETUPS = {setup.__name__: setup for setup in (hugetlb, shmem_thp, swap)}


@contextlib.contextmanager
def kept(name):
    """A setup, kept by a process of its own until the end. Raises Missing."""
    keeper = subprocess.Popen(
        [sys.executable, __file__, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said = keeper.stdout.readline().strip()
        if not said:
            raise RuntimeError(f"the setup of {name} failed")  # it has told why
        if said != READY:
            raise Missing(said)
        yield
    finally:
        keeper.stdin.close()
        keeper.stdout.close()
        keeper.wait(60)


def main(name):
    try:
        with SETUPS[name]():
            print(READY, flush=True)
            sys.stdin.read()
    except Missing as missing:
        print(missing)


if __name__ == "__main__":
    main(sys.argv[1])
