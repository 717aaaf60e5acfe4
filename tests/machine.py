"""What this machine can be asked for: each probe gives None, or the reason why not."""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import struct
from pathlib import Path

import memory
import witness

THP = Path("/sys/kernel/mm/transparent_hugepage")
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
ZRAM = Path("/sys/class/zram-control")
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
SWAP_BYTES = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def _chosen(path):
    try:
        return path.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return ""


def scan():
    """An empty walk, asked with the bare ioctl."""
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0xC0606610, bytearray(struct.pack("<12Q", 96, *[0] * 11)))
    except OSError as error:
        return f"PAGEMAP_SCAN: {error.strerror} (Linux 6.7 brings it)"
    finally:
        os.close(fd)
    return None


def thp():
    chosen = _chosen(THP / "enabled")
    return None if chosen in ("always", "madvise") else f"transparent huge pages: {chosen or 'not built in'}"


def huge_zero():
    with contextlib.suppress(OSError):
        if (THP / "use_zero_page").read_text().strip() == "1":
            return None
    return "the huge zero page is switched off"


def guard():
    with memory.Memory(1) as page:
        try:
            page.advise(memory.GUARD_INSTALL)
        except OSError as error:
            return f"MADV_GUARD_INSTALL: {error.strerror} (Linux 6.13 brings it)"
        if not witness.entries(page.start, page.end)[0] & 1 << 58:
            return "guard regions do not show in /proc/PID/pagemap (Linux 6.15)"
    return None


def wp_async():
    with memory.Memory(1) as page:
        try:
            page.write_protect()
        except OSError as error:
            return f"asynchronous write protection: {error.strerror} (Linux 6.7)"
    return None


def soft_dirty():
    with memory.Memory(2) as pages:
        pages.write(0, 1)
        try:
            memory.clear_soft_dirty()
        except OSError as error:
            return f"/proc/self/clear_refs: {error.strerror}"
        pages.write(0)
        seen = [word >> 55 & 1 for word in witness.entries(pages.start, pages.end)]
    return None if seen == [1, 0] else "this kernel does not record soft-dirty pages (CONFIG_MEM_SOFT_DIRTY)"


def frames():
    return None if witness.sees_frames() else "page frame numbers and /proc/kpageflags need root"


def vdso():
    return None if any(line.endswith("[vdso]") for _, _, line in witness.maps()) else "no vdso here"


def root():
    return None if os.geteuid() == 0 else "needs root"


PROBES = {
    probe.__name__: probe for probe in (scan, thp, huge_zero, guard, wp_async, soft_dirty, frames, vdso, root)
}


class Missing(Exception):
    """What cannot be set up here, and why."""


@contextlib.contextmanager
def huge_pages(count):
    """`count` more hugetlb pages of 2 MiB, taken back at the end."""

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
        raise Missing(f"{HUGE_PAGES}: {error.strerror}") from error
    try:
        if got < count:
            raise Missing(f"memory is too scattered for {count} hugetlb pages: {got}")
        yield
    finally:
        change(-got)


@contextlib.contextmanager
def shared_huge_pages():
    """Transparent huge pages of shared memory, for those who ask with madvise."""
    setting = THP / "shmem_enabled"
    before = _chosen(setting)
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


@contextlib.contextmanager
def next_pid(pid):
    """A process with this pid, which nobody has now."""
    if os.geteuid() != 0 or not LAST_PID.exists():
        raise Missing(f"{LAST_PID} needs root and CONFIG_CHECKPOINT_RESTORE")
    for _ in range(200):
        LAST_PID.write_text(str(pid - 1))
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        if child == pid:
            break
        os.kill(child, signal.SIGKILL)  # somebody else forked in between
        os.waitpid(child, 0)
    else:
        raise Missing(f"pid {pid} is not to be had again: others are faster")
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
