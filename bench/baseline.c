/*
 * The alternatives in C: what somebody who needs this once would write by hand, without Python, without
 * an abstraction, with buffers of the caller. Only the benchmarks build this (cc -O3 -shared).
 * Functions return 0 or more, or -errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../src/pagemap_uapi.h"

enum { PAGE = 4096 };

/* The ioctl in a loop into one warm buffer; a region that continues the last one of the batch before is
 * counted once. */
static long
scan_once(int fd, uint64_t start, uint64_t end, uint64_t flags, const uint64_t masks[4],
          struct pmu_page_region *vec, uint64_t vec_len)
{
    struct pmu_page_region last = {0, 0, 0};
    long total = 0;

    while (start < end) {
        struct pmu_scan_arg arg = {
            .size = sizeof(arg),
            .flags = flags,
            .start = start,
            .end = end,
            .vec = (uint64_t)(uintptr_t)vec,
            .vec_len = vec_len,
            .category_inverted = masks[0],
            .category_mask = masks[1],
            .category_anyof_mask = masks[2],
            .return_mask = masks[3],
        };
        int n = ioctl(fd, PAGEMAP_SCAN, &arg);

        if (n < 0) {
            return -errno;
        }
        if (n > 0) {
            total += n - (vec[0].start == last.end && vec[0].categories == last.categories);
            last = vec[n - 1];
        }
        if ((uint64_t)n < vec_len) {
            break;
        }
        start = arg.walk_end > last.end ? arg.walk_end : last.end;
    }
    return total;
}

/* All of it `times` times: for ranges so small that the call from Python would count. */
long
baseline_scan(int fd, uint64_t start, uint64_t end, uint64_t flags, const uint64_t masks[4],
              struct pmu_page_region *vec, uint64_t vec_len, long times)
{
    long total = 0;

    for (long i = 0; i < times && total >= 0; i++) {
        total = scan_once(fd, start, end, flags, masks, vec, vec_len);
    }
    return total;
}

/* One page, `times` times. */
long
baseline_scan_one(int fd, uint64_t start, const uint64_t masks[4], struct pmu_page_region *vec, long times)
{
    long total = 0;

    for (long i = 0; i < times; i++) {
        struct pmu_scan_arg arg = {
            .size = sizeof(arg),
            .start = start,
            .end = start + PAGE,
            .vec = (uint64_t)(uintptr_t)vec,
            .vec_len = 1,
            .category_inverted = masks[0],
            .category_mask = masks[1],
            .category_anyof_mask = masks[2],
            .return_mask = masks[3],
        };
        int n = ioctl(fd, PAGEMAP_SCAN, &arg);

        if (n < 0) {
            return -errno;
        }
        total += n;
    }
    return total;
}

long
baseline_pread_one(int fd, uint64_t start, uint64_t *entry, long times)
{
    long total = 0;

    for (long i = 0; i < times; i++) {
        if (pread(fd, entry, sizeof(*entry), (off_t)(start / PAGE * sizeof(*entry))) != sizeof(*entry)) {
            return -EIO;
        }
        total += (long)(*entry >> 63);
    }
    return total;
}

/* The present pages as runs, from /proc/PID/pagemap in chunks of `chunk` entries. */
long
baseline_pread(int fd, uint64_t start, uint64_t end, uint64_t *entries, uint64_t chunk,
               struct pmu_page_region *vec, uint64_t vec_len)
{
    uint64_t run = 0, count = 0;
    int inside = 0;
    long total = 0;

    while (start < end) {
        uint64_t want = (end - start) / PAGE < chunk ? (end - start) / PAGE : chunk;
        ssize_t got = pread(fd, entries, want * 8, (off_t)(start / PAGE * 8));

        if (got <= 0) {
            return got < 0 ? -errno : -ESRCH;
        }
        for (uint64_t i = 0, n = (uint64_t)got / 8; i < n; i++) {
            int present = (int)(entries[i] >> 63);

            if (present == inside) {
                continue;
            }
            inside = present;
            if (present) {
                run = start + i * PAGE;
            } else {
                vec[count++] = (struct pmu_page_region){run, start + i * PAGE, PAGE_IS_PRESENT};
                total++;
                count = count == vec_len ? 0 : count;
            }
        }
        start += (uint64_t)got / 8 * PAGE;
    }
    if (inside) {
        vec[count] = (struct pmu_page_region){run, end, PAGE_IS_PRESENT};
        total++;
    }
    return total;
}

/* mincore(2): is a page of this process resident (or, for a file, in the page cache)? Counts runs. */
static long
mincore_once(uint64_t start, uint64_t end, unsigned char *vec, uint64_t vec_len)
{
    int inside = 0;
    long total = 0;

    while (start < end) {
        uint64_t n = (end - start) / PAGE < vec_len ? (end - start) / PAGE : vec_len;

        if (mincore((void *)(uintptr_t)start, n * PAGE, vec) < 0) {
            return -errno;
        }
        for (uint64_t i = 0; i < n; i++) {
            int present = vec[i] & 1;

            total += present && !inside;
            inside = present;
        }
        start += n * PAGE;
    }
    return total;
}

long
baseline_mincore(uint64_t start, uint64_t end, unsigned char *vec, uint64_t vec_len, long times)
{
    long total = 0;

    for (long i = 0; i < times && total >= 0; i++) {
        total = mincore_once(start, end, vec, vec_len);
    }
    return total;
}

/* One byte in every `step`-th page from the first on. Returns the nanoseconds it took. */
long
baseline_touch(uint64_t start, uint64_t end, uint64_t step, int value)
{
    struct timespec before, after;

    clock_gettime(CLOCK_MONOTONIC, &before);
    for (uint64_t at = start; at < end; at += step * PAGE) {
        *(volatile unsigned char *)(uintptr_t)at = (unsigned char)value;
    }
    clock_gettime(CLOCK_MONOTONIC, &after);
    return (after.tv_sec - before.tv_sec) * 1000000000L + (after.tv_nsec - before.tv_nsec);
}

/* /proc/PID/maps: the numbers of each line, and where its name is. */
typedef struct {
    uint64_t start, end, offset, inode, dev;
    uint32_t name_at, name_length;
    uint32_t prot, shared;
} baseline_vma;

static const char *
number(const char *at, unsigned base, uint64_t *out)
{
    uint64_t value = 0;

    for (;; at++) {
        unsigned digit = (unsigned char)*at - '0';

        if (digit > 9) {
            digit = (unsigned char)*at - 'a' + 10u;
            if (digit < 10 || digit >= base) {
                break;
            }
        }
        value = value * base + digit;
    }
    *out = value;
    return at;
}

long
baseline_maps(int fd, char *text, uint64_t text_size, baseline_vma *vmas, uint64_t room)
{
    uint64_t length = 0, count = 0;
    const char *at = text;

    for (;;) {
        ssize_t n = pread(fd, text + length, text_size - length, (off_t)length);

        if (n < 0) {
            return -errno;
        }
        if (n == 0) {
            break;
        }
        length += (uint64_t)n;
        if (length == text_size) {
            return -ENOSPC;
        }
    }
    while (at < text + length) {
        baseline_vma *vma = &vmas[count++];
        uint64_t major, minor;
        const char *newline;

        if (count > room) {
            return -ENOSPC;
        }
        at = number(at, 16, &vma->start) + 1;
        at = number(at, 16, &vma->end) + 1;
        vma->prot =
            (uint32_t)((at[0] == 'r') * PROT_READ | (at[1] == 'w') * PROT_WRITE | (at[2] == 'x') * PROT_EXEC);
        vma->shared = at[3] == 's';
        at = number(at + 5, 16, &vma->offset) + 1;
        at = number(at, 16, &major) + 1;
        at = number(at, 16, &minor) + 1;
        at = number(at, 10, &vma->inode);
        vma->dev = major << 20 | minor;
        newline = memchr(at, '\n', (size_t)(text + length - at));
        while (at < newline && *at == ' ') {
            at++;
        }
        vma->name_at = (uint32_t)(at - text);
        vma->name_length = (uint32_t)(newline - at);
        at = newline + 1;
    }
    return (long)count;
}

/*
 * The classical write barrier: read-only memory, and a handler that notes the page and makes it writable.
 * Each page that stands alone is a VMA of its own until the next round: vm.max_map_count limits it.
 */
static struct {
    uint64_t start, end;
    unsigned char *dirty; /* one byte a page */
} barrier;
static struct sigaction barrier_before;

static void
barrier_fault(int signal, siginfo_t *info, void *context)
{
    uint64_t page = (uint64_t)(uintptr_t)info->si_addr / PAGE * PAGE;

    (void)context;
    if (page < barrier.start || page >= barrier.end ||
        mprotect((void *)(uintptr_t)page, PAGE, PROT_READ | PROT_WRITE) < 0) {
        sigaction(signal, &barrier_before, NULL);
        return;
    }
    barrier.dirty[(page - barrier.start) / PAGE] = 1;
}

long
baseline_barrier_start(uint64_t start, uint64_t end, unsigned char *dirty)
{
    struct sigaction action = {.sa_sigaction = barrier_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};

    barrier.start = start;
    barrier.end = end;
    barrier.dirty = dirty;
    memset(dirty, 0, (end - start) / PAGE);
    if (sigaction(SIGSEGV, &action, &barrier_before) < 0 ||
        mprotect((void *)(uintptr_t)start, end - start, PROT_READ) < 0) {
        return -errno;
    }
    return 0;
}

/* The written pages as runs; protects everything again. */
long
baseline_barrier_collect(struct pmu_page_region *vec, uint64_t vec_len)
{
    uint64_t count = 0, n = (barrier.end - barrier.start) / PAGE;

    if (mprotect((void *)(uintptr_t)barrier.start, barrier.end - barrier.start, PROT_READ) < 0) {
        return -errno;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint64_t word;

        if (i % 8 == 0 && n - i >= 8) {
            memcpy(&word, barrier.dirty + i, sizeof(word));
            if (word == 0) {
                i += 7;
                continue;
            }
        }
        if (barrier.dirty[i]) {
            uint64_t first = i;

            while (i < n && barrier.dirty[i]) {
                barrier.dirty[i++] = 0;
            }
            if (count == vec_len) {
                return -ENOSPC;
            }
            vec[count++] = (struct pmu_page_region){barrier.start + first * PAGE, barrier.start + i * PAGE,
                                                    PAGE_IS_WRITTEN};
            i--;
        }
    }
    return (long)count;
}

long
baseline_barrier_stop(void)
{
    if (mprotect((void *)(uintptr_t)barrier.start, barrier.end - barrier.start, PROT_READ | PROT_WRITE) < 0 ||
        sigaction(SIGSEGV, &barrier_before, NULL) < 0) {
        return -errno;
    }
    return 0;
}
