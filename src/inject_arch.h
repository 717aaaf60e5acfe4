/* What differs between x86-64 and aarch64: registers, the system-call instruction, restarts. */
#ifndef PAGEMAP_INJECT_ARCH_H
#define PAGEMAP_INJECT_ARCH_H

#include <elf.h>
#include <errno.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <unistd.h>

/* The raw call: PEEK stores through `data`, and constants newer than the C library's enum pass. */
static inline long
trace(int request, pid_t tid, uintptr_t address, void *data)
{
    return syscall(SYS_ptrace, (long)request, (long)tid, address, data);
}

#if defined(__x86_64__)

typedef struct user_regs_struct arch_regs;
typedef struct {
    char none; /* system calls preserve the vector registers */
} arch_vectors;

#define ARCH_ELF_MACHINE EM_X86_64
#define ARCH_INSN_ALIGN 1
#define ARCH_REWINDS_BEFORE_STOP false

static inline bool
arch_is_syscall_insn(uint64_t word)
{
    return (word & 0xffff) == 0x050f;
}

static inline uint64_t *
arch_pc(arch_regs *regs)
{
    return (uint64_t *)&regs->rip;
}

/* orig_rax -1 says 'not in a system call': the kernel then leaves rax and rip alone on the way out. */
static inline void
arch_set_call(arch_regs *regs, uint64_t insn, long number, long argument)
{
    const unsigned long long trap_flag = 0x100;

    regs->rip = insn;
    regs->rax = (unsigned long long)number;
    regs->rdi = (unsigned long long)argument;
    regs->orig_rax = (unsigned long long)-1;
    regs->eflags &= ~trap_flag;
}

static inline long
arch_call_result(const arch_regs *regs)
{
    return (long)regs->rax;
}

#define ENTER_GETEVENTS (1U << 0) /* IORING_ENTER_GETEVENTS */
#define ENTER_EXT_ARG (1U << 3)   /* IORING_ENTER_EXT_ARG, Linux 5.11 */

/*
 * A thread stopped inside a system call shows orig_rax, and in rax a restart code that the kernel acts
 * on when the thread leaves: restored as they were, nanosleep, poll, futex or read go on as after any
 * stop. Some waits answer a stop with EINTR instead (signal(7)), which programs do not expect when no
 * handler has run. Where such a wait has no time limit, ERESTARTNOHAND says what is true of it: start
 * again, or EINTR if a handler does run. With a limit, the rest of it is not known, and EINTR stays.
 */
static inline void
arch_restart_wait(arch_regs *regs)
{
    const long erestartnohand = 514;
    bool endless = false;

    if ((long)regs->rax != -EINTR) {
        return;
    }
    switch ((long)regs->orig_rax) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
        endless = (int)regs->r10 < 0;
        break;
    case SYS_epoll_pwait2:
        endless = regs->r10 == 0;
        break;
    case SYS_rt_sigtimedwait:
        endless = regs->rdx == 0;
        break;
    case SYS_semop:
        endless = true;
        break;
    case SYS_semtimedop:
        endless = regs->r10 == 0;
        break;
    case SYS_io_getevents:
        endless = regs->r8 == 0;
        break;
    case SYS_io_uring_enter: /* EINTR: nothing was submitted; EXT_ARG may bring a limit */
        endless = (regs->r10 & ENTER_GETEVENTS) != 0 && (regs->r10 & ENTER_EXT_ARG) == 0;
        break;
    default:
        break;
    }
    if (endless) {
        regs->rax = (unsigned long long)-erestartnohand;
    }
}

static inline int
arch_save_vectors(pid_t tid, arch_vectors *vectors)
{
    (void)tid;
    (void)vectors;
    return 0;
}

static inline void
arch_restore_vectors(pid_t tid, arch_vectors *vectors)
{
    (void)tid;
    (void)vectors;
}

static inline void
arch_forget_syscall(pid_t tid)
{
    (void)tid; /* orig_rax is among the general registers */
}

static inline void
arch_take_syscall_number(arch_regs *regs, const arch_regs *from)
{
    (void)regs;
    (void)from;
}

#elif defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

#include <asm/ptrace.h>

#ifndef NT_ARM_SYSTEM_CALL
#define NT_ARM_SYSTEM_CALL 0x404
#endif
#ifndef NT_ARM_SVE
#define NT_ARM_SVE 0x405
#endif
#ifndef NT_ARM_SSVE
#define NT_ARM_SSVE 0x40b
#endif

typedef struct user_pt_regs arch_regs;

/* `svc` throws away what SVE has beyond the low 128 bits, and leaves streaming mode (Documentation/
 * arch/arm64/sve.rst): the thread did not ask for one, so its vectors are saved and put back. The
 * architecture ends at vectors of 256 bytes: 32 of them, 17 predicates of an eighth, a header. */
typedef struct {
    _Alignas(16) unsigned char data[2][12288];
    size_t size[2]; /* 0: nothing to put back */
} arch_vectors;

#define ARCH_ELF_MACHINE EM_AARCH64
#define ARCH_INSN_ALIGN 4
/*
 * arm64 decides about a restart before it stops (do_signal): pc is back at the svc, x0 is the first
 * argument again, and whether the call is to go on as restart_syscall is known to the kernel's stack
 * alone. What the thread does next is certain, though: that svc. See settle() in inject_call.c.
 */
#define ARCH_REWINDS_BEFORE_STOP true

static inline bool
arch_is_syscall_insn(uint64_t word)
{
    return (word & 0xffffffff) == 0xd4000001;
}

static inline uint64_t *
arch_pc(arch_regs *regs)
{
    return (uint64_t *)&regs->pc;
}

/* BTYPE (branch target identification) belongs to the branch that the thread has just taken, and would
 * forbid the svc in a guarded vdso. */
static inline void
arch_set_call(arch_regs *regs, uint64_t insn, long number, long argument)
{
    const unsigned long long btype = 0xc00;

    regs->pc = insn;
    regs->regs[8] = (unsigned long long)number;
    regs->regs[0] = (unsigned long long)argument;
    regs->pstate &= ~btype;
}

static inline long
arch_call_result(const arch_regs *regs)
{
    return (long)regs->regs[0];
}

static inline void
arch_restart_wait(arch_regs *regs)
{
    (void)regs; /* EINTR is in x0 and the argument that was there is gone: EINTR stays */
}

static inline int
arch_save_vectors(pid_t tid, arch_vectors *vectors)
{
    static const uintptr_t notes[2] = {NT_ARM_SVE, NT_ARM_SSVE};

    for (int i = 0; i < 2; i++) {
        struct iovec iov = {vectors->data[i], sizeof(vectors->data[i])};
        const struct user_sve_header *header = (const void *)vectors->data[i];

        vectors->size[i] = 0;
        if (trace(PTRACE_GETREGSET, tid, notes[i], &iov) != 0) {
            continue; /* this machine has none */
        }
        if ((header->flags & SVE_PT_REGS_MASK) == SVE_PT_REGS_SVE) {
            if (header->size > sizeof(vectors->data[i])) {
                return -EOVERFLOW;
            }
            vectors->size[i] = iov.iov_len;
        }
    }
    return 0;
}

static inline void
arch_restore_vectors(pid_t tid, arch_vectors *vectors)
{
    static const uintptr_t notes[2] = {NT_ARM_SVE, NT_ARM_SSVE};

    for (int i = 0; i < 2; i++) {
        struct iovec iov = {vectors->data[i], vectors->size[i]};

        if (vectors->size[i] != 0) {
            trace(PTRACE_SETREGSET, tid, notes[i], &iov);
        }
    }
}

/* The number of the call in progress is not among the registers. -1 at an entry stop: the call is not
 * made; at any other: x0 is not taken for a result and nothing is restarted. */
static inline void
arch_forget_syscall(pid_t tid)
{
    int number = -1;
    struct iovec iov = {&number, sizeof(number)};

    trace(PTRACE_SETREGSET, tid, NT_ARM_SYSTEM_CALL, &iov);
}

static inline void
arch_take_syscall_number(arch_regs *regs, const arch_regs *from)
{
    regs->regs[8] = from->regs[8];
}

#endif

#endif
