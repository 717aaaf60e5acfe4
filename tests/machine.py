"""What this machine can be asked for: each probe gives None, or the reason why not."""

import contextlib
import fcntl
import importlib.util
import os
import signal
import struct
from pathlib import Path

import memory
import witness

THP = Path("/sys/kernel/mm/transparent_hugepage")
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def chosen(path):
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
    mode = chosen(THP / "enabled")
    return None if mode in ("always", "madvise") else f"transparent huge pages: {mode or 'not built in'}"


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


def rwp_async():
    try:
        os.close(memory.userfaultfd(1 << 18 | 1 << 17))
    except OSError as error:
        return f"access tracking by userfaultfd: {error.strerror} (Linux 7.3)"
    return None


def procmap_query():
    """Asked about the address 0: whatever comes first."""
    fd = os.open("/proc/self/maps", os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0xC0686611, bytearray(struct.pack("<13Q", 104, 0x10, *[0] * 11)))
    except OSError as error:
        return f"PROCMAP_QUERY: {error.strerror} (Linux 6.11 brings it)"
    finally:
        os.close(fd)
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


def dask():
    found = importlib.util.find_spec("dask") and importlib.util.find_spec("pyarrow")
    return None if found else "traces of fleets need Dask and pyarrow (the extra `fleet`)"


PROBES = {
    probe.__name__: probe
    for probe in (
        scan,
        thp,
        huge_zero,
        guard,
        wp_async,
        rwp_async,
        procmap_query,
        soft_dirty,
        frames,
        vdso,
        root,
        dask,
    )
}


class Missing(Exception):
    """What cannot be had here, and why."""


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
