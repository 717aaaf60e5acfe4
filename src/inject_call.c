/*
 * What happens while the target stands still: look, make it call, put it back.
 *
 * What makes it come out as it went in:
 * - System-call stops, not single steps: a step ends with a forced SIGTRAP, and forcing a signal that is
 *   blocked or ignored resets its handler (kernel/signal.c, force_sig_info_to_task).
 * - Every signal is blocked in the borrowed thread meanwhile (PTRACE_SETSIGMASK), so that they queue up in
 *   the kernel with all that belongs to them and are delivered to the restored thread.
 * - The registers, whole, as at the first stop. See inject_arch.h for what a system call in progress needs.
 * - PTRACE_DETACH out of a stop sets TIF_SIGPENDING (kernel/ptrace.c, __ptrace_unlink): the thread leaves the
 *   kernel through the signal code, where restart codes are acted on and pending signals delivered.
 */
#include "inject_private.h"

#ifdef INJECT_SUPPORTED

#include <string.h>

#ifndef PTRACE_GETSIGMASK
#define PTRACE_GETSIGMASK 0x420a
#define PTRACE_SETSIGMASK 0x420b
#endif
#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif
#define TRACE_GET_RSEQ_CONFIGURATION 0x420f    /* Linux 5.13 */
#define TRACE_SET_SYSCALL_USER_DISPATCH 0x4210 /* Linux 6.4 */
#define TRACE_GET_SYSCALL_USER_DISPATCH 0x4211
#define DISPATCH_OFF 0
#define DISPATCH_INCLUSIVE 2 /* PR_SYS_DISPATCH_INCLUSIVE_ON */

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

/* struct ptrace_rseq_configuration */
struct rseq_configuration {
    uint64_t area;
    uint32_t size, signature, flags, pad;
};

/* struct rseq_cs, linux/rseq.h; the address of the current one is at offset 8 of the thread's rseq area */
struct rseq_sequence {
    uint32_t version, flags;
    uint64_t start, length, abort;
};
#define RSEQ_CS_OFFSET 8

static int
peek(pid_t tid, uint64_t address, void *out, size_t words)
{
    for (size_t i = 0; i < words; i++) {
        if (trace(PTRACE_PEEKDATA, tid, address + 8 * i, (char *)out + 8 * i) != 0) {
            return -errno;
        }
    }
    return 0;
}

/*
 * A restartable sequence (rseq(2)) that was interrupted must be aborted, never resumed. The kernel does that
 * on the way back to user mode, for the place it returns to; by then our call has hidden that the thread was
 * inside a sequence. So it goes to the abort handler, as after any preemption.
 */
static void
abort_rseq(pid_t tid, arch_regs *regs)
{
    struct rseq_configuration rseq;
    struct rseq_sequence sequence;
    uint64_t address;

    if (trace(TRACE_GET_RSEQ_CONFIGURATION, tid, sizeof(rseq), &rseq) == sizeof(rseq) && rseq.area != 0 &&
        peek(tid, rseq.area + RSEQ_CS_OFFSET, &address, 1) == 0 && address != 0 &&
        peek(tid, address, &sequence, sizeof(sequence) / 8) == 0 &&
        *arch_pc(regs) - sequence.start < sequence.length) {
        *arch_pc(regs) = sequence.abort;
    }
}

static int
set_dispatch(const struct injection *in, struct dispatch_configuration *dispatch)
{
    return trace(TRACE_SET_SYSCALL_USER_DISPATCH, in->target->tid, sizeof(*dispatch), dispatch) == 0 ? 0
                                                                                                     : -errno;
}

/*
 * Syscall user dispatch, in a form that can be put back: setting what there is shows it. The kernel keeps an
 * inclusive range as an exclusive one of the rest of memory (kernel/entry/syscall_user_dispatch.c), reports
 * that, and refuses it as one that wraps around.
 */
static int
inspect_dispatch(struct injection *in)
{
    struct dispatch_configuration *dispatch = &in->dispatch;

    if (trace(TRACE_GET_SYSCALL_USER_DISPATCH, in->target->tid, sizeof(*dispatch), dispatch) != 0) {
        dispatch->mode = 0; /* a kernel before 6.4 */
    }
    if (dispatch->mode == DISPATCH_OFF || set_dispatch(in, dispatch) == 0) {
        return 0;
    }
    dispatch->mode = DISPATCH_INCLUSIVE;
    dispatch->offset += dispatch->length;
    dispatch->length = -dispatch->length;
    return set_dispatch(in, dispatch);
}

/* Notes what the target is like, and refuses what could not be put back. Nothing is changed yet. */
static int
inspect(struct injection *in)
{
    const pid_t tid = in->target->tid;
    struct iovec iov = {&in->regs, sizeof(in->regs)};
    const uintptr_t suspend = PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP;
    uint64_t word;
    int error;

    if (trace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &iov) != 0) {
        return inject_fail(in->out, INJECT_STOP, errno, "its registers cannot be read");
    }
    if (iov.iov_len != sizeof(in->regs)) {
        return inject_fail(in->out, INJECT_TARGET, EOPNOTSUPP, "it is running 32-bit code");
    }
    /* An exec since the vdso was read: another address space, another vdso. */
    if (peek(tid, in->target->syscall_insn, &word, 1) != 0 || !arch_is_syscall_insn(word)) {
        return inject_fail(in->out, INJECT_VDSO, EBUSY, "it has called exec meanwhile");
    }
    /* Only now: between PTRACE_SEIZE and the stop the target runs code of its own, which must not escape its
     * filter. Where it cannot be suspended there must be none, and one may have come since the first look. */
    if (trace(PTRACE_SETOPTIONS, tid, 0, (void *)suspend) != 0 &&
        inject_status_field(in->target->status_fd, "Seccomp:") != 0) {
        return inject_fail(in->out, INJECT_SECCOMP, EPERM,
                           "its seccomp filter may not be suspended from here");
    }
    if (trace(PTRACE_GETSIGMASK, tid, sizeof(in->sigmask), &in->sigmask) != 0) {
        return inject_fail(in->out, INJECT_STOP, errno, "its signal mask cannot be read");
    }
    error = inspect_dispatch(in);
    if (error != 0) {
        return inject_fail(in->out, INJECT_STOP, error == -ESRCH ? ESRCH : EOPNOTSUPP,
                           "its syscall user dispatch could not be put back");
    }
    if (arch_save_vectors(tid, &in->vectors) != 0) {
        return inject_fail(in->out, INJECT_STOP, EOPNOTSUPP, "its vector registers cannot be saved");
    }
    abort_rseq(tid, &in->regs);
    arch_restart_wait(&in->regs);
    return 0;
}

static int
transfer_regs(int request, pid_t tid, arch_regs *regs)
{
    struct iovec iov = {regs, sizeof(*regs)};

    return trace(request, tid, NT_PRSTATUS, &iov) == 0 ? 0 : -errno;
}

/* -errno when the call could not be made; else 0, with the call's own answer in `answer`. */
static int
call(struct injection *in, long number, long argument, int64_t timeout, long *answer)
{
    const pid_t tid = in->target->tid;
    arch_regs regs = in->regs;
    int error;

    arch_set_call(&regs, in->target->syscall_insn, number, argument);
    error = transfer_regs(PTRACE_SETREGSET, tid, &regs);
    if (error == 0) {
        error = inject_run_to_syscall_stop(in, timeout); /* its entry */
    }
    if (error == 0) {
        error = inject_run_to_syscall_stop(in, INJECT_NO_TIMEOUT); /* its exit: it cannot be called back */
    }
    if (error == 0) {
        error = transfer_regs(PTRACE_GETREGSET, tid, &regs);
    }
    *answer = arch_call_result(&regs);
    return error;
}

/*
 * Where the kernel rewinds a restartable call before it stops (arm64), the thread is let run to the entry of
 * that call, which it was about to make anyway; the number seen there says whether it goes on as
 * restart_syscall. The call is then cancelled, and made again when all is restored. The same for a thread
 * that merely was in front of such an instruction.
 */
static int
settle(struct injection *in)
{
    const pid_t tid = in->target->tid; // NOLINT: unused where nothing is rewound
    arch_regs entry;
    uint64_t word;
    int error;

    if (!ARCH_REWINDS_BEFORE_STOP || peek(tid, *arch_pc(&in->regs), &word, 1) != 0 ||
        !arch_is_syscall_insn(word)) {
        return 0;
    }
    error = inject_run_to_syscall_stop(in, INJECT_TIMEOUT_NS);
    if (transfer_regs(PTRACE_GETREGSET, tid, &entry) == 0) {
        arch_take_syscall_number(&in->regs, &entry);
    }
    if (error == 0) {
        in->reenter = true;
        arch_forget_syscall(tid);
        error = inject_run_to_syscall_stop(in, INJECT_NO_TIMEOUT);
    }
    return error;
}

static int
create_and_fetch(struct injection *in)
{
    long remote, ignored;
    int error = settle(in), closed;

    if (error == 0) {
        error = call(in, SYS_userfaultfd, in->flags, INJECT_TIMEOUT_NS, &remote);
    }
    if (error != 0) {
        return inject_fail(in->out, INJECT_CALL, -error, "it does not get to the call: frozen, perhaps");
    }
    if (remote < 0) {
        return inject_fail(in->out, INJECT_USERFAULTFD, (int)-remote, "the kernel refuses it to the target");
    }
    in->out->fd = (int)syscall(SYS_pidfd_getfd, in->target->pidfd, (int)remote, 0);
    if (in->out->fd < 0) {
        error = inject_fail(in->out, INJECT_FETCH, errno, "pidfd_getfd is refused");
    }
    /* No giving up here: the target would be left with a descriptor that it does not know of. */
    closed = call(in, SYS_close, remote, INJECT_NO_TIMEOUT, &ignored);
    return closed == 0 ? error : inject_fail(in->out, INJECT_CALL, -closed, "its descriptor stays open");
}

/* The signals come last: they are for the thread as it was. */
static int
restore(struct injection *in)
{
    const pid_t tid = in->target->tid;
    int error = transfer_regs(PTRACE_SETREGSET, tid, &in->regs);

    arch_forget_syscall(tid);
    arch_restore_vectors(tid, &in->vectors);
    if (error == 0 && in->reenter) {
        /* A signal that waits must interrupt the call, not precede it: that is how pause() returns. */
        error = inject_run_to_syscall_stop(in, INJECT_TIMEOUT_NS);
        error = error == -ETIMEDOUT ? 0 : error;
    }
    if (in->dispatch.mode != DISPATCH_OFF) {
        const int dispatched = set_dispatch(in, &in->dispatch);

        error = error == 0 ? dispatched : error;
    }
    if (trace(PTRACE_SETSIGMASK, tid, sizeof(in->sigmask), &in->sigmask) != 0 && error == 0) {
        error = -errno;
    }
    return error;
}

int
inject_stopped(struct injection *in)
{
    struct dispatch_configuration off = {0};
    uint64_t all = UINT64_MAX;
    int error = inspect(in), restored;

    if (error != 0) {
        return error;
    }
    /* Syscall user dispatch (Wine) would turn the call into a SIGSYS. */
    if (in->dispatch.mode != DISPATCH_OFF && (error = set_dispatch(in, &off)) != 0) {
        return inject_fail(in->out, INJECT_STOP, -error, "its syscall user dispatch cannot be suspended");
    }
    if (trace(PTRACE_SETSIGMASK, in->target->tid, sizeof(all), &all) != 0) {
        error = inject_fail(in->out, INJECT_STOP, errno, "its signals cannot be blocked");
        if (in->dispatch.mode != DISPATCH_OFF) {
            set_dispatch(in, &in->dispatch);
        }
        return error;
    }
    error = create_and_fetch(in);
    restored = restore(in);
    if (error == 0 && restored != 0) {
        error = inject_fail(in->out, INJECT_CALL, -restored, "it cannot be put back as it was");
    }
    return error;
}

#endif
