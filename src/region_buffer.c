/*
 * RegionBuffer: page-aligned memory that the kernel fills and NumPy views. It grows by mremap, which
 * moves pages and not bytes, never while a view exists, and unmaps when it is collected, which its
 * views, holding a reference, prevent.
 */
#include "pagemap_module.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HOLD_WRITER = -1 };
/* One system call fills at most so many regions (768 KiB): they are looked at while they are in the cache. */
enum { STEP_REGIONS = 32768 };

static const size_t REGION_SIZE = sizeof(struct pmu_page_region);

/* 0 with the buffer held for writing, or -1 with BufferError. */
static int
writer_acquire(RegionBuffer *self)
{
    long idle = 0;

    if (atomic_compare_exchange_strong(&self->hold, &idle, HOLD_WRITER)) {
        return 0;
    }
    PyErr_SetString(PyExc_BufferError, idle == HOLD_WRITER
                                           ? "the RegionBuffer is being written by another thread"
                                           : "the RegionBuffer has views: release them first");
    return -1;
}

static void
writer_release(RegionBuffer *self)
{
    atomic_store(&self->hold, 0);
}

static int
capacity_length(uint64_t capacity, size_t *length)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    if (capacity == 0 || capacity > (size_t)PY_SSIZE_T_MAX / REGION_SIZE - page) {
        PyErr_SetString(PyExc_ValueError, "capacity must be at least one region, and fit into memory");
        return -1;
    }
    *length = ((size_t)capacity * REGION_SIZE + page - 1) / page * page;
    return 0;
}

static PyObject *
no_memory(uint64_t capacity)
{
    return PyErr_Format(PyExc_MemoryError, "no memory for a buffer of %llu regions of 24 bytes",
                        (unsigned long long)capacity);
}

static PyObject *
region_buffer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *capacity_object;
    RegionBuffer *self;
    uint64_t capacity;
    size_t length;
    void *memory;

    if (kwargs != NULL && PyDict_Size(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "RegionBuffer() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O:RegionBuffer", &capacity_object) ||
        arg_u64(capacity_object, "capacity", &capacity) < 0 || capacity_length(capacity, &length) < 0) {
        return NULL;
    }
    self = (RegionBuffer *)alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    atomic_init(&self->hold, 0);
    Py_BEGIN_ALLOW_THREADS
    memory = memory_map(length);
    Py_END_ALLOW_THREADS
    if (memory == NULL) {
        Py_DECREF(self);
        return no_memory(capacity);
    }
    self->regions = memory;
    self->capacity = (size_t)capacity;
    self->map_length = length;
    return (PyObject *)self;
}

static void
region_buffer_dealloc(PyObject *object)
{
    RegionBuffer *self = (RegionBuffer *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    if (self->regions != NULL) {
        Py_BEGIN_ALLOW_THREADS
        munmap(self->regions, self->map_length);
        Py_END_ALLOW_THREADS
    }
    release(object);
    Py_DECREF(type);
}

static int
region_buffer_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    RegionBuffer *self = (RegionBuffer *)object;
    long hold = atomic_load(&self->hold);

    do {
        if (hold == HOLD_WRITER) {
            view->obj = NULL;
            PyErr_SetString(PyExc_BufferError, "the RegionBuffer is being written by another thread");
            return -1;
        }
    } while (!atomic_compare_exchange_weak(&self->hold, &hold, hold + 1));

    view->buf = self->regions;
    view->len = (Py_ssize_t)(self->capacity * REGION_SIZE);
    view->itemsize = (Py_ssize_t)REGION_SIZE;
    view->readonly = 0;
    view->ndim = 1;
    view->format = NULL;
    view->shape = NULL;
    view->strides = NULL;
    view->suboffsets = NULL;
    view->internal = NULL;
    if (flags & PyBUF_FORMAT) {
        view->format = "T{<Q:start:<Q:end:<Q:categories:}";
    }
    /* One dimension: the shape is the capacity, which stays as it is while the view exists. */
    _Static_assert(sizeof(atomic_size_t) == sizeof(Py_ssize_t), "capacity doubles as the shape");
    if (flags & PyBUF_ND) {
        view->shape = (Py_ssize_t *)&self->capacity;
    }
    if ((flags & PyBUF_STRIDES) == PyBUF_STRIDES) {
        view->strides = &view->itemsize;
    }
    view->obj = Py_NewRef(object);
    return 0;
}

static void
region_buffer_releasebuffer(PyObject *object, Py_buffer *Py_UNUSED(view))
{
    atomic_fetch_sub(&((RegionBuffer *)object)->hold, 1);
}

/* With the buffer held, so that its capacity stays. */
static int
check_at(RegionBuffer *self, uint64_t at)
{
    if (at >= self->capacity) {
        PyErr_Format(PyExc_ValueError, "at is %llu, but the RegionBuffer has room for %zu regions",
                     (unsigned long long)at, self->capacity);
        return -1;
    }
    return 0;
}

/* (length, resume, pages), or NULL with an engine's errno as OSError. */
static PyObject *
fill_result(int error, size_t length, uint64_t resume, uint64_t pages)
{
    if (error != 0) {
        return raise_errno(error);
    }
    return tuple_of((PyObject *[]){PyLong_FromSize_t(length), PyLong_FromUnsignedLongLong(resume),
                                   PyLong_FromUnsignedLongLong(pages)},
                    3);
}

/*
 * Where the next walk has to start. walk_end is that of the kernel's last flush of its bounce buffer, and
 * stale once a walk has found more than 512 regions; what holds is that a walk which leaves room has seen
 * the whole range, and that nothing before the end of the last region is left to see.
 */
static uint64_t
scan_resume(const scan_request *request, const scan_result *result, size_t room,
            const struct pmu_page_region *regions)
{
    uint64_t last_end;

    if (result->count < room) {
        return request->end;
    }
    last_end = regions[result->count - 1].end;
    return result->walk_end > last_end ? result->walk_end : last_end;
}

/* One PAGEMAP_SCAN into the room behind `at` regions, with the buffer held for writing: 0 or an errno. */
static int
scan_step(RegionBuffer *self, uint64_t at, int fd, const scan_request *request, scan_result *result,
          uint64_t *resume)
{
    struct pmu_page_region *room = self->regions + at;
    size_t count = self->capacity - at < STEP_REGIONS ? self->capacity - at : STEP_REGIONS;
    int error = scan_ioctl(fd, request, room, count, &result->walk_end, &result->count);

    if (error != 0) {
        return error;
    }
    *resume = scan_resume(request, result, count, room);
    result->pages = request->max_pages == 0 ? 0 : regions_pages(room, result->count);
    self->length = regions_merge(self->regions, at, at + result->count);
    if (request->max_pages != 0 && result->pages >= request->max_pages) {
        *resume = self->regions[self->length - 1].end;
    }
    return 0;
}

/* scan(at, fd, start, end, max_pages, flags, inverted, mask, anyof, report) */
static PyObject *
region_buffer_scan(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    RegionBuffer *self = (RegionBuffer *)object;
    scan_request request;
    scan_result result = {0};
    PyObject *answer = NULL;
    uint64_t at, resume = 0;
    int fd, error;

    if (arg_count("scan", nargs, 10) < 0 || arg_u64(args[0], "at", &at) < 0 ||
        arg_int(args[1], "fd", &fd) < 0 || arg_u64(args[2], "start", &request.start) < 0 ||
        arg_u64(args[3], "end", &request.end) < 0 || arg_u64(args[4], "max_pages", &request.max_pages) < 0 ||
        arg_u64(args[5], "flags", &request.flags) < 0 || arg_selection(args + 6, &request.select) < 0 ||
        refuse_unsafe_wp(request.flags, &request.select, true) < 0 || writer_acquire(self) < 0) {
        return NULL;
    }
    if (check_at(self, at) < 0) {
        goto done;
    }

    Py_BEGIN_ALLOW_THREADS
    error = scan_step(self, at, fd, &request, &result, &resume);
    Py_END_ALLOW_THREADS

    answer = fill_result(error, self->length, resume, result.pages);
done:
    writer_release(self);
    return answer;
}

/* scan_whole(fd, start, end, masks): the whole answer, copied out of the buffer, where one step is enough.
 * Most answers are that short, and setting a walk up costs more than theirs. */
static PyObject *
region_buffer_scan_whole(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    RegionBuffer *self = (RegionBuffer *)object;
    scan_request request = {0};
    scan_result result = {0};
    PyObject *answer = NULL;
    uint64_t resume = 0;
    int fd, error;

    if (arg_count("scan_whole", nargs, 4) < 0 || arg_int(args[0], "fd", &fd) < 0 ||
        arg_u64(args[1], "start", &request.start) < 0 || arg_u64(args[2], "end", &request.end) < 0 ||
        arg_masks(args[3], &request.select) < 0 || writer_acquire(self) < 0) {
        return NULL;
    }

    Py_BEGIN_ALLOW_THREADS
    error = scan_step(self, 0, fd, &request, &result, &resume);
    Py_END_ALLOW_THREADS

    if (error != 0) {
        raise_errno(error);
    } else if (resume < request.end) {
        answer = PyLong_FromUnsignedLongLong(resume);
    } else {
        answer = PyByteArray_FromStringAndSize((const char *)self->regions,
                                               (Py_ssize_t)(self->length * REGION_SIZE));
    }
    writer_release(self);
    return answer;
}

/* read(at, fd, ranges, start, end, max_pages, inverted, mask, anyof, report) */
static PyObject *
region_buffer_read(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    RegionBuffer *self = (RegionBuffer *)object;
    scan_request request = {.flags = 0};
    scan_result result = {0};
    Py_buffer ranges = {.obj = NULL};
    PyObject *answer = NULL;
    uint64_t at;
    size_t room, length = 0;
    int fd, error;

    if (arg_count("read", nargs, 10) < 0 || arg_u64(args[0], "at", &at) < 0 ||
        arg_int(args[1], "fd", &fd) < 0 || arg_u64(args[3], "start", &request.start) < 0 ||
        arg_u64(args[4], "end", &request.end) < 0 || arg_u64(args[5], "max_pages", &request.max_pages) < 0 ||
        arg_selection(args + 6, &request.select) < 0 || PyObject_GetBuffer(args[2], &ranges, PyBUF_ND) < 0) {
        return NULL;
    }
    if (ranges.len % (Py_ssize_t)sizeof(uint64_t[2]) != 0 || ranges.itemsize != sizeof(uint64_t) ||
        (uintptr_t)ranges.buf % sizeof(uint64_t) != 0) {
        PyErr_SetString(PyExc_ValueError, "ranges must be aligned pairs of u64");
        goto release;
    }
    if (writer_acquire(self) < 0) {
        goto release;
    }
    if (check_at(self, at) < 0) {
        goto done;
    }
    room = self->capacity - at;

    Py_BEGIN_ALLOW_THREADS
    error = read_ranges(fd, ranges.buf, (size_t)ranges.len / sizeof(uint64_t[2]), &request,
                        self->regions + at, room, &result);
    if (error == 0) {
        length = regions_merge(self->regions, at, at + result.count);
        self->length = length;
    }
    Py_END_ALLOW_THREADS

    answer = fill_result(error, length, result.walk_end, result.pages);
done:
    writer_release(self);
release:
    PyBuffer_Release(&ranges);
    return answer;
}

/* append(at, other, first, count) -> length: `count` regions of another RegionBuffer, from `first` on,
 * merged at the border. */
static PyObject *
region_buffer_append(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    RegionBuffer *self = (RegionBuffer *)object;
    RegionBuffer *other;
    PyObject *answer = NULL;
    uint64_t at, first, count;
    size_t length = 0;

    if (arg_count("append", nargs, 4) < 0 || arg_u64(args[0], "at", &at) < 0 ||
        arg_u64(args[2], "first", &first) < 0 || arg_u64(args[3], "count", &count) < 0) {
        return NULL;
    }
    if (Py_TYPE(args[1]) != Py_TYPE(object) || args[1] == object) {
        PyErr_SetString(PyExc_TypeError, "other must be another RegionBuffer");
        return NULL;
    }
    other = (RegionBuffer *)args[1];
    if (writer_acquire(self) < 0) {
        return NULL;
    }
    if (writer_acquire(other) < 0) {
        writer_release(self);
        return NULL;
    }
    if (first > other->capacity || count > other->capacity - first || at > self->capacity ||
        count > self->capacity - at) {
        PyErr_SetString(PyExc_ValueError, "the regions do not fit");
        goto done;
    }

    Py_BEGIN_ALLOW_THREADS
    memcpy(self->regions + at, other->regions + first, count * REGION_SIZE);
    length = regions_merge(self->regions, at, at + count);
    self->length = length;
    Py_END_ALLOW_THREADS

    answer = PyLong_FromSize_t(length);
done:
    writer_release(other);
    writer_release(self);
    return answer;
}

static PyObject *
region_buffer_clear(PyObject *object, PyObject *Py_UNUSED(unused))
{
    RegionBuffer *self = (RegionBuffer *)object;

    if (writer_acquire(self) < 0) {
        return NULL;
    }
    self->length = 0;
    writer_release(self);
    Py_RETURN_NONE;
}

static PyObject *
region_buffer_resize(PyObject *object, PyObject *capacity_object)
{
    RegionBuffer *self = (RegionBuffer *)object;
    uint64_t capacity;
    size_t length;
    void *memory;

    if (arg_u64(capacity_object, "capacity", &capacity) < 0 || capacity_length(capacity, &length) < 0 ||
        writer_acquire(self) < 0) {
        return NULL;
    }
    if (length != self->map_length) {
        Py_BEGIN_ALLOW_THREADS
        memory = memory_resize(self->regions, self->map_length, length);
        Py_END_ALLOW_THREADS
        if (memory == NULL) {
            writer_release(self);
            return no_memory(capacity);
        }
        self->regions = memory;
        self->map_length = length;
    }
    self->capacity = (size_t)capacity;
    if (self->length > self->capacity) {
        self->length = self->capacity;
    }
    writer_release(self);
    Py_RETURN_NONE;
}

static PyObject *
region_buffer_capacity(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(((RegionBuffer *)object)->capacity);
}

static PyObject *
region_buffer_length(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(((RegionBuffer *)object)->length);
}

static PyObject *
region_buffer_exports(PyObject *object, void *Py_UNUSED(closure))
{
    long hold = atomic_load(&((RegionBuffer *)object)->hold);

    return PyLong_FromLong(hold > 0 ? hold : 0);
}

static PyMethodDef region_buffer_methods[] = {
    {"scan", (PyCFunction)(void (*)(void))region_buffer_scan, METH_FASTCALL,
     PyDoc_STR("scan(at, fd, start, end, max_pages, flags, inverted, mask, anyof, report)\n"
               "-> (length, resume, pages): one PAGEMAP_SCAN into the room behind `at` regions. resume:\n"
               "where the next walk has to start, `end` when the range is done; pages: of the new regions,\n"
               "0 where there is no max_pages.")},
    {"scan_whole", (PyCFunction)(void (*)(void))region_buffer_scan_whole, METH_FASTCALL,
     PyDoc_STR(
         "scan_whole(fd, start, end, masks) -> bytearray of the regions of the whole range, or, where one\n"
         "step does not reach its end, where the next has to start: `length` regions are in the buffer.")},
    {"read", (PyCFunction)(void (*)(void))region_buffer_read, METH_FASTCALL,
     PyDoc_STR("read(at, fd, ranges, start, end, max_pages, inverted, mask, anyof, report)\n"
               "-> (length, resume, pages): the same from /proc/PID/pagemap entries.")},
    {"append", (PyCFunction)(void (*)(void))region_buffer_append, METH_FASTCALL,
     PyDoc_STR("append(at, other, first, count) -> length")},
    {"clear", region_buffer_clear, METH_NOARGS,
     PyDoc_STR("clear(): length 0; BufferError while views exist.")},
    {"resize", region_buffer_resize, METH_O,
     PyDoc_STR("resize(capacity): grow or shrink without copying; BufferError while views exist.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef region_buffer_getset[] = {
    {"capacity", region_buffer_capacity, NULL, PyDoc_STR("regions that fit"), NULL},
    {"length", region_buffer_length, NULL, PyDoc_STR("regions that the last scan, read or append left"),
     NULL},
    {"exports", region_buffer_exports, NULL, PyDoc_STR("views of the memory that exist"), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot region_buffer_slots[] = {
    {Py_tp_doc,
     (void *)PyDoc_STR("RegionBuffer(capacity): memory for `capacity` regions, outside the Python heap.")},
    {Py_tp_new, region_buffer_new},
    {Py_tp_dealloc, region_buffer_dealloc},
    {Py_tp_methods, region_buffer_methods},
    {Py_tp_getset, region_buffer_getset},
    {Py_bf_getbuffer, region_buffer_getbuffer},
    {Py_bf_releasebuffer, region_buffer_releasebuffer},
    {0, NULL},
};

PyType_Spec region_buffer_spec = {
    .name = "pagemap._pagemap.RegionBuffer",
    .basicsize = sizeof(RegionBuffer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = region_buffer_slots,
};
