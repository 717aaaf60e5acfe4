/* decode_entries() on any entries, selection and room, against the rule said page by page. */
#include "harness.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_ENTRIES = 4096 };

typedef struct {
    uint64_t start, end, categories;
} region;

typedef struct {
    uint64_t inverted, mask, anyof, report;
} masks;

/* Documentation/admin-guide/mm/pagemap.rst: bits of an entry, and of PAGEMAP_SCAN's categories. */
static const struct {
    int entry, category;
} BITS[] = {{63, 3}, {62, 4}, {61, 2}, {55, 7}, {58, 8}};

static uint64_t
categories_of(uint64_t entry)
{
    uint64_t categories = 0;

    for (size_t i = 0; i < sizeof(BITS) / sizeof(BITS[0]); i++) {
        categories |= (entry >> BITS[i].entry & 1) << BITS[i].category;
    }
    return categories;
}

/* One page after the other; where it stopped. */
static uint64_t
model(const uint64_t *entries, size_t count, uint64_t start, uint64_t page, const masks *m,
      uint64_t max_pages, region *out, size_t room, size_t *length)
{
    uint64_t pages = 0;

    *length = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t categories = categories_of(entries[i]);
        uint64_t seen = categories ^ m->inverted;
        uint64_t address = start + i * page;
        region *last = *length > 0 ? &out[*length - 1] : NULL;

        if ((seen & m->mask) != m->mask || (m->anyof != 0 && (seen & m->anyof) == 0)) {
            continue;
        }
        if (max_pages != 0 && pages == max_pages) {
            return address;
        }
        if (last != NULL && last->end == address && last->categories == (categories & m->report)) {
            last->end += page;
        } else if (*length == room) {
            return address;
        } else {
            out[(*length)++] = (region){address, address + page, categories & m->report};
        }
        pages++;
    }
    return start + count * page;
}

void
fuzz_prepare(void)
{
}

void
fuzz_one(PyObject *module, const uint8_t *data, size_t size)
{
    input in = {data, size};
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t start = (take(&in, 4) & 0xFFFFFFF) * page;
    uint64_t max_pages = take(&in, 1);
    size_t room = take(&in, 1) % 32 + 1, length, count;
    masks m = {take(&in, 2), take(&in, 2), take(&in, 2), take(&in, 2)};
    region expected[32];
    uint64_t *entries, stopped;
    PyObject *source, *target, *answer;
    unsigned long long n = 0, walk_end = 0;

    /* An entry from two bytes: the top one as it is, the other repeats it and varies the bits 55 to 48. */
    entries = malloc((MOST_ENTRIES + 5) * sizeof(*entries));
    MUST(entries != NULL);
    count = 0;
    while (in.left > 0 && count < MOST_ENTRIES) {
        uint64_t top = take(&in, 1), low = take(&in, 1);
        size_t run = (low & 0x7F) % 5 + 1;

        while (run-- > 0) {
            entries[count] = top << 56 | (low >> 7) << 55 | count;
            count++;
        }
    }
    source = PyBytes_FromStringAndSize((const char *)entries, (Py_ssize_t)(count * sizeof(*entries)));
    target = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(room * sizeof(region)));
    MUST(source != NULL && target != NULL);
    answer = PyObject_CallMethod(module, "decode_entries", "OKOKKKKK", source, (unsigned long long)start,
                                 target, (unsigned long long)max_pages, (unsigned long long)m.inverted,
                                 (unsigned long long)m.mask, (unsigned long long)m.anyof,
                                 (unsigned long long)m.report);
    MUST(answer != NULL && PyArg_ParseTuple(answer, "KK", &n, &walk_end));
    stopped = model(entries, count, start, page, &m, max_pages, expected, room, &length);
    MUST(n == length && n <= room);
    MUST(memcmp(PyByteArray_AsString(target), expected, length * sizeof(region)) == 0);
    MUST(walk_end <= start + count * page);
    /* Nothing that matches lies between the two: each may stop anywhere between two matching pages. */
    if (walk_end != stopped) {
        uint64_t from = walk_end < stopped ? walk_end : stopped, to = walk_end < stopped ? stopped : walk_end;
        region none[32];
        size_t some;

        model(entries + (from - start) / page, (to - from) / page, from, page, &m, 0, none, 32, &some);
        MUST(some == 0);
    }
    Py_DECREF(answer);
    Py_DECREF(target);
    Py_DECREF(source);
    free(entries);
}
