/* Loops over regions, without Python. */
#include "pagemap_module.h"

#include <unistd.h>

static inline bool
touch(const struct pmu_page_region *region)
{
    return region[0].start == region[-1].end;
}

/*
 * Engines coalesce within a step, so as a rule nothing is to be merged: but for the border between two steps
 * that takes a page that changed while the kernel had let go of the mmap lock. The rule costs a look at each
 * border, four at a time: with a large answer that is all the work that is done here.
 */
size_t
regions_merge(struct pmu_page_region *regions, size_t from, size_t length)
{
    size_t i = from > 0 ? from : 1;
    size_t last;

    while (i + 4 <= length && !touch(&regions[i]) && !touch(&regions[i + 1]) && !touch(&regions[i + 2]) &&
           !touch(&regions[i + 3])) {
        i += 4;
    }
    while (i < length && !touch(&regions[i])) {
        i++;
    }
    if (i >= length) {
        return length;
    }
    for (last = i - 1; i < length; i++) {
        if (regions[i].start == regions[last].end && regions[i].categories == regions[last].categories) {
            regions[last].end = regions[i].end;
        } else {
            regions[++last] = regions[i];
        }
    }
    return last + 1;
}

uint64_t
regions_pages(const struct pmu_page_region *regions, size_t count)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < count; i++) {
        bytes += regions[i].end - regions[i].start;
    }
    return bytes / (uint64_t)sysconf(_SC_PAGESIZE);
}
