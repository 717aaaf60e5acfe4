/* What the files of the injection share. Their order in time: target, helper, stop, call, restore. */
#ifndef PAGEMAP_INJECT_PRIVATE_H
#define PAGEMAP_INJECT_PRIVATE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "inject.h"
#ifdef INJECT_SUPPORTED
#include "inject_arch.h"

#include <signal.h>

/* inject_target.c: what is found out before anything is stopped. */
struct inject_target {
    pid_t pid;
    pid_t tid;             /* the thread to borrow: any does, for memory and descriptors are the process's */
    int pidfd;             /* pins `tid` against reuse; pidfd_getfd goes through it */
    int status_fd;         /* /proc/PID/task/TID/status */
    uint64_t syscall_insn; /* the address of a system-call instruction in the vdso */
};

int inject_find_target(pid_t pid, struct inject_target *target, struct inject_result *out);
void inject_release_target(struct inject_target *target);
/* A number from /proc/PID/status ("Seccomp:"), or -errno. */
long inject_status_field(int status_fd, const char *field);
/* Whether a thread has begun to exit: ptrace refuses it then as if it were somebody else's. */
bool inject_is_exiting(pid_t pid, pid_t tid);
/* Whether a process has a thread that could be borrowed. */
bool inject_is_alive(pid_t pid);
/* The processor that a thread runs on or last ran on, or -errno. */
int inject_processor(pid_t pid, pid_t tid);

/* struct ptrace_sud_config: syscall user dispatch */
struct dispatch_configuration {
    uint64_t mode, selector, offset, length;
};

struct injection {
    const struct inject_target *target;
    struct inject_result *out;
    long flags;
    int error;          /* 0 or -errno */
    bool own_process;   /* the tracer is a process of its own, with a SIGCHLD of its own */
    int64_t running_at; /* when the target was last seen not to stand still */

    /* The target as it was. */
    arch_regs regs;
    arch_vectors vectors;
    uint64_t sigmask;
    struct dispatch_configuration dispatch;
    bool reenter; /* leave it entering the system call that it was in, see settle() */
};

static inline int
inject_fail(struct inject_result *out, enum inject_stage stage, int error, const char *why)
{
    out->stage = stage;
    out->why = error == ESRCH && stage != INJECT_TARGET ? "it has died meanwhile" : why;
    return -error;
}

#define INJECT_WHY_TRACED "it is traced already, by a debugger or another tracker"
#define INJECT_WHY_REFUSED "ptrace is refused: another user's process, or kernel.yama.ptrace_scope"
#define INJECT_TIMEOUT_NS 2000000000LL
#define INJECT_NO_TIMEOUT INT64_MAX

int64_t inject_now_ns(void);

/* inject_stop.c: 0 or -errno. The first makes a running target stand still, the second lets one that
 * stands still run to the next entry or exit of a system call. */
int inject_stop(struct injection *in);
int inject_run_to_syscall_stop(struct injection *in, int64_t timeout);

/* inject_call.c: the whole of what happens between the stop and the release. */
int inject_stopped(struct injection *in);

#endif

#endif
