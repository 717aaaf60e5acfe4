/* inject_userfaultfd(pid, flags, owner) -> stopped_ns: see inject.h. */
#include "attach.h"

#include "inject.h"

static const char *
stage_name(enum inject_stage stage)
{
    static const char *const names[] = {
        [INJECT_TARGET] = "target",   [INJECT_TRACED] = "traced",
        [INJECT_SECCOMP] = "seccomp", [INJECT_VDSO] = "vdso",
        [INJECT_SEIZE] = "seize",     [INJECT_STOP] = "stop",
        [INJECT_CALL] = "call",       [INJECT_USERFAULTFD] = "userfaultfd",
        [INJECT_FETCH] = "fetch",
    };

    return names[stage];
}

/* OSError(errno, why), of the subclass that belongs to errno, with the stage as an attribute. */
static void
raise_injection_error(int error, const struct inject_result *result)
{
    PyObject *stage = PyUnicode_FromString(stage_name(result->stage));
    PyObject *exception =
        stage == NULL ? NULL : PyObject_CallFunction(PyExc_OSError, "is", error, result->why);

    if (exception != NULL && PyObject_SetAttrString(exception, "stage", stage) == 0) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    }
    Py_XDECREF(exception);
    Py_XDECREF(stage);
}

PyObject *
pagemap_inject_userfaultfd(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    struct inject_result result;
    int pid, flags, error;

    if (arg_count("inject_userfaultfd", nargs, 3) < 0 || arg_int(args[0], "pid", &pid) < 0 ||
        arg_int(args[1], "flags", &flags) < 0) {
        return NULL;
    }
    if (pid <= 0) {
        PyErr_Format(PyExc_ValueError, "pid must be positive, not %d", pid);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    error = inject_userfaultfd(pid, flags, &result);
    Py_END_ALLOW_THREADS

    if (error != 0) {
        raise_injection_error(-error, &result);
        return NULL;
    }
    if (give_descriptor(args[2], result.fd) < 0) {
        return NULL;
    }
    return PyLong_FromLongLong(result.stopped_ns);
}
