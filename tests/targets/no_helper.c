/*
 * Preloaded into a tracer: ptrace refuses to let another process than this one seize, as Yama's
 * kernel.yama.ptrace_scope=1 refuses the helper of an injection.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
static pid_t preloaded;

__attribute__((constructor)) static void
prepare(void)
{
    preloaded = getpid();
}

static long
raw(long number, const long *a)
{
    register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

long
syscall(long number, ...)
{
    long arguments[6], result;
    va_list list;

    va_start(list, number);
    for (int i = 0; i < 6; i++) {
        arguments[i] = va_arg(list, long);
    }
    va_end(list);
    result = number == SYS_ptrace && arguments[0] == PTRACE_SEIZE && getpid() != preloaded
                 ? -EPERM
                 : raw(number, arguments);
    if (result < 0 && result >= -4095) {
        errno = (int)-result;
        return -1;
    }
    return result;
}
#else
#error "written for x86-64"
#endif
