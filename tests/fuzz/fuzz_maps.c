/* parse_maps() on any text: what it takes must be sorted, disjoint, and the words of the text. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint64_t start, end, offset, inode, dev;
    uint32_t name_at, name_length;
    uint8_t prot, shared, padding[6];
} record;

/* What the C library's own scanner makes of a line that was accepted. */
static void
check_line(const char *line, const record *vma, uint64_t floor)
{
    unsigned long long start, end, offset, inode;
    unsigned major, minor;
    char flags[5];

    MUST(sscanf(line, "%llx-%llx %4c %llx %x:%x %llu", &start, &end, flags, &offset, &major, &minor,
                &inode) == 7);
    MUST(vma->end == end && vma->inode == inode);
    MUST(vma->start == (start > floor ? start : floor));
    MUST(vma->offset == offset + (vma->start - start));
    MUST(vma->prot == ((flags[0] == 'r') | (flags[1] == 'w') << 1 | (flags[2] == 'x') << 2));
    MUST(vma->shared == (flags[3] == 's'));
}

static void
check(const char *text, size_t size, const record *vmas, size_t count)
{
    const char *line = text;
    uint64_t floor = 0;

    for (size_t i = 0; i < count; i++) {
        const record *vma = &vmas[i];
        const char *name = text + vma->name_at;
        const char *end = name + vma->name_length;

        MUST(vma->start >= floor && vma->start < vma->end);
        MUST((size_t)vma->name_at + vma->name_length < size && *end == '\n');
        MUST(memchr(name, '\n', vma->name_length) == NULL);
        /* Lines may have been passed over, as lying within their predecessors. */
        while (memchr(line, '\n', (size_t)(name - line)) != NULL) {
            line = (const char *)memchr(line, '\n', (size_t)(name - line)) + 1;
        }
        check_line(line, vma, floor);
        floor = vma->end;
        line = end + 1;
    }
}

void
fuzz_prepare(void)
{
}

void
fuzz_one(PyObject *module, const uint8_t *data, size_t size)
{
    /* A copy of the exact size: a look past the end is an error of the sanitizer's, and sscanf() needs a 0.
     */
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
    PyObject *records = PyObject_CallMethod(module, "parse_maps", "O", bytes);
    char *raw;
    Py_ssize_t length;

    if (records == NULL) {
        must_be_refusal();
    } else {
        MUST(PyBytes_AsStringAndSize(records, &raw, &length) == 0 &&
             length % (Py_ssize_t)sizeof(record) == 0);
        check(PyBytes_AsString(bytes), size, (const record *)(void *)raw, (size_t)length / sizeof(record));
        Py_DECREF(records);
    }
    Py_DECREF(bytes);
}
