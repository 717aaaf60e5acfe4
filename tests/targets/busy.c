/*
 * busy THREADS: every thread computes the same checksums again and again, with general, x87 and vector
 * registers, and mixes system calls in, whose answers it checks. Prints "ready"; at the end of its input
 * "ok ROUNDS", or, as soon as anything differs, what did, and exits with 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { STEPS = 20000, LANES = 8 };

typedef double vector __attribute__((vector_size(LANES * sizeof(double))));

struct sums {
    uint64_t integer[4];
    long double extended;
    vector lanes[2];
};

static atomic_bool stop;
static atomic_ulong rounds;
static int threads;

__attribute__((noinline)) static void
compute(struct sums *out)
{
    uint64_t a = 1, b = 2, c = 3, d = 4;
    long double e = 1.0L;
    vector v = {1, 2, 3, 4, 5, 6, 7, 8}, w = v * 0.5;

    for (int i = 0; i < STEPS; i++) {
        a = a * 6364136223846793005ULL + 1442695040888963407ULL;
        b = (b ^ (a >> 17)) * 0x9e3779b97f4a7c15ULL;
        c = (c << 13 | c >> 51) + b;
        d ^= c + a;
        e = e * 0.999L + (long double)(d & 0xff);
        v = v * 0.99999 + w;
        w = w * 0.5 + v * 0.25;
    }
    memset(out, 0, sizeof(*out)); /* the padding of a long double is compared as well */
    out->integer[0] = a;
    out->integer[1] = b;
    out->integer[2] = c;
    out->integer[3] = d;
    memcpy(&out->extended, &e, 10 < sizeof(e) ? 10 : sizeof(e));
    out->lanes[0] = v;
    out->lanes[1] = w;
}

static void
fail(const char *what)
{
    printf("bad: %s (errno %d)\n", what, errno);
    fflush(stdout);
    _exit(1);
}

static void
call_system(int pipe_fd[2], unsigned long turn)
{
    unsigned long echo = 0;
    struct timespec nap = {.tv_nsec = 1000};
    int fd;

    if (write(pipe_fd[1], &turn, sizeof(turn)) != sizeof(turn) ||
        read(pipe_fd[0], &echo, sizeof(echo)) != sizeof(echo) || echo != turn) {
        fail("pipe");
    }
    if (syscall(SYS_getpid) != getpid()) {
        fail("getpid");
    }
    if (nanosleep(&nap, NULL) != 0) {
        fail("nanosleep");
    }
    fd = dup(pipe_fd[0]);
    if (fd < 0 || (threads == 1 && fd != pipe_fd[1] + 1)) {
        fail("dup: a descriptor number is taken");
    }
    close(fd);
}

static void *
work(void *argument)
{
    struct sums expected, sums;
    int pipe_fd[2];

    (void)argument;
    compute(&expected);
    if (pipe(pipe_fd) != 0) {
        fail("pipe");
    }
    for (unsigned long turn = 0; !stop; turn++) {
        compute(&sums);
        if (memcmp(&sums, &expected, sizeof(sums)) != 0) {
            fail("checksum");
        }
        call_system(pipe_fd, turn);
        rounds++;
    }
    return NULL;
}

static void *
control(void *argument)
{
    char byte;

    (void)argument;
    while (read(STDIN_FILENO, &byte, 1) > 0) {
    }
    stop = 1;
    return NULL;
}

int
main(int argc, char **argv)
{
    pthread_t other;

    threads = argc > 1 ? atoi(argv[1]) : 1;
    pthread_create(&other, NULL, control, NULL);
    for (int i = 1; i < threads; i++) {
        pthread_create(&other, NULL, work, NULL);
    }
    puts("ready");
    fflush(stdout);
    work(NULL);
    printf("ok %lu\n", rounds);
    return 0;
}
