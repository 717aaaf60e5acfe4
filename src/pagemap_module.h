/* What the rooms of the extension share: the module's state, argument checks, the region buffer. */
#ifndef PAGEMAP_MODULE_H
#define PAGEMAP_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pagemap_uapi.h"

enum { SCAN_KEYWORD_COUNT = 7 };

typedef struct {
    /* Interned, so that a caller's literal matches by identity. */
    PyObject *scan_keywords[SCAN_KEYWORD_COUNT];
    PyObject *str_dtype;
    PyObject *str_hasobject;
    PyObject *region_buffer_type;
    /* The first dtype without Python objects that was met: as a rule the only one. */
    _Atomic(PyObject *) plain_dtype;
} module_state;

/* Which pages to select and what to report of them: the masks of struct pm_scan_arg, for both engines. */
typedef struct {
    uint64_t inverted;
    uint64_t mask;
    uint64_t anyof;
    uint64_t report;
} selection;

static inline bool
selection_matches(const selection *s, uint64_t categories)
{
    uint64_t c = categories ^ s->inverted;

    return (c & s->mask) == s->mask && (s->anyof == 0 || (c & s->anyof) != 0);
}

/* args.c: 0, or -1 with a TypeError or ValueError that names the argument. */
int arg_u64_checked(PyObject *value, const char *name, uint64_t *out);
int arg_int(PyObject *value, const char *name, int *out);
int arg_selection(PyObject *const *args, selection *out);
int arg_masks(PyObject *tuple, selection *out);
int arg_count(const char *function, Py_ssize_t given, Py_ssize_t expected);

/* The common case, an int below 2**63, inline: a scan of one page has ten such arguments. */
static inline int
arg_u64(PyObject *value, const char *name, uint64_t *out)
{
    int overflow;
    long long small = Py_IS_TYPE(value, &PyLong_Type) ? PyLong_AsLongLongAndOverflow(value, &overflow) : -1;

    if (small < 0) {
        return arg_u64_checked(value, name, out);
    }
    *out = (uint64_t)small;
    return 0;
}

/* OSError of the fitting subclass, with a C errno that was kept while the GIL was taken again. NULL. */
PyObject *raise_errno(int error);

/* A tuple that takes over new references; NULL among them means that an exception is set. Py_BuildValue
 * costs as much as a system call. */
PyObject *tuple_of(PyObject *const *items, Py_ssize_t count);

/* uffd.c. Stores a new descriptor as `owner.fd`, or closes it: 0, or -1 with an exception. Python looks for
 * signals as soon as a function has returned, so that a handler which raises loses what is returned. */
int give_descriptor(PyObject *owner, int fd);

/* memory.c: anonymous memory, of whole pages, for munmap(); NULL when there is none. */
static const size_t HUGE_SIZE = 2 << 20; /* a huge page where pages have 4 KiB */
void *memory_map(size_t length);
void *memory_resize(void *memory, size_t old_length, size_t length);

/* regions.c. Merges neighbours that touch and report the same into one, in place, from `from` on (and `from`
 * with the one before it); returns the new length. */
size_t regions_merge(struct pmu_page_region *regions, size_t from, size_t length);
uint64_t regions_pages(const struct pmu_page_region *regions, size_t count);

/*
 * region_buffer.c: one mapping, one owner. `hold` is the number of exported views, or -1 while a
 * system call writes into the memory or it is being resized; every change of it is atomic, so views
 * and writers exclude each other without the GIL. `capacity` and `length` are atomic because anybody may
 * ask for them meanwhile; the rest is the holder's.
 */
typedef struct {
    PyObject_HEAD
    struct pmu_page_region *regions;
    size_t map_length;      /* bytes mapped */
    atomic_size_t capacity; /* regions that fit */
    atomic_size_t length;   /* left by the last scan, read or append: what an interrupted caller salvages */
    atomic_long hold;
} RegionBuffer;

extern PyType_Spec region_buffer_spec;

/* Any writable memory of whole regions, from the buffer protocol. */
typedef struct {
    Py_buffer view;
    struct pmu_page_region *regions;
    size_t count;
} region_view;

/* 0, or -1 with TypeError or ValueError. Release it with PyBuffer_Release(&out->view). */
int region_view_acquire(module_state *state, PyObject *object, region_view *out);

/* Whether a buffer of this format (PyBUF_FORMAT) holds Python objects, which the kernel must not overwrite.
 * Field names stand between colons and may hold any letter. */
bool format_has_objects(const char *format);

/* Functions of the module, one room each. */
PyObject *pagemap_scan(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
enum { SMALL_PAGES = 128 };
PyObject *pagemap_scan_small(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *pagemap_decode_entries(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *pagemap_read_entries(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *pagemap_read_maps(PyObject *module, PyObject *fd);
PyObject *pagemap_parse_maps(PyObject *module, PyObject *text);
PyObject *pagemap_query_vma(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *pagemap_userfaultfd(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *pagemap_uffd_api(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *pagemap_uffd_register(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *pagemap_uffd_unregister(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *pagemap_uffd_protect(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

/* The two engines, without Python: 0, or an errno. Both append to `vec` and may be called with the GIL
 * released; `walk_end` is where the walk stopped. */
typedef struct {
    uint64_t start;
    uint64_t end;
    uint64_t max_pages; /* 0: no limit */
    uint64_t flags;
    selection select;
} scan_request;

typedef struct {
    size_t count;      /* regions written to vec */
    uint64_t walk_end; /* as the engine says it: see kernel contract in scan.c */
    uint64_t pages;    /* pages in these regions */
} scan_result;

int scan_ioctl(int fd, const scan_request *request, struct pmu_page_region *vec, size_t vec_len,
               uint64_t *walk_end, size_t *count);
int read_ranges(int fd, const uint64_t (*ranges)[2], size_t range_count, const scan_request *request,
                struct pmu_page_region *vec, size_t vec_len, scan_result *result);
/* Refuses, with an exception set, the write-protecting walks that break kernels. */
int refuse_unsafe_wp(uint64_t flags, const selection *select, bool has_vec);

#endif
