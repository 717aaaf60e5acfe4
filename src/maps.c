/* The VMA list: the text of /proc/PID/maps (fs/proc/task_mmu.c, show_map_vma), and PROCMAP_QUERY. */
#include "pagemap_module.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* One VMA; its name is text[name_at : name_at + name_length]. */
typedef struct {
    uint64_t start;
    uint64_t end;
    uint64_t offset;
    uint64_t inode;
    uint64_t dev;
    uint32_t name_at;
    uint32_t name_length;
    uint8_t prot;
    uint8_t shared;
    uint8_t padding[6];
} vma_record;
_Static_assert(sizeof(vma_record) == 56, "VMA_DTYPE has items of 56 bytes");

typedef struct {
    const char *at;
    const char *end;
} cursor;

static bool
take_number(cursor *c, unsigned base, uint64_t *out)
{
    const char *first = c->at;
    uint64_t value = 0;

    for (; c->at < c->end; c->at++) {
        unsigned char ch = (unsigned char)*c->at;
        unsigned digit = ch - '0';

        if (digit > 9) {
            digit = (ch | 0x20u) - 'a' + 10u;
            if (digit < 10 || digit >= base) {
                break;
            }
        }
        if (value > (UINT64_MAX - digit) / base) {
            return false;
        }
        value = value * base + digit;
    }
    *out = value;
    return c->at > first;
}

static bool
take_char(cursor *c, char expected)
{
    if (c->at == c->end || *c->at != expected) {
        return false;
    }
    c->at++;
    return true;
}

static bool
take_flag(cursor *c, char set, char clear, uint8_t value, uint8_t *flags)
{
    if (c->at == c->end || (*c->at != set && *c->at != clear)) {
        return false;
    }
    if (*c->at++ == set) {
        *flags |= value;
    }
    return true;
}

/* start-end rwxp offset major:minor inode            name */
static bool
take_vma(cursor *c, const char *text, vma_record *out)
{
    uint64_t major, minor;
    const char *newline;

    memset(out, 0, sizeof(*out));
    if (!take_number(c, 16, &out->start) || !take_char(c, '-') || !take_number(c, 16, &out->end) ||
        !take_char(c, ' ') || !take_flag(c, 'r', '-', PROT_READ, &out->prot) ||
        !take_flag(c, 'w', '-', PROT_WRITE, &out->prot) || !take_flag(c, 'x', '-', PROT_EXEC, &out->prot) ||
        !take_flag(c, 's', 'p', 1, &out->shared) || !take_char(c, ' ') || !take_number(c, 16, &out->offset) ||
        !take_char(c, ' ') || !take_number(c, 16, &major) || !take_char(c, ':') ||
        !take_number(c, 16, &minor) || !take_char(c, ' ') || !take_number(c, 10, &out->inode) ||
        out->end <= out->start) {
        return false;
    }
    out->dev = makedev((unsigned)major, (unsigned)minor);
    newline = memchr(c->at, '\n', (size_t)(c->end - c->at));
    if (newline == NULL) {
        return false;
    }
    while (c->at < newline && *c->at == ' ') {
        c->at++;
    }
    out->name_at = (uint32_t)(c->at - text);
    out->name_length = (uint32_t)(newline - c->at);
    c->at = newline + 1;
    return true;
}

/* parse_maps(text) -> bytes of vma_record, sorted and disjoint */
PyObject *
pagemap_parse_maps(PyObject *Py_UNUSED(module), PyObject *text)
{
    Py_buffer view;
    PyObject *result = NULL;
    vma_record *records = NULL;
    size_t count = 0, room = 0, line = 0;
    uint64_t floor = 0;
    bool valid = true, memory = true;
    cursor c;

    if (PyObject_GetBuffer(text, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (view.len > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "text of more than 4 GiB");
        goto done;
    }
    c = (cursor){view.buf, (const char *)view.buf + view.len};

    Py_BEGIN_ALLOW_THREADS
    while (c.at < c.end) {
        vma_record vma;

        line++;
        valid = take_vma(&c, view.buf, &vma);
        if (!valid) {
            break;
        }
        /* The text is no snapshot: a VMA that grew or merged between two reads may overlap its predecessor.
         */
        if (vma.end <= floor) {
            continue;
        }
        if (vma.start < floor) {
            vma.offset += floor - vma.start;
            vma.start = floor;
        }
        floor = vma.end;
        if (count == room) {
            size_t grown = room == 0 ? 512 : room * 2;
            vma_record *bigger = realloc(records, grown * sizeof(*records));

            if (bigger == NULL) {
                memory = false;
                break;
            }
            records = bigger;
            room = grown;
        }
        records[count++] = vma;
    }
    Py_END_ALLOW_THREADS

    if (!memory) {
        PyErr_NoMemory();
    } else if (!valid) {
        PyErr_Format(PyExc_ValueError, "line %zu is not a line of /proc/PID/maps", line);
    } else {
        result = PyBytes_FromStringAndSize((const char *)records, (Py_ssize_t)(count * sizeof(*records)));
    }
done:
    free(records);
    PyBuffer_Release(&view);
    return result;
}

/* read_maps(fd) -> bytes: the whole text of an open /proc/PID/maps, from its beginning. */
PyObject *
pagemap_read_maps(PyObject *Py_UNUSED(module), PyObject *fd_object)
{
    PyObject *result = NULL;
    char *text = NULL;
    size_t length = 0, room = 0;
    int fd, error = 0;

    if (arg_int(fd_object, "fd", &fd) < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    for (;;) {
        ssize_t n;

        if (room - length < 4096) {
            size_t grown = room == 0 ? 65536 : room * 2;
            char *bigger = realloc(text, grown);

            if (bigger == NULL) {
                error = ENOMEM;
                break;
            }
            text = bigger;
            room = grown;
        }
        n = pread(fd, text + length, room - length, (off_t)length);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            error = n < 0 ? errno : 0;
            break;
        }
        length += (size_t)n;
    }
    Py_END_ALLOW_THREADS

    if (error != 0) {
        raise_errno(error);
    } else {
        result = PyBytes_FromStringAndSize(text, (Py_ssize_t)length);
    }
    free(text);
    return result;
}

/* query_vma(fd, address) -> (start, end, page_size, inode) of the VMA that covers the address or follows it,
 * or None: PROCMAP_QUERY */
PyObject *
pagemap_query_vma(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    struct pmu_procmap_query query = {.size = sizeof(query), .query_flags = PMU_QUERY_COVERING_OR_NEXT};
    int fd, error = 0;

    if (arg_count("query_vma", nargs, 2) < 0 || arg_int(args[0], "fd", &fd) < 0 ||
        arg_u64(args[1], "address", &query.query_addr) < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    if (ioctl(fd, PROCMAP_QUERY, &query) < 0) {
        error = errno;
    }
    Py_END_ALLOW_THREADS

    if (error == ENOENT) {
        Py_RETURN_NONE;
    }
    if (error != 0) {
        return raise_errno(error);
    }
    return tuple_of((PyObject *[]){PyLong_FromUnsignedLongLong(query.vma_start),
                                   PyLong_FromUnsignedLongLong(query.vma_end),
                                   PyLong_FromUnsignedLongLong(query.vma_page_size),
                                   PyLong_FromUnsignedLongLong(query.inode)},
                    4);
}
