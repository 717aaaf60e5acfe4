/*
 * Entries of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): reading them, and the run
 * decoder that turns them into regions. Selection and coalescing are one pass.
 */
#include "pagemap_module.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* 64 KiB of entries at a time: larger chunks only fall out of the cache. */
enum { CHUNK_ENTRIES = 8192 };
/* A call returns to Python, which looks for signals, after so many chunks (8 Mi pages, about 0.2 s). */
enum { CHUNKS_PER_CALL = 1024 };

static const uint64_t CATEGORY_BITS = PME_PRESENT | PME_SWAPPED | PME_FILE | PME_GUARD | PME_SOFT_DIRTY;

static inline uint64_t
entry_categories(uint64_t entry)
{
    return (entry & PME_PRESENT ? PAGE_IS_PRESENT : 0) | (entry & PME_SWAPPED ? PAGE_IS_SWAPPED : 0) |
           (entry & PME_FILE ? PAGE_IS_FILE : 0) | (entry & PME_SOFT_DIRTY ? PAGE_IS_SOFT_DIRTY : 0) |
           (entry & PME_GUARD ? PAGE_IS_GUARD : 0);
}

/* The bits of CATEGORY_BITS side by side: 61 to 63, 58, 55. */
enum { VERDICTS = 32 };
static inline unsigned
entry_key(uint64_t entry)
{
    return (unsigned)(entry >> 61 << 2 | (entry >> 57 & 2) | (entry >> 55 & 1));
}

static const uint64_t NO_MATCH = UINT64_MAX;

typedef struct {
    struct pmu_page_region *vec;
    size_t vec_len;
    size_t count;
    uint64_t pages;
    uint64_t max_pages;
    uint64_t page_size;
    uint64_t relevant;          /* the bits of an entry that the selection looks at */
    uint64_t verdict[VERDICTS]; /* by entry_key(): what a page reports, or NO_MATCH */
} decoder;

static void
decoder_select(decoder *d, const selection *select)
{
    uint64_t asked = select->mask | select->anyof | select->report;

    d->relevant = 0;
    for (int bit = 55; bit < 64; bit++) {
        uint64_t entry = UINT64_C(1) << bit & CATEGORY_BITS;

        d->relevant |= entry_categories(entry) & asked ? entry : 0;
    }
    for (uint64_t key = 0; key < VERDICTS; key++) {
        uint64_t categories = entry_categories(key >> 2 << 61 | (key & 2) << 57 | (key & 1) << 55);

        d->verdict[key] = selection_matches(select, categories) ? categories & select->report : NO_MATCH;
    }
}

/*
 * Decodes a run of pages after the other with the kernel's rule: a region grows while pages are adjacent and
 * report the same. Returns the address at which it stopped: behind the last entry, or at the first page that
 * did not fit. What the loop changes is in locals: a store to vec could else be one to the decoder.
 */
static uint64_t
decode_run(decoder *d, const uint64_t *entries, size_t count, uint64_t address)
{
    const uint64_t relevant = d->relevant, page_size = d->page_size;
    const uint64_t all = d->max_pages == 0 ? UINT64_MAX : d->max_pages - d->pages;
    struct pmu_page_region *next = d->vec + d->count, *const end = d->vec + d->vec_len;
    uint64_t left = all;
    size_t i = 0;

    while (i < count && left > 0) {
        uint64_t bits = entries[i] & relevant;
        uint64_t reported = d->verdict[entry_key(bits)];
        size_t first = i++;

        while (i < count && (entries[i] & relevant) == bits) {
            i++;
        }
        if (reported == NO_MATCH) {
            continue;
        }
        if (i - first > left) {
            i = first + left;
        }
        if (next > d->vec && next[-1].end == address + first * page_size && next[-1].categories == reported) {
            next[-1].end = address + i * page_size;
        } else if (next < end) {
            *next++ =
                (struct pmu_page_region){address + first * page_size, address + i * page_size, reported};
        } else {
            i = first;
            break;
        }
        left -= i - first;
    }
    d->count = (size_t)(next - d->vec);
    d->pages += all - left;
    return address + i * page_size;
}

/* Reads `count` entries from that of `address` on: 0, or an errno. */
static int
pread_entries(int fd, uint64_t address, uint64_t page_size, uint64_t *entries, size_t count)
{
    char *at = (char *)entries;
    size_t left = count * sizeof(*entries);
    off_t offset = (off_t)(address / page_size * sizeof(*entries));

    while (left > 0) {
        ssize_t n = pread(fd, at, left, offset);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno;
        }
        /* End of file inside the address space: the process has gone, and its memory with it. */
        if (n == 0) {
            return ESRCH;
        }
        at += n;
        offset += n;
        left -= (size_t)n;
    }
    return 0;
}

int
read_ranges(int fd, const uint64_t (*ranges)[2], size_t range_count, const scan_request *request,
            struct pmu_page_region *vec, size_t vec_len, scan_result *result)
{
    const uint64_t page_size = (uint64_t)sysconf(_SC_PAGESIZE);
    decoder d = {
        .vec = vec,
        .vec_len = vec_len,
        .max_pages = request->max_pages,
        .page_size = page_size,
    };
    uint64_t *entries = malloc(CHUNK_ENTRIES * sizeof(*entries));
    uint64_t walk_end = request->end;
    int chunks = 0;
    int error = 0;

    if (entries == NULL) {
        return ENOMEM;
    }
    decoder_select(&d, &request->select);
    for (size_t i = 0; i < range_count; i++) {
        uint64_t at = ranges[i][0] > request->start ? ranges[i][0] : request->start;
        uint64_t end = ranges[i][1] < request->end ? ranges[i][1] : request->end;

        while (at < end && end - at >= page_size) {
            size_t pages = (size_t)((end - at) / page_size);
            size_t n = pages < CHUNK_ENTRIES ? pages : CHUNK_ENTRIES;
            uint64_t stop;

            if (chunks++ == CHUNKS_PER_CALL) {
                walk_end = at;
                goto done;
            }
            error = pread_entries(fd, at, page_size, entries, n);
            if (error != 0) {
                goto done;
            }
            stop = decode_run(&d, entries, n, at);
            if (stop < at + n * page_size || (d.max_pages != 0 && d.pages == d.max_pages)) {
                walk_end = stop;
                goto done;
            }
            at = stop;
        }
    }
done:
    free(entries);
    result->count = d.count;
    result->pages = d.pages;
    result->walk_end = walk_end;
    return error;
}

/* decode_entries(entries, start, vec, max_pages, inverted, mask, anyof, report) -> (n, walk_end) */
PyObject *
pagemap_decode_entries(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    module_state *state = PyModule_GetState(module);
    Py_buffer entries = {.obj = NULL};
    region_view vec = {.regions = NULL};
    selection select;
    decoder d = {.page_size = (uint64_t)sysconf(_SC_PAGESIZE)};
    uint64_t start, walk_end;
    PyObject *result = NULL;

    if (arg_count("decode_entries", nargs, 8) < 0 || arg_u64(args[1], "start", &start) < 0 ||
        arg_u64(args[3], "max_pages", &d.max_pages) < 0 || arg_selection(args + 4, &select) < 0) {
        return NULL;
    }
    if (PyObject_GetBuffer(args[0], &entries, PyBUF_ND) < 0) {
        return NULL;
    }
    if (entries.len % (Py_ssize_t)sizeof(uint64_t) != 0 || (uintptr_t)entries.buf % sizeof(uint64_t) != 0) {
        PyErr_SetString(PyExc_ValueError, "entries must be aligned and hold whole entries of 8 bytes");
        goto done;
    }
    if (region_view_acquire(state, args[2], &vec) < 0) {
        goto done;
    }
    if ((uintptr_t)vec.regions % sizeof(uint64_t) != 0) {
        PyErr_SetString(PyExc_ValueError, "vec must be aligned to 8 bytes");
        goto done;
    }
    d.vec = vec.regions;
    d.vec_len = vec.count;
    decoder_select(&d, &select);

    Py_BEGIN_ALLOW_THREADS
    walk_end = decode_run(&d, entries.buf, (size_t)entries.len / sizeof(uint64_t), start);
    Py_END_ALLOW_THREADS

    result = tuple_of((PyObject *[]){PyLong_FromSize_t(d.count), PyLong_FromUnsignedLongLong(walk_end)}, 2);
done:
    PyBuffer_Release(&vec.view);
    PyBuffer_Release(&entries);
    return result;
}

/* read_entries(fd, start, out): fills out, a writable buffer of u64, with the entries from `start` on. */
PyObject *
pagemap_read_entries(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer out;
    uint64_t start;
    int fd, error;

    if (arg_count("read_entries", nargs, 3) < 0 || arg_int(args[0], "fd", &fd) < 0 ||
        arg_u64(args[1], "start", &start) < 0 ||
        PyObject_GetBuffer(args[2], &out, PyBUF_ND | PyBUF_WRITABLE | PyBUF_FORMAT) < 0) {
        return NULL;
    }
    if (format_has_objects(out.format)) {
        PyErr_SetString(PyExc_TypeError, "out holds Python objects: the kernel would overwrite them");
        PyBuffer_Release(&out);
        return NULL;
    }
    if (out.itemsize != sizeof(uint64_t)) {
        PyErr_SetString(PyExc_ValueError, "out must hold items of 8 bytes");
        PyBuffer_Release(&out);
        return NULL;
    }

    Py_BEGIN_ALLOW_THREADS
    error = pread_entries(fd, start, (uint64_t)sysconf(_SC_PAGESIZE), out.buf,
                          (size_t)out.len / sizeof(uint64_t));
    Py_END_ALLOW_THREADS

    PyBuffer_Release(&out);
    if (error != 0) {
        return raise_errno(error);
    }
    Py_RETURN_NONE;
}
