"""Processes that cannot be injected: a clear error, and they are as they were."""

import errno
import os
import resource
import time
from pathlib import Path

import children
import injection
import pytest

from pagemap import _pagemap
from pagemap.process import Descriptor


def test_this_very_process():
    injection.refused(os.getpid(), errno.EINVAL, "target")


def test_a_thread_of_another_process():
    with injection.start("busy", 2) as target:
        thread = max(int(task) for task in os.listdir(f"/proc/{target.pid}/task"))
        injection.refused(thread, errno.EINVAL, "target")
        assert injection.end(target)[1] == 0


def test_a_process_that_does_not_exist():
    with injection.start("busy", 1) as target:
        target.kill()
        injection.refused(target.pid, errno.ESRCH, "target")  # a zombie
        target.reap()
        injection.refused(target.pid, errno.ESRCH, "target")


def test_a_kernel_thread():
    if not (status := Path("/proc/2/status")).exists() or "kthreadd" not in status.read_text():
        pytest.skip("no kernel threads in this pid namespace")
    injection.refused(2, errno.EPERM, "target")


@pytest.mark.parametrize("pid", [0, -1, 1 << 31, 1 << 64])
def test_numbers_that_are_no_process(pid):
    with pytest.raises(ValueError, match="pid"):
        _pagemap.inject_userfaultfd(pid, injection.FLAGS, Descriptor())


def test_a_process_that_is_traced_already():
    with injection.start("odd", "traced") as target:
        injection.refused(target.pid, errno.EPERM, "traced")
        assert target.ask("?") == "0"


def test_a_process_without_vdso():
    with injection.start("odd", "without_vdso") as target:
        assert target.ask("?") == "0"
        injection.refused(target.pid, errno.EOPNOTSUPP, "vdso")
        assert target.ask("?") == "0"
        assert injection.end(target)[1] == 0


def test_a_32_bit_process():
    program, reason = injection.compiled(
        "i386", "-m32", "-nostdlib", "-static", "-fno-pic", "-fno-stack-protector"
    )
    if reason:
        pytest.skip(f"no 32-bit programs here: {reason}")
    try:
        with injection.running(program) as target:
            injection.refused(target.pid, errno.EOPNOTSUPP, "target")
            assert target.ask("?") == "0"
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            pytest.skip("this kernel runs no 32-bit programs")
        raise


def test_a_process_that_cannot_be_stopped_is_not_left_traced():
    """State D: the parent of a vfork child."""
    with injection.start("odd", "vforking") as target:
        while not injection.status(target.pid, "State").startswith("D"):
            time.sleep(0.001)
        begin = time.monotonic()
        injection.refused(target.pid, errno.ETIMEDOUT, "stop")
        assert time.monotonic() - begin < 5
        assert injection.status(target.pid, "TracerPid") == "0"
        assert injection.end(target) == ("0", 0)


def test_a_call_that_the_kernel_refuses():
    with injection.start("busy", 1) as target:
        injection.refused(target.pid, errno.EINVAL, "userfaultfd", flags=injection.FLAGS | 1 << 30)
        resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (6, 6))
        injection.inject(target.pid)
        assert injection.end(target)[1] == 0
    with injection.start("waits", "read", 0) as target:
        target.stands_still()
        descriptors = len(os.listdir(f"/proc/{target.pid}/fd"))
        resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (descriptors, descriptors))
        injection.refused(target.pid, errno.EMFILE, "userfaultfd")
        assert target.ask("x").startswith("1 0 ")


def test_a_tracker_without_room_for_another_descriptor():
    with injection.start("busy", 1) as target:
        stages = children.run(
            """
            import os, resource, sys
            from pagemap import _pagemap
            from pagemap.process import Descriptor
            for room in range(4, 64):
                resource.setrlimit(resource.RLIMIT_NOFILE, (room, 64))
                try:
                    uffd = Descriptor()
                    _pagemap.inject_userfaultfd(int(sys.argv[1]), _pagemap.UFFD_USER_MODE_ONLY, uffd)
                except OSError as error:
                    assert error.errno == 24, error
                    print(error.stage)
                else:
                    del uffd
                    break
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            assert len(os.listdir("/proc/self/fd")) == 4
            """,
            target.pid,
        ).split()
        assert set(stages) == {"target", "vdso"}
        assert injection.end(target)[1] == 0


def test_a_tracker_that_may_not_take_the_descriptor_over():
    """A seccomp filter of its own gives pidfd_getfd (438) the errno 99; the target keeps nothing."""
    with injection.start("busy", 1) as target:
        children.run(
            """
            import ctypes, struct, sys
            from pagemap import _pagemap
            from pagemap.process import Descriptor
            refuse, allow = 0x00050000 | 99, 0x7FFF0000
            steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 438), (0x06, 0, 0, refuse), (0x06, 0, 0, allow)]
            code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
            program = struct.pack("@HP", len(steps), ctypes.addressof(code))
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
            assert libc.prctl(22, 2, program) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
            for _ in range(20):
                try:
                    _pagemap.inject_userfaultfd(
                        int(sys.argv[1]), _pagemap.UFFD_USER_MODE_ONLY, Descriptor()
                    )
                except OSError as error:
                    assert (error.errno, error.stage) == (99, "fetch"), error
                else:
                    raise AssertionError("the filter does not work")
            """,
            target.pid,
        )
        assert injection.userfaultfds(target.pid) == 0
        assert injection.end(target)[1] == 0
