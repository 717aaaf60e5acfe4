/*
 * Threads that write to a few pages as fast as they can, then to a few others, and drop some. Most pages rest
 * for a long time: what got lost is not made good by the next write.
 *
 * As a library (-shared), for memory of the process that tracks itself: hammer_add(), hammer_start(),
 * hammer_stop().
 *
 * As a program (-DPROGRAM), for one that is tracked from outside: it makes its areas itself, and maps,
 * unmaps, moves and grows them all the time. Prints "ready"; after a line of input the threads have stopped,
 * and it prints a line with the START and LENGTH of each area and holds still until the end of its input.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, AREAS = 64, THREADS = 8, WINDOW = 16, BURST = 1000 };

struct area {
    char *start;
    size_t length;
    bool may_drop; /* MADV_DONTNEED */
    bool may_move; /* it came from mmap() */
};

static struct area areas[AREAS];
static int area_count;
static pthread_rwlock_t areas_lock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_t threads[THREADS];
static int thread_count;
static atomic_bool stop;
static int random_fd = -1;
static atomic_ulong writes;

static uint64_t
next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* A few bytes, a whole page, or what a system call reads. */
static void
write_to(char *page, uint64_t choice)
{

    if (choice % 64 == 0) {
        memset(page, (int)(choice >> 8), PAGE);
    } else if (choice % 64 == 1) {
        if (read(random_fd, page + choice / 64 % 2048, 256) !=
            256) { /* more, and a signal may interrupt it */
            abort();
        }
    } else {
        page[choice / 64 % PAGE] = (char)(choice >> 32);
    }
}

static void *
writer(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed * 0x9e3779b97f4a7c15ULL + 1;
    const struct timespec nap = {.tv_nsec = 500000};

    while (!stop) {
        const struct area *area;
        size_t pages, first;

        pthread_rwlock_rdlock(&areas_lock);
        area = &areas[next(&state) % (uint64_t)area_count];
        pages = area->length / PAGE;
        first = next(&state) % pages;
        for (int i = 0; i < BURST; i++) {
            size_t page = first + next(&state) % WINDOW;

            write_to(area->start + (page < pages ? page : first) * PAGE, next(&state));
        }
        pthread_rwlock_unlock(&areas_lock);
        writes += BURST;
        nanosleep(&nap, NULL);
    }
    return NULL;
}

static void *
dropper(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed * 0x9e3779b97f4a7c15ULL + 1;
    const struct timespec nap = {.tv_nsec = 300000};

    while (!stop) {
        struct area *area;

        pthread_rwlock_rdlock(&areas_lock);
        area = &areas[next(&state) % (uint64_t)area_count];
        if (area->may_drop) {
            size_t pages = area->length / PAGE;
            size_t first = next(&state) % pages;
            size_t count = next(&state) % 16 == 0 ? 512 : 1 + next(&state) % 8; /* a page table, or less */

            if (count > pages - first) {
                count = pages - first;
            }
            madvise(area->start + first * PAGE, count * PAGE, MADV_DONTNEED);
        }
        pthread_rwlock_unlock(&areas_lock);
        nanosleep(&nap, NULL);
    }
    return NULL;
}

void
hammer_add(char *start, size_t length, bool may_drop)
{
    areas[area_count++] = (struct area){start, length, may_drop, false};
}

/* The seed makes the random numbers, not the order of things. */
void
hammer_start(int writers, uintptr_t seed)
{
    random_fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    stop = 0;
    thread_count = 0;
    for (int i = 0; i < writers; i++) {
        pthread_create(&threads[thread_count++], NULL, writer, (void *)(seed + (uintptr_t)i + 1));
    }
    pthread_create(&threads[thread_count++], NULL, dropper, (void *)(seed + 100));
}

/* Returns how many writes there were. */
unsigned long
hammer_stop(void)
{
    stop = 1;
    for (int i = 0; i < thread_count; i++) {
        pthread_join(threads[i], NULL);
    }
    close(random_fd);
    area_count = 0;
    return writes;
}

#ifdef PROGRAM

static char *
map(size_t length, int flags)
{
    char *start = mmap(NULL, length, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

    if (start == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return start;
}

static void
add_mapping(size_t length, int flags)
{
    areas[area_count++] = (struct area){map(length, flags), length, flags == MAP_PRIVATE, true};
}

static void
move(struct area *area, size_t length, char *place)
{
    int flags = place == NULL ? MREMAP_MAYMOVE : MREMAP_MAYMOVE | MREMAP_FIXED;
    char *start = mremap(area->start, area->length, length, flags, place);

    if (start == MAP_FAILED) { /* EFAULT: it has become two VMAs; a part of it may have moved */
        munmap(area->start, area->length);
        if (place != NULL) {
            munmap(place, length);
        }
        start = map(length, MAP_PRIVATE);
        area->may_drop = true;
    }
    area->start = start;
    area->length = length;
}

/* One of the things that move memory about; no writer is at work. */
static void
change(struct area *area, uint64_t *state)
{
    size_t length = (1 + next(state) % 64) * PAGE;
    char *place;

    switch (next(state) % 5) {
    case 0: /* something new elsewhere, or just there */
        munmap(area->start, area->length);
        *area = (struct area){map(length, MAP_PRIVATE), length, true, true};
        break;
    case 1:                                            /* longer or shorter, moved when it has to */
        if (area->may_drop || length < area->length) { /* shared memory has no pages behind its end */
            move(area, length, NULL);
        }
        break;
    case 2: /* over another mapping */
        place = map(area->length, MAP_PRIVATE);
        place[0] = 1;
        move(area, area->length, place);
        break;
    case 3: /* something new over it */
        place = mmap(area->start, area->length, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        area->may_drop = true;
        if (place != area->start) {
            abort();
        }
        break;
    default: /* two VMAs, and one again */
        mprotect(area->start, PAGE, PROT_READ);
        mprotect(area->start, PAGE, PROT_READ | PROT_WRITE);
    }
}

static void
grow_heap(size_t pages)
{
    char *start = sbrk((intptr_t)((pages + 1) * PAGE));

    if (start == (char *)-1) {
        perror("sbrk");
        exit(1);
    }
    hammer_add(start + -(uintptr_t)start % PAGE, pages * PAGE, true);
}

static void *
changer(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed * 0x9e3779b97f4a7c15ULL + 1;
    const struct timespec nap = {.tv_nsec = 700000};
    int growths = 0;

    while (!stop) {
        struct area *area;

        pthread_rwlock_wrlock(&areas_lock);
        area = &areas[next(&state) % (uint64_t)area_count];
        if (growths < 6 && next(&state) % 64 == 0) {
            grow_heap(32);
            growths++;
        } else if (area_count < AREAS - 8 && next(&state) % 8 == 0) {
            add_mapping((1 + next(&state) % 64) * PAGE, next(&state) % 2 ? MAP_PRIVATE : MAP_SHARED);
        } else if (area->may_move) {
            change(area, &state);
        }
        pthread_rwlock_unlock(&areas_lock);
        nanosleep(&nap, NULL);
    }
    return NULL;
}

int
main(int argc, char **argv)
{
    uintptr_t seed = argc > 1 ? (uintptr_t)strtoul(argv[1], NULL, 0) : 1;
    char deep[48 * PAGE]; /* the stack has to grow for it */
    char line[64];

    memset(deep, 3, sizeof(deep));
    hammer_add(deep + -(uintptr_t)deep % PAGE, 40 * PAGE, false);
    hammer_add(map(2048 * PAGE, MAP_PRIVATE), 2048 * PAGE, true);
    hammer_start(2, seed);
    pthread_create(&threads[thread_count++], NULL, changer, (void *)(seed + 200));
    puts("ready");
    fflush(stdout);
    if (fgets(line, sizeof(line), stdin) == NULL) {
        return 1;
    }
    stop = 1;
    for (int i = 0; i < thread_count; i++) {
        pthread_join(threads[i], NULL);
    }
    for (int i = 0; i < area_count; i++) {
        printf("%lu %lu ", (unsigned long)areas[i].start, (unsigned long)areas[i].length);
    }
    puts("");
    fflush(stdout);
    return fgets(line, sizeof(line), stdin) != NULL;
}

#endif
