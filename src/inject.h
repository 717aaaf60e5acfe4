/* A userfaultfd created inside another process, for x86-64 and aarch64. No Python in here. */
#ifndef PAGEMAP_INJECT_H
#define PAGEMAP_INJECT_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#if defined(__x86_64__) || (defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
#define INJECT_SUPPORTED
#endif

/* The step that failed; for Python the same in lower case. */
enum inject_stage {
    INJECT_TARGET,      /* nothing to borrow from: oneself, a zombie, a kernel thread, 32-bit */
    INJECT_TRACED,      /* a thread has one tracer only */
    INJECT_SECCOMP,     /* the target's own filter would judge the injected call */
    INJECT_VDSO,        /* no system-call instruction to borrow */
    INJECT_SEIZE,       /* ptrace is refused */
    INJECT_STOP,        /* it could not be stopped and looked at */
    INJECT_CALL,        /* it could not be made to call */
    INJECT_USERFAULTFD, /* the call was made, and the kernel refused it */
    INJECT_FETCH,       /* pidfd_getfd was refused */
};

struct inject_result {
    int fd;             /* the target's userfaultfd, open in this process, close-on-exec */
    int64_t stopped_ns; /* how long the borrowed thread stood still: never less than the truth, but for the
                         * last microsecond of a real-time thread */
    enum inject_stage stage; /* after a failure */
    const char *why;         /* the same in words */
};

/* 0, or -errno with `stage` and `why` set; then the target is as it was, or it has died by itself. */
#ifdef INJECT_SUPPORTED
int inject_userfaultfd(pid_t pid, long flags, struct inject_result *out);
#else
static inline int
inject_userfaultfd(pid_t pid, long flags, struct inject_result *out)
{
    (void)pid;
    (void)flags;
    *out = (struct inject_result){-1, 0, INJECT_TARGET, "not on this architecture: x86-64 and aarch64 only"};
    return -EOPNOTSUPP;
}
#endif

#endif
