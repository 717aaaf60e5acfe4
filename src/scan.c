/* The PAGEMAP_SCAN ioctl (fs/proc/task_mmu.c, do_pagemap_scan), one to one. */
#include "pagemap_module.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

int
scan_ioctl(int fd, const scan_request *request, struct pmu_page_region *vec, size_t vec_len,
           uint64_t *walk_end, size_t *count)
{
    struct pmu_scan_arg arg = {
        .size = sizeof(arg),
        .flags = request->flags,
        .start = request->start,
        .end = request->end,
        .vec = (uint64_t)(uintptr_t)vec,
        .vec_len = vec_len,
        .max_pages = request->max_pages,
        .category_inverted = request->select.inverted,
        .category_mask = request->select.mask,
        .category_anyof_mask = request->select.anyof,
        .return_mask = request->select.report,
    };
    int n = ioctl(fd, PAGEMAP_SCAN, &arg);

    if (n < 0) {
        return errno;
    }
    *walk_end = arg.walk_end;
    *count = (size_t)n;
    return 0;
}

int
refuse_unsafe_wp(uint64_t flags, const selection *select, bool has_vec)
{
    if (!(flags & PM_SCAN_WP_MATCHING)) {
        return 0;
    }
    if (!has_vec) {
        PyErr_SetString(PyExc_ValueError,
                        "WP_MATCHING needs a vec of at least one region: without one, kernels from 6.7 to "
                        "6.17 dereference NULL at a part of a transparent huge page");
        return -1;
    }
    if (!(select->mask & PAGE_IS_WRITTEN) || (select->inverted & PAGE_IS_WRITTEN)) {
        PyErr_SetString(PyExc_ValueError,
                        "WP_MATCHING needs WRITTEN in category_mask and not in category_inverted: with other "
                        "masks, kernels from 6.7 to mid 2026 deadlock at unpopulated hugetlb memory");
        return -1;
    }
    return 0;
}

bool
format_has_objects(const char *format)
{
    bool in_name = false;

    for (; format != NULL && *format != '\0'; format++) {
        if (*format == ':') {
            in_name = !in_name;
        } else if (*format == 'O' && !in_name) {
            return true;
        }
    }
    return false;
}

/*
 * NumPy composes its format string anew for every request, which costs more than the system call. An
 * array is therefore asked for dtype.hasobject, and for its memory without the format. Others are not asked:
 * an AttributeError costs as much as the format.
 * 1: has objects; 0: has none; -1: not an array, look at the format.
 */
static int
dtype_has_objects(module_state *state, PyObject *object)
{
    PyObject *dtype, *has, *none = NULL;
    int result = -1;

    if (PyMemoryView_Check(object) || PyByteArray_Check(object)) {
        return -1;
    }
    dtype = PyObject_GetAttr(object, state->str_dtype);
    if (dtype == NULL) {
        PyErr_Clear();
        return -1;
    }
    if (dtype == atomic_load_explicit(&state->plain_dtype, memory_order_relaxed)) {
        Py_DECREF(dtype);
        return 0;
    }
    has = PyObject_GetAttr(dtype, state->str_hasobject);
    if (has == NULL) {
        PyErr_Clear();
    } else if (has == Py_True || has == Py_False) {
        result = has == Py_True;
    }
    Py_XDECREF(has);
    if (result != 0 || !atomic_compare_exchange_strong(&state->plain_dtype, &none, dtype)) {
        Py_DECREF(dtype);
    }
    return result;
}

int
region_view_acquire(module_state *state, PyObject *object, region_view *out)
{
    int objects =
        (PyObject *)Py_TYPE(object) == state->region_buffer_type ? 0 : dtype_has_objects(state, object);
    int flags = PyBUF_WRITABLE | PyBUF_ND | (objects < 0 ? PyBUF_FORMAT : 0);

    if (PyObject_GetBuffer(object, &out->view, flags) < 0) {
        if (!PyObject_CheckBuffer(object)) {
            PyErr_Format(PyExc_TypeError, "vec must be a writable buffer of 24-byte items, not %R",
                         (PyObject *)Py_TYPE(object));
        } else if (PyErr_ExceptionMatches(PyExc_BufferError) || PyErr_ExceptionMatches(PyExc_ValueError)) {
            PyErr_SetString(PyExc_ValueError,
                            "vec must be writable, C-contiguous and not in use by another scan");
        }
        return -1;
    }
    if (objects > 0 || (objects < 0 && format_has_objects(out->view.format))) {
        PyErr_SetString(PyExc_ValueError, "vec holds Python objects: the kernel would overwrite them");
        goto fail;
    }
    if (out->view.itemsize != sizeof(struct pmu_page_region) && out->view.itemsize != 1) {
        PyErr_Format(PyExc_ValueError,
                     "vec has items of %zd bytes: they must be regions of 24 bytes (REGION_DTYPE)",
                     out->view.itemsize);
        goto fail;
    }
    out->regions = out->view.buf;
    out->count = (size_t)out->view.len / sizeof(struct pmu_page_region);
    if (out->count == 0 || (size_t)out->view.len % sizeof(struct pmu_page_region) != 0) {
        PyErr_Format(
            PyExc_ValueError,
            "vec has %zd bytes: it must hold one or more whole regions of 24 bytes (None for no output)",
            out->view.len);
        goto fail;
    }
    return 0;
fail:
    PyBuffer_Release(&out->view);
    return -1;
}

enum scan_positional { ARG_FD, ARG_START, ARG_END, ARG_VEC, POSITIONAL };

static int
keyword_index(module_state *state, PyObject *name)
{
    for (int i = 0; i < SCAN_KEYWORD_COUNT; i++) {
        if (state->scan_keywords[i] == name) {
            return i;
        }
    }
    for (int i = 0; i < SCAN_KEYWORD_COUNT; i++) {
        if (PyUnicode_Compare(state->scan_keywords[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

PyObject *
pagemap_scan(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    module_state *state = PyModule_GetState(module);
    PyObject *vec_object = nargs > ARG_VEC ? args[ARG_VEC] : Py_None;
    Py_ssize_t keyword_count = kwnames == NULL ? 0 : PyTuple_Size(kwnames);
    scan_request request = {0};
    /* In the order of state->scan_keywords; `vec` may also stand by position. */
    uint64_t *const targets[SCAN_KEYWORD_COUNT] = {
        NULL,
        &request.flags,
        &request.max_pages,
        &request.select.inverted,
        &request.select.mask,
        &request.select.anyof,
        &request.select.report,
    };
    static const char *const names[SCAN_KEYWORD_COUNT] = {
        "vec",         "flags", "max_pages", "category_inverted", "category_mask", "category_anyof_mask",
        "return_mask",
    };
    region_view vec = {.regions = NULL, .count = 0};
    uint64_t walk_end = 0;
    size_t count = 0;
    int fd, error;

    if (nargs < ARG_VEC || nargs > POSITIONAL) {
        PyErr_Format(PyExc_TypeError,
                     "pagemap_scan() takes fd, start, end and vec by position, %zd arguments given", nargs);
        return NULL;
    }
    for (Py_ssize_t k = 0; k < keyword_count; k++) {
        PyObject *name = PyTuple_GetItem(kwnames, k);
        int i = keyword_index(state, name);

        if (i < 0 || (i == 0 && nargs > ARG_VEC)) {
            PyErr_Format(PyExc_TypeError, "pagemap_scan() got %s keyword argument %R",
                         i < 0 ? "an unexpected" : "a repeated", name);
            return NULL;
        }
        if (i == 0) {
            vec_object = args[nargs + k];
        } else if (arg_u64(args[nargs + k], names[i], targets[i]) < 0) {
            return NULL;
        }
    }
    fd = PyObject_AsFileDescriptor(args[ARG_FD]);
    if (fd < 0 && PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Format(PyExc_ValueError, "fd must be at most %d, not %R", INT_MAX, args[ARG_FD]);
    }
    if (fd < 0 || arg_u64(args[ARG_START], "start", &request.start) < 0 ||
        arg_u64(args[ARG_END], "end", &request.end) < 0 ||
        refuse_unsafe_wp(request.flags, &request.select, vec_object != Py_None) < 0) {
        return NULL;
    }
    if (vec_object != Py_None && region_view_acquire(state, vec_object, &vec) < 0) {
        return NULL;
    }

    Py_BEGIN_ALLOW_THREADS
    error = scan_ioctl(fd, &request, vec.regions, vec.count, &walk_end, &count);
    Py_END_ALLOW_THREADS

    if (vec.regions != NULL) {
        PyBuffer_Release(&vec.view);
    }
    if (error != 0) {
        return raise_errno(error);
    }
    return tuple_of((PyObject *[]){PyLong_FromSize_t(count), PyLong_FromUnsignedLongLong(walk_end)}, 2);
}

/* scan_small(fd, start, end, masks) -> bytearray: every region of a range so small that the stack has room
 * for a region for each of its pages. An array with its export costs more than the system call. */
PyObject *
pagemap_scan_small(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    struct pmu_page_region vec[SMALL_PAGES];
    scan_request request = {0};
    const uint64_t page_size = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t length, pages, walk_end = 0;
    size_t count = 0;
    int fd, error;

    if (arg_count("scan_small", nargs, 4) < 0 || arg_int(args[0], "fd", &fd) < 0 ||
        arg_u64(args[1], "start", &request.start) < 0 || arg_u64(args[2], "end", &request.end) < 0 ||
        arg_masks(args[3], &request.select) < 0) {
        return NULL;
    }
    length = request.end - request.start;
    pages = length / page_size + (length % page_size != 0); /* the kernel looks at whole pages */
    if (request.end < request.start || pages > SMALL_PAGES) {
        PyErr_Format(PyExc_ValueError, "the range must be of %d pages at most", SMALL_PAGES);
        return NULL;
    }

    Py_BEGIN_ALLOW_THREADS
    error = scan_ioctl(fd, &request, vec, pages, &walk_end, &count);
    Py_END_ALLOW_THREADS

    if (error != 0) {
        return raise_errno(error);
    }
    return PyByteArray_FromStringAndSize((const char *)vec, (Py_ssize_t)(count * sizeof(vec[0])));
}
