/*
 * odd KIND: processes that are not like others. Prints "ready"; then each line of input is answered, by a
 * second thread where the main thread has something else to do.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of a sigset_t sigprocmask() fills what the kernel's has, and leaves the rest as it was. */
#define KERNEL_SIGSET 8

static atomic_int stop, count;

static void
ready(void)
{
    puts("ready");
    fflush(stdout);
}

/* Answers with `count`, and stops at the end of the input. */
static void *
control(void *argument)
{
    char byte;

    (void)argument;
    while (read(STDIN_FILENO, &byte, 1) == 1) {
        if (byte == '\n') {
            printf("%d\n", count);
            fflush(stdout);
        }
    }
    stop = 1;
    return NULL;
}

static void
start_control(void)
{
    pthread_t thread;

    pthread_create(&thread, NULL, control, NULL);
}

/* Answers each line, and does nothing else. */
static int
answering(void)
{
    char byte;

    while (read(STDIN_FILENO, &byte, 1) == 1) {
        if (byte == '\n' && write(STDOUT_FILENO, "0\n", 2) != 2) {
            return 2;
        }
    }
    return 0;
}

/* Anything but read, write and the end kills: 'x' tries it out. */
static int
filtered(void)
{
#define ALLOW(name)                                                                                          \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(read),
        ALLOW(write),
        ALLOW(restart_syscall),
        ALLOW(exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};
    char byte;

    ready();
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        return 3;
    }
    while (read(STDIN_FILENO, &byte, 1) == 1) {
        if (byte == 'x') {
            syscall(SYS_getppid);
        }
        if (byte == '\n' && write(STDOUT_FILENO, "0\n", 2) != 2) {
            return 2;
        }
    }
    return 0;
}

/* Its parent is its tracer, as a debugger's would be. */
static int
traced(void)
{
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
        return 4;
    }
    ready();
    return answering();
}

/* The main thread has exited, another goes on. */
static void
leaderless(long nanoseconds)
{
    const struct timespec moment = {.tv_nsec = nanoseconds};

    start_control();
    ready();
    nanosleep(&moment, NULL);
    pthread_exit(NULL);
}

/* The parent is in state D for as long as its vfork child reads. */
static int
vforking(void)
{
    char byte;

    ready();
    if (vfork() == 0) {
        _exit(read(STDIN_FILENO, &byte, 1) == 1 ? 0 : 1);
    }
    puts("0");
    return 0;
}

static int
without_vdso(void)
{
    unsigned long start = 0, end = 0;
    char line[256];
    FILE *maps = fopen("/proc/self/maps", "r");

    while (fgets(line, sizeof(line), maps) != NULL) {
        if (strstr(line, "[vdso]") != NULL) {
            sscanf(line, "%lx-%lx", &start, &end);
        }
    }
    fclose(maps);
    ready();
    if (munmap((void *)start, end - start) != 0) {
        return 2;
    }
    return answering();
}

/* A thread whose signals are all blocked, and SIGTRAP ignored besides: `count` is what has changed of it. */
static int
deaf(void)
{
    struct sigaction action = {.sa_handler = SIG_IGN}, now;
    sigset_t all, mask;

    start_control();
    sigfillset(&all);
    sigaction(SIGTRAP, &action, NULL);
    sigprocmask(SIG_BLOCK, &all, NULL);
    sigprocmask(SIG_BLOCK, NULL, &all);
    ready();
    while (!stop) {
        sigaction(SIGTRAP, NULL, &now);
        sigprocmask(SIG_BLOCK, NULL, &mask);
        if (now.sa_handler != SIG_IGN || memcmp(&mask, &all, KERNEL_SIGSET) != 0) {
            count++;
        }
    }
    return 0;
}

/* Executes itself over and over, for the times given. */
static int
executing(char **argv)
{
    int left = atoi(argv[2]);
    char number[16], byte;
    char *again[] = {argv[0], argv[1], number, NULL};

    snprintf(number, sizeof(number), "%d", left - 1);
    if (left > 0) {
        execv("/proc/self/exe", again);
        return 2;
    }
    ready();
    return read(STDIN_FILENO, &byte, 1) == 0 ? 0 : 3;
}

#if defined(__x86_64__) && __has_include(<sys/rseq.h>)
#include <sys/rseq.h>

/* Spins inside one restartable sequence; `count` is how often the kernel sent it to the abort handler. */
static int
restartable(void)
{
    struct rseq *rseq = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

    if (__rseq_size == 0) {
        return 4;
    }
    start_control();
    ready();
    __asm__ volatile(".pushsection .data.rel, \"aw\"\n\t"
                     ".balign 32\n"
                     "3: .long 0, 0\n\t"
                     ".quad 1f, 2f - 1f, 4f\n\t"
                     ".popsection\n"
                     "5: lea 3b(%%rip), %%rax\n\t"
                     "mov %%rax, %[cs]\n"
                     "1: cmpl $0, %[stop]\n\t"
                     "je 1b\n"
                     "2: jmp 6f\n\t"
                     ".byte 0x0f, 0xb9, 0x3d\n\t" /* so that the signature disassembles */
                     ".long %c[signature]\n"
                     "4: lock incl %[count]\n\t"
                     "jmp 5b\n"
                     "6:"
                     : [cs] "=m"(rseq->rseq_cs), [count] "+m"(count)
                     : [stop] "m"(stop), [signature] "i"(RSEQ_SIG)
                     : "rax", "memory", "cc");
    return 0;
}
#else
static int
restartable(void)
{
    return 4;
}
#endif

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

static volatile char selector;

static void
dispatched(int signal)
{
    (void)signal;
    selector = 0;
    count++;
}

static void *
execute_soon(void *argv)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    now = (struct timespec){.tv_nsec = 200000 + now.tv_nsec * 7919 % 2000000};
    nanosleep(&now, NULL);
    executing(argv);
    _exit(2);
}

/* The same out of a second thread, which thereby becomes the main thread. */
static int
handing_over(char **argv)
{
    pthread_t thread;

    if (atoi(argv[2]) == 0) {
        return executing(argv);
    }
    pthread_create(&thread, NULL, execute_soon, argv);
    for (;;) {
    }
}

/* System calls are handed to a SIGSYS handler, as under Wine: one at the end, to see that it still is so. */
static int
dispatching(bool inclusive)
{
    const uintptr_t page = (uintptr_t)syscall & ~(uintptr_t)4095;
    struct sigaction action = {.sa_handler = dispatched};

    sigaction(SIGSYS, &action, NULL);
    start_control();
    if (prctl(PR_SET_SYSCALL_USER_DISPATCH, inclusive ? 2 : 1, inclusive ? page : 0, inclusive ? 8192 : 0,
              &selector) != 0) {
        puts(strerror(errno));
        return 4;
    }
    ready();
    selector = 1;
    while (!stop) {
    }
    syscall(SYS_getppid);
    printf("%d\n", count);
    return 0;
}

int
main(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "";

    if (strcmp(kind, "filtered") == 0) {
        return filtered();
    }
    if (strcmp(kind, "leaderless") == 0) {
        leaderless(argc > 2 ? atol(argv[2]) : 0);
    }
    if (strcmp(kind, "vforking") == 0) {
        return vforking();
    }
    if (strcmp(kind, "without_vdso") == 0) {
        return without_vdso();
    }
    if (strcmp(kind, "deaf") == 0) {
        return deaf();
    }
    if (strcmp(kind, "executing") == 0) {
        return executing(argv);
    }
    if (strcmp(kind, "handing_over") == 0) {
        return handing_over(argv);
    }
    if (strcmp(kind, "restartable") == 0) {
        return restartable();
    }
    if (strcmp(kind, "traced") == 0) {
        return traced();
    }
    if (strcmp(kind, "dispatching") == 0) {
        return dispatching(argc > 2);
    }
    return 5;
}
