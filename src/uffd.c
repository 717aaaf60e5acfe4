/* userfaultfd (mm/userfaultfd.c, fs/userfaultfd.c): the calls, one to one. Policy is in Python. */
#include "pagemap_module.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* One ioctl with the GIL released. 0, or -1 with OSError. */
static int
uffd_ioctl(int fd, unsigned long command, void *argument)
{
    int error = 0;

    Py_BEGIN_ALLOW_THREADS
    if (ioctl(fd, command, argument) < 0) {
        error = errno;
    }
    Py_END_ALLOW_THREADS

    if (error != 0) {
        raise_errno(error);
        return -1;
    }
    return 0;
}

int
give_descriptor(PyObject *owner, int fd)
{
    PyObject *number = PyLong_FromLong(fd);
    int error = number == NULL ? -1 : PyObject_SetAttrString(owner, "fd", number);

    Py_XDECREF(number);
    if (error < 0) {
        close(fd);
        if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Format(PyExc_TypeError, "owner must take an attribute fd: %R does not",
                         (PyObject *)Py_TYPE(owner));
        }
    }
    return error;
}

/* userfaultfd(flags, owner): the descriptor becomes owner.fd */
PyObject *
pagemap_userfaultfd(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    int flags, fd, error;

    if (arg_count("userfaultfd", nargs, 2) < 0 || arg_int(args[0], "flags", &flags) < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);
    error = errno;
    Py_END_ALLOW_THREADS

    if (fd < 0) {
        return raise_errno(error);
    }
    if (give_descriptor(args[1], fd) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* uffd_api(fd, features) -> (features, ioctls) that the kernel has */
PyObject *
pagemap_uffd_api(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    struct pmu_uffdio_api api = {.api = PMU_UFFD_API};
    int fd;

    if (arg_count("uffd_api", nargs, 2) < 0 || arg_int(args[0], "fd", &fd) < 0 ||
        arg_u64(args[1], "features", &api.features) < 0 || uffd_ioctl(fd, PMU_UFFDIO_API, &api) < 0) {
        return NULL;
    }
    return Py_BuildValue("(KK)", (unsigned long long)api.features, (unsigned long long)api.ioctls);
}

static int
arg_range(PyObject *const *args, int *fd, struct pmu_uffdio_range *range)
{
    uint64_t end;

    if (arg_int(args[0], "fd", fd) < 0 || arg_u64(args[1], "start", &range->start) < 0 ||
        arg_u64(args[2], "end", &end) < 0) {
        return -1;
    }
    if (end <= range->start) {
        PyErr_SetString(PyExc_ValueError, "the range is empty or reversed");
        return -1;
    }
    range->len = end - range->start;
    return 0;
}

/* uffd_register(fd, start, end, mode) -> ioctls that the range allows */
PyObject *
pagemap_uffd_register(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    struct pmu_uffdio_register reg = {.mode = 0};
    int fd;

    if (arg_count("uffd_register", nargs, 4) < 0 || arg_range(args, &fd, &reg.range) < 0 ||
        arg_u64(args[3], "mode", &reg.mode) < 0 || uffd_ioctl(fd, PMU_UFFDIO_REGISTER, &reg) < 0) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(reg.ioctls);
}

/* uffd_unregister(fd, start, end) */
PyObject *
pagemap_uffd_unregister(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    struct pmu_uffdio_range range;
    int fd;

    if (arg_count("uffd_unregister", nargs, 3) < 0 || arg_range(args, &fd, &range) < 0 ||
        uffd_ioctl(fd, PMU_UFFDIO_UNREGISTER, &range) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* uffd_protect(fd, start, end, mode, protect): UFFDIO_WRITEPROTECT or, for mode RWP, UFFDIO_RWPROTECT */
PyObject *
pagemap_uffd_protect(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    struct pmu_uffdio_writeprotect wp = {.mode = 0};
    uint64_t mode;
    int fd;

    if (arg_count("uffd_protect", nargs, 5) < 0 || arg_range(args, &fd, &wp.range) < 0 ||
        arg_u64(args[3], "mode", &mode) < 0 || arg_u64(args[4], "protect", &wp.mode) < 0 ||
        uffd_ioctl(fd, mode == PMU_UFFDIO_REGISTER_MODE_RWP ? PMU_UFFDIO_RWPROTECT : PMU_UFFDIO_WRITEPROTECT,
                   &wp) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}
