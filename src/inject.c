/*
 * A userfaultfd belongs to the memory of the process that creates it, so it has to be created inside the
 * target: one of its threads is stopped with ptrace, made to call userfaultfd() with the system-call
 * instruction that its vdso already holds, and let go. Its text and its memory are not written to.
 *
 * The tracer is a helper process that shares this one's memory and descriptors (as posix_spawn's is, for a
 * moment), and lives for one injection:
 * - A tracer that is killed in the middle leaves the target with registers that are not its own. SIGKILL
 *   to this process, or to its process group, leaves the helper to finish. PTRACE_O_EXITKILL is never set.
 * - PTRACE_DETACH releases only what has stopped; the end of the tracer releases everything, so a target that
 *   does not stop, or dies, is never left traced.
 * - SIGCHLD and waitpid(-1) of this process see nothing of it.
 *
 * Yama's kernel.yama.ptrace_scope=1 lets only an ancestor trace, which the helper never is: there, a child of
 * this process is traced by a thread, without the first and the last point (so nobody should wait for that
 * child in another thread meanwhile: the wait would return its stops).
 *
 * What cannot be hidden from the target: for some microseconds a descriptor number is taken, which another of
 * its threads may see, and a child that such a thread forks just then inherits; a set-user-id program that
 * the borrowed thread executes between PTRACE_SEIZE and its stop starts without the rights; waits with a
 * time limit that answer every stop with EINTR (signal(7): epoll_wait, sigtimedwait, semtimedop,
 * io_getevents, io_uring_enter, a socket under SO_RCVTIMEO) do so here, and on aarch64 those of them without
 * a limit, too; and a call that has done a part of its work (a write of 1 MiB to a pipe, io_getevents)
 * returns that part.
 */
#include "inject_private.h"

#ifdef INJECT_SUPPORTED

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#define HELPER_STACK ((size_t)256 * 1024)

/* A thread of another policy (SCHED_FIFO, say) keeps an ordinary one from its processor for as long as it
 * likes. */
static bool
shares_its_processor(pid_t tid)
{
    const int policy = sched_getscheduler(tid);

    return policy >= 0 &&
           ((policy & ~SCHED_RESET_ON_FORK) == SCHED_OTHER ||
            (policy & ~SCHED_RESET_ON_FORK) == SCHED_BATCH || (policy & ~SCHED_RESET_ON_FORK) == SCHED_IDLE);
}

/*
 * On the target's own processor: then the one goes to sleep as the other wakes up, without interrupts
 * between processors (tens of microseconds in a virtual machine), and the target's turn is the tracer's.
 */
static void
join_processor(const struct inject_target *target)
{
    int processor = inject_processor(target->pid, target->tid);
    cpu_set_t set;

    if (processor >= 0 && processor < CPU_SETSIZE) {
        CPU_ZERO(&set);
        CPU_SET((unsigned)processor, &set);
        sched_setaffinity(0, sizeof(set), &set); /* refused in another cpuset: slower, no more */
    }
}

/* ptrace says EPERM to everything. */
static int
seize_refused(const struct injection *in, int error)
{
    const struct inject_target *target = in->target;

    if (inject_is_exiting(target->pid, target->tid)) {
        return inject_fail(in->out, INJECT_SEIZE, ESRCH, NULL);
    }
    if (inject_status_field(target->status_fd, "TracerPid:") > 0) {
        return inject_fail(in->out, INJECT_TRACED, EPERM, INJECT_WHY_TRACED);
    }
    return inject_fail(in->out, INJECT_SEIZE, error, INJECT_WHY_REFUSED);
}

static void
inject(struct injection *in)
{
    const struct inject_target *target = in->target;
    const uintptr_t options = PTRACE_O_TRACESYSGOOD;

    const bool shares = shares_its_processor(target->tid);

    if (shares) {
        join_processor(target);
    }
    if (trace(PTRACE_SEIZE, target->tid, 0, (void *)options) != 0) {
        in->error = seize_refused(in, errno);
        return;
    }
    /* What was read in /proc was of this process, and not of an earlier one with its number. */
    if (syscall(SYS_pidfd_send_signal, target->pidfd, 0, NULL, 0) != 0 && errno == ESRCH) {
        in->error = inject_fail(in->out, INJECT_SEIZE, ESRCH, NULL);
        return;
    }
    in->error = inject_stop(in);
    if (in->error == 0) {
        in->error = inject_stopped(in);
        in->out->stopped_ns = inject_now_ns() - in->running_at;
        trace(PTRACE_DETACH, target->tid, 0, NULL);
        if (shares) { /* else it may be a second until this thread has its turn again */
            in->out->stopped_ns = inject_now_ns() - in->running_at;
        }
    }
}

/* errno, like all of the C library's memory, is the waiting caller's; its handlers and timers are not. */
static int
helper_process(void *argument)
{
    struct injection *in = argument;
    struct sigaction standard = {.sa_handler = SIG_DFL};

    /* The caller may ignore it, and nothing would ever wake wait_stop(). */
    sigaction(SIGCHLD, &standard, NULL);
    setpgid(0, 0);
    inject(in);
    return 0;
}

/* With all signals blocked. 0, or -errno when there is no helper. */
static int
inject_from_process(struct injection *in)
{
    const int flags = CLONE_VM | CLONE_FILES | CLONE_VFORK | CLONE_UNTRACED; /* no signal when it ends */
    char *stack =
        mmap(NULL, HELPER_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    int cancel, error = 0;
    pid_t helper;

    if (stack == MAP_FAILED) {
        return -errno;
    }
    in->own_process = true;
    /* Until it says otherwise. */
    in->error = inject_fail(in->out, INJECT_CALL, EINTR, "the helper process was killed");
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel); /* the helper would obey it as if it were us */
    helper = clone(helper_process, stack + HELPER_STACK, flags, in);
    if (helper < 0) {
        error = -errno;
    } else {
        /* CLONE_VFORK ends when its memory is released; the target is, only when it can be waited for. */
        while (waitpid(helper, NULL, __WALL) < 0 && errno == EINTR) {
        }
    }
    pthread_setcancelstate(cancel, NULL);
    munmap(stack, HELPER_STACK);
    return error;
}

struct tracer_thread {
    struct injection *in;
    pid_t tid;
};

static void *
trace_from_thread(void *argument)
{
    struct tracer_thread *tracer = argument;

    tracer->tid = (pid_t)syscall(SYS_gettid);
    inject(tracer->in);
    return NULL;
}

static int
inject_from_thread(struct injection *in)
{
    const struct timespec pause = {.tv_nsec = 50000};
    struct tracer_thread tracer = {.in = in};
    pthread_t thread;
    int error;

    in->own_process = false;
    error = pthread_create(&thread, NULL, trace_from_thread, &tracer);
    if (error != 0) {
        return -error;
    }
    pthread_join(thread, NULL);
    /* It ends for the C library first, and a little later for the kernel, which only then lets go. */
    for (int i = 0; in->error != 0 && i < 10000 && syscall(SYS_tgkill, getpid(), tracer.tid, 0) == 0; i++) {
        nanosleep(&pause, NULL);
    }
    return 0;
}

/* By Yama, perhaps; a process in the middle of an execve refuses everybody, and only for now. */
static bool
is_refusal(const struct injection *in)
{
    return in->error == -EPERM && in->out->stage == INJECT_SEIZE;
}

static int
inject_once(pid_t pid, long flags, struct inject_result *out)
{
    const struct timespec pause = {.tv_nsec = 2000000};
    struct inject_target target;
    struct injection in = {.target = &target, .out = out, .flags = flags};
    sigset_t all, before;
    int error;

    *out = (struct inject_result){.fd = -1};
    error = inject_find_target(pid, &target, out);
    if (error != 0) {
        goto done;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = inject_from_process(&in);
    if (error == 0 && is_refusal(&in)) {
        nanosleep(&pause, NULL);
        error = inject_from_process(&in);
    }
    if (error == 0 && is_refusal(&in)) {
        error = inject_from_thread(&in);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        error = inject_fail(out, INJECT_SEIZE, -error, "no helper process to trace from");
        goto done;
    }
    error = in.error;
    if (error != 0 && out->fd >= 0) {
        close(out->fd);
        out->fd = -1;
    }
done:
    inject_release_target(&target);
    return error;
}

int
inject_userfaultfd(pid_t pid, long flags, struct inject_result *out)
{
    const struct timespec pause = {.tv_nsec = 2000000};
    int error = 0;

    /* A process that calls execve has no vdso for a moment, then another one; and it ends the threads that
     * it had. Or only the borrowed thread has ended. */
    for (int attempt = 0; attempt < 5; attempt++) {
        error = inject_once(pid, flags | O_CLOEXEC | O_NONBLOCK, out);
        if (error == 0 || (out->stage != INJECT_VDSO && (error != -ESRCH || !inject_is_alive(pid)))) {
            break;
        }
        nanosleep(&pause, NULL);
    }
    return error;
}

#endif
