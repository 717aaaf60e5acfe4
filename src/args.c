/* Argument checks: every refusal names the argument and comes before anything is changed. */
#include "pagemap_module.h"

#include <errno.h>
#include <limits.h>

int
arg_u64_checked(PyObject *value, const char *name, uint64_t *out)
{
    PyObject *index = PyNumber_Index(value);

    if (index == NULL) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Format(PyExc_TypeError, "%s must be an integer, not %R", name, (PyObject *)Py_TYPE(value));
        }
        return -1;
    }
    *out = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if (*out == UINT64_MAX && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_Format(PyExc_ValueError, "%s must be between 0 and 2**64 - 1, not %R", name, value);
        }
        return -1;
    }
    return 0;
}

PyObject *
raise_errno(int error)
{
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

PyObject *
tuple_of(PyObject *const *items, Py_ssize_t count)
{
    PyObject *tuple = PyTuple_New(count);

    for (Py_ssize_t i = 0; i < count; i++) {
        if (items[i] == NULL || tuple == NULL) {
            Py_XDECREF(items[i]);
            continue;
        }
        PyTuple_SetItem(tuple, i, items[i]);
    }
    if (PyErr_Occurred()) {
        Py_CLEAR(tuple);
    }
    return tuple;
}

int
arg_int(PyObject *value, const char *name, int *out)
{
    uint64_t wide;

    if (arg_u64(value, name, &wide) < 0) {
        return -1;
    }
    if (wide > INT_MAX) {
        PyErr_Format(PyExc_ValueError, "%s must be at most %d, not %R", name, INT_MAX, value);
        return -1;
    }
    *out = (int)wide;
    return 0;
}

int
arg_selection(PyObject *const *args, selection *out)
{
    if (arg_u64(args[0], "category_inverted", &out->inverted) < 0 ||
        arg_u64(args[1], "category_mask", &out->mask) < 0 ||
        arg_u64(args[2], "category_anyof_mask", &out->anyof) < 0 ||
        arg_u64(args[3], "return_mask", &out->report) < 0) {
        return -1;
    }
    return 0;
}

int
arg_masks(PyObject *tuple, selection *out)
{
    PyObject *masks[4];

    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != 4) {
        PyErr_Format(PyExc_TypeError, "masks must be a tuple of four, not %R", tuple);
        return -1;
    }
    for (int i = 0; i < 4; i++) {
        masks[i] = PyTuple_GetItem(tuple, i);
    }
    return arg_selection(masks, out);
}

int
arg_count(const char *function, Py_ssize_t given, Py_ssize_t expected)
{
    if (given != expected) {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd positional arguments, %zd given", function, expected,
                     given);
        return -1;
    }
    return 0;
}
