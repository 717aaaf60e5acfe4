/*
 * waits KIND LIMIT_MS: one system call that waits, in the main thread. Prints "ready", and when the call
 * returns "RESULT ERRNO MILLISECONDS". What waits without a limit ends with a byte on the input or with
 * SIGUSR1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t handled;

static void
handler(int signal)
{
    (void)signal;
    handled++;
}

static double
now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static long
epoll(int timeout)
{
    struct epoll_event event = {.events = EPOLLIN};
    int fd = epoll_create1(0);

    epoll_ctl(fd, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    return epoll_wait(fd, &event, 1, timeout);
}

static int semaphores = -1, ring = -1;
static aio_context_t queue;

/* Whether this kernel has what the wait is for. */
static bool
prepare(const char *kind)
{
    struct io_uring_params parameters = {0};

    if (strncmp(kind, "sem", 3) == 0) {
        semaphores = semget(IPC_PRIVATE, 1, 0600);
        return semaphores >= 0;
    }
    if (strncmp(kind, "io_uring", 8) == 0) {
        ring = (int)syscall(SYS_io_uring_setup, 4, &parameters);
        return ring >= 0;
    }
    if (strncmp(kind, "io_", 3) == 0) {
        return syscall(SYS_io_setup, 4, &queue) == 0;
    }
    return true;
}

/* What only a handler ends. */
static long
wait_for_handler(const char *kind)
{
    struct sembuf down = {.sem_op = -1};
    struct io_event event;
    long result = -2;

    if (strcmp(kind, "semop") == 0) {
        result = syscall(SYS_semop, semaphores, &down, 1);
    } else if (strcmp(kind, "semtimedop") == 0) {
        result = syscall(SYS_semtimedop, semaphores, &down, 1, NULL);
    } else if (strcmp(kind, "io_getevents") == 0) {
        result = syscall(SYS_io_getevents, queue, 1, 1, &event, NULL);
    } else if (strcmp(kind, "io_pgetevents") == 0) {
        result = syscall(SYS_io_pgetevents, queue, 1, 1, &event, NULL, NULL);
    } else if (strcmp(kind, "io_uring_enter") == 0) {
        result = syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    }
    if (semaphores >= 0) {
        const int error = errno;

        semctl(semaphores, 0, IPC_RMID);
        errno = error;
    }
    return result == -1 && handled == 1 ? 1 : result;
}

static long
wait_for(const char *kind, int limit_ms)
{
    struct timespec limit = {.tv_sec = limit_ms / 1000, .tv_nsec = limit_ms % 1000 * 1000000L}, until;
    struct timeval limit_us = {.tv_sec = limit_ms / 1000, .tv_usec = limit_ms % 1000 * 1000};
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    unsigned word = 0;
    sigset_t set;
    fd_set fds;
    char byte;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    FD_ZERO(&fds);
    FD_SET(STDIN_FILENO, &fds);
    if (strcmp(kind, "nanosleep") == 0) {
        return nanosleep(&limit, NULL);
    }
    if (strcmp(kind, "clock_nanosleep") == 0) {
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += limit.tv_nsec;
        until.tv_sec += limit.tv_sec + until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
    if (strcmp(kind, "futex") == 0) {
        return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &limit, NULL, 0);
    }
    if (strcmp(kind, "poll") == 0) {
        return poll(&input, 1, limit_ms);
    }
    if (strcmp(kind, "ppoll") == 0) {
        return ppoll(&input, 1, &limit, &set);
    }
    if (strcmp(kind, "select") == 0) {
        return select(1, &fds, NULL, NULL, &limit_us);
    }
    if (strcmp(kind, "epoll_limited") == 0) {
        return epoll(limit_ms);
    }
    if (strcmp(kind, "epoll") == 0) {
        return epoll(-1);
    }
    if (strcmp(kind, "read") == 0) {
        return read(STDIN_FILENO, &byte, 1);
    }
    if (strcmp(kind, "waitpid") == 0) {
        pid_t child = fork();

        if (child == 0) {
            _exit(read(STDIN_FILENO, &byte, 1) == 1 ? 0 : 1);
        }
        return waitpid(child, NULL, 0) == child ? 1 : -1;
    }
    if (strcmp(kind, "sigwaitinfo") == 0) {
        sigprocmask(SIG_BLOCK, &set, NULL);
        return sigwaitinfo(&set, NULL);
    }
    if (strcmp(kind, "sigsuspend") == 0) {
        sigprocmask(SIG_BLOCK, &set, NULL);
        sigemptyset(&set);
        return sigsuspend(&set) == -1 && handled == 1 ? 1 : -1;
    }
    if (strcmp(kind, "pause") == 0) {
        return pause() == -1 && handled == 1 ? 1 : -1;
    }
    return wait_for_handler(kind);
}

int
main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = handler};
    double begin;
    long result;

    sigaction(SIGUSR1, &action, NULL);
    if (argc == 3 && !prepare(argv[1])) {
        puts("not here");
        return 0;
    }
    puts("ready");
    fflush(stdout);
    begin = now_ms();
    errno = 0;
    result = argc == 3 ? wait_for(argv[1], atoi(argv[2])) : -2;
    printf("%ld %d %.0f\n", result, errno, now_ms() - begin);
    return 0;
}
