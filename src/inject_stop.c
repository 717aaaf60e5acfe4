/*
 * Making a thread stand still, and waiting for it.
 *
 * The tracer sleeps until the target stops: a loop that looks again and again keeps a processor busy that
 * the target may be waiting for, and then a matter of microseconds takes several time slices.
 */
#include "inject_private.h"

#ifdef INJECT_SUPPORTED

#include <sys/wait.h>
#include <time.h>

#define SYSCALL_STOP (SIGTRAP | 0x80) /* PTRACE_O_TRACESYSGOOD */
#define SLICE_NS 10000000L            /* for what could take the news of a stop away */
#define POLL_NS 50000L

int64_t
inject_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static bool
is_event_stop(int stop)
{
    return stop >> 8 == PTRACE_EVENT_STOP;
}

/*
 * What the target stands still for (a signal, event << 8), 0 while it runs, -ESRCH when it is dying. Only
 * looked at (WNOWAIT): where the target is a child of this very process, its exit status is for somebody
 * else. A waitpid(-1) in another thread may consume the news of a stop, so the target itself is asked too;
 * and whether it is traced at all: a child stays one when another of its threads calls execve, but then
 * that thread has taken over its number, and is nobody's tracee.
 */
static int
look(const struct injection *in)
{
    const pid_t tid = in->target->tid;
    const int status_fd = in->target->status_fd;
    siginfo_t info;

    info.si_pid = 0;
    if (waitid(P_PID, (id_t)tid, &info, WEXITED | WSTOPPED | WNOHANG | WNOWAIT | __WALL) != 0) {
        return -ESRCH; /* ECHILD: reaped elsewhere */
    }
    if (info.si_pid == tid) {
        return info.si_code == CLD_TRAPPED || info.si_code == CLD_STOPPED ? info.si_status : -ESRCH;
    }
    if (in->own_process) {
        return 0;
    }
    if (trace(PTRACE_GETSIGINFO, tid, 0, &info) == 0) {
        return info.si_code == SYSCALL_STOP || is_event_stop(info.si_code) ? info.si_code : info.si_signo;
    }
    return inject_status_field(status_fd, "TracerPid:") == syscall(SYS_gettid) ? 0 : -ESRCH;
}

/* What look() says once it is not 0, or -ETIMEDOUT. SIGCHLD is blocked: it stays until it is waited for. */
static int
wait_stop(struct injection *in, int64_t deadline)
{
    const struct timespec slice = {.tv_nsec = SLICE_NS}, poll = {.tv_nsec = POLL_NS};
    int64_t asked = inject_now_ns();
    sigset_t child;

    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    for (;;) {
        const int64_t now = inject_now_ns();
        int stop = look(in);

        if (stop != 0) {
            return stop;
        }
        in->running_at = now;
        if (now >= deadline) {
            return -ETIMEDOUT;
        }
        /* The end of a main thread is no news as long as there are others. */
        if (now >= asked + SLICE_NS) {
            if (inject_is_exiting(in->target->pid, in->target->tid)) {
                return -ESRCH;
            }
            asked = now;
        }
        if (in->own_process) {
            sigtimedwait(&child, NULL, &slice);
        } else {
            nanosleep(&poll, NULL);
        }
    }
}

int
inject_stop(struct injection *in)
{
    const pid_t tid = in->target->tid;
    const int64_t deadline = inject_now_ns() + INJECT_TIMEOUT_NS;
    uintptr_t signal = 0;

    in->running_at = inject_now_ns();
    for (;;) {
        int stop;

        /* Any stop consumes the interrupt. A signal that came first is delivered first, and then the
         * interrupt, asked for again, finds the thread at its handler. */
        if (trace(PTRACE_INTERRUPT, tid, 0, NULL) != 0 ||
            (signal != 0 && trace(PTRACE_CONT, tid, 0, (void *)signal) != 0)) {
            return inject_fail(in->out, INJECT_STOP, errno, "ptrace is refused");
        }
        stop = wait_stop(in, deadline);
        if (stop < 0) {
            return inject_fail(in->out, INJECT_STOP, -stop,
                               "it does not stop: an uninterruptible wait (state D), or frozen");
        }
        if (is_event_stop(stop)) {
            return 0;
        }
        signal = (uintptr_t)stop;
    }
}

/*
 * With all signals blocked nothing else stops the thread but a SIGSTOP, which is let through, and the group
 * stop that follows, out of which ptrace resumes it; the kernel remembers the group stop, and the thread
 * joins it again when it is detached. -ETIMEDOUT: it did not get there (its cgroup is frozen, for example)
 * and stands still where it was.
 */
int
inject_run_to_syscall_stop(struct injection *in, int64_t timeout)
{
    const pid_t tid = in->target->tid;
    const int64_t deadline = timeout == INJECT_NO_TIMEOUT ? timeout : inject_now_ns() + timeout;
    const int64_t running_at =
        in->running_at; /* what runs here is ours: the target stands still throughout */
    bool timed_out = false;
    uintptr_t signal = 0;
    int stop;

    do {
        if (trace(PTRACE_SYSCALL, tid, 0, (void *)signal) != 0) {
            return -errno;
        }
        stop = wait_stop(in, deadline);
        if (stop == -ETIMEDOUT) {
            timed_out = true;
            stop = trace(PTRACE_INTERRUPT, tid, 0, NULL) != 0 ? -errno : wait_stop(in, INJECT_NO_TIMEOUT);
        }
        in->running_at = running_at;
        signal = stop == SIGSTOP ? SIGSTOP : 0;
    } while (!timed_out && (is_event_stop(stop) || stop == SIGSTOP));

    if (stop < 0 || stop == SYSCALL_STOP) {
        return stop < 0 ? stop : 0;
    }
    return timed_out ? -ETIMEDOUT
                     : -EFAULT; /* the borrowed instruction itself faulted: its signal is dropped */
}

#endif
