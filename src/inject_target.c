/*
 * What is found out about a target before anything is stopped: a thread to borrow, a system-call
 * instruction in it, and the reasons not to try. Nothing here changes the target.
 */
#include "inject_private.h"

#ifdef INJECT_SUPPORTED

#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#define PIDFD_OF_THREAD O_EXCL /* PIDFD_THREAD, Linux 6.9 */

/* include/linux/sched.h. PF_IO_WORKER and PF_USER_WORKER stand in the task lists of ordinary processes, and
 * never return to user mode. */
#define TASK_FLAG_EXITING 0x4UL
#define TASK_FLAG_WORKER (0x10UL | 0x4000UL)
#define TASK_FLAG_KTHREAD 0x200000UL

struct task_stat {
    char state;
    unsigned long flags;
    int processor;
};

/* proc(5), /proc/PID/stat: fields 3, 9 and 39. The name, field 2, may contain anything but ends at the
 * last ')'. */
static int
read_stat(pid_t pid, pid_t tid, struct task_stat *stat)
{
    char path[64], text[1024];
    const char *rest;
    ssize_t size;
    int fd;

    *stat = (struct task_stat){0};
    snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? -ESRCH : -errno;
    }
    size = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (size <= 0) {
        return -ESRCH;
    }
    text[size] = '\0';
    rest = strrchr(text, ')');
    if (rest == NULL || sscanf(rest, ") %c", &stat->state) != 1) {
        return -EPROTO;
    }
    for (int field = 2; field < 39; field++) {
        rest = strchr(rest + 1, ' ');
        if (rest == NULL) {
            return -EPROTO;
        }
        if (field + 1 == 9) {
            stat->flags = strtoul(rest, NULL, 10);
        }
    }
    stat->processor = atoi(rest);
    return 0;
}

int
inject_processor(pid_t pid, pid_t tid)
{
    struct task_stat stat;
    int error = read_stat(pid, tid, &stat);

    return error != 0 ? error : stat.processor;
}

long
inject_status_field(int status_fd, const char *field)
{
    char text[65536]; /* hundreds of supplementary groups fit; one that does not is refused, not guessed */
    size_t length = 0;
    const char *line;

    for (;;) {
        ssize_t size = pread(status_fd, text + length, sizeof(text) - 1 - length, (off_t)length);

        if (size < 0) {
            return -errno;
        }
        if (size == 0) {
            break;
        }
        length += (size_t)size;
        if (length == sizeof(text) - 1) {
            return -EOVERFLOW;
        }
    }
    text[length] = '\0';
    for (line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, field, strlen(field)) == 0) {
            return strtol(line + strlen(field), NULL, 10);
        }
    }
    return length == 0 ? -ESRCH : 0; /* a kernel without the feature has no line for it */
}

static bool
is_ending(const struct task_stat *stat)
{
    return stat->state == 'Z' || stat->state == 'X' || (stat->flags & TASK_FLAG_EXITING) != 0;
}

bool
inject_is_exiting(pid_t pid, pid_t tid)
{
    struct task_stat stat;

    return read_stat(pid, tid, &stat) != 0 || is_ending(&stat);
}

/* A thread that is not about to end: the leader, or, when it has exited (it stays a zombie until the last
 * thread ends), any other. 0 when there is none, or -errno. */
static pid_t
living_thread(pid_t pid)
{
    struct task_stat stat;
    struct dirent *entry;
    char path[64];
    pid_t found = 0;
    DIR *tasks;

    if (!inject_is_exiting(pid, pid)) {
        return pid;
    }
    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    tasks = opendir(path);
    if (tasks == NULL) {
        return errno == ENOENT ? -ESRCH : -errno;
    }
    while (found == 0 && (entry = readdir(tasks)) != NULL) { // NOLINT: a DIR of our own
        pid_t tid = (pid_t)atoi(entry->d_name);

        if (tid > 0 && read_stat(pid, tid, &stat) == 0 && !is_ending(&stat) &&
            !(stat.flags & TASK_FLAG_WORKER)) {
            found = tid;
        }
    }
    closedir(tasks);
    return found;
}

bool
inject_is_alive(pid_t pid)
{
    return living_thread(pid) > 0;
}

static int
pick_thread(struct inject_target *target, struct inject_result *out)
{
    struct task_stat stat;
    int error = read_stat(target->pid, target->pid, &stat);

    if (error != 0) {
        return inject_fail(out, INJECT_TARGET, -error, "no such process");
    }
    if (stat.flags & TASK_FLAG_KTHREAD) {
        return inject_fail(out, INJECT_TARGET, EPERM, "a kernel thread has no memory of its own");
    }
    target->tid = living_thread(target->pid);
    if (target->tid < 0) {
        return inject_fail(out, INJECT_TARGET, -target->tid, "its threads cannot be listed");
    }
    if (target->tid == 0) {
        return inject_fail(out, INJECT_TARGET, ESRCH, "a zombie: it has exited and waits for its parent");
    }
    return 0;
}

/* CAP_SYS_ADMIN, without which PTRACE_O_SUSPEND_SECCOMP is refused. */
static bool
may_suspend_seccomp(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};

    return syscall(SYS_capget, &header, data) == 0 && (data[0].effective & (1U << CAP_SYS_ADMIN));
}

static int
check_status(struct inject_target *target, struct inject_result *out)
{
    char path[64];
    long tracer, seccomp;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/status", target->pid, target->tid);
    target->status_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (target->status_fd < 0) {
        return inject_fail(out, INJECT_TARGET, errno == ENOENT ? ESRCH : errno, "its status cannot be read");
    }
    tracer = inject_status_field(target->status_fd, "TracerPid:");
    seccomp = inject_status_field(target->status_fd, "Seccomp:");
    if (tracer < 0 || seccomp < 0) {
        return inject_fail(out, INJECT_TARGET, ESRCH, "its status cannot be read");
    }
    if (tracer != 0) {
        return inject_fail(out, INJECT_TRACED, EPERM, INJECT_WHY_TRACED);
    }
    if (seccomp != 0 && !may_suspend_seccomp()) {
        return inject_fail(
            out, INJECT_SECCOMP, EPERM,
            "its seccomp filter might kill it for the call; with CAP_SYS_ADMIN it can be suspended");
    }
    return 0;
}

/* /proc/PID/maps and process_vm_readv ask for the same right as ptrace, and come first. */
static int
memory_refused(int error, struct inject_result *out)
{
    if (error == EPERM || error == EACCES) {
        return inject_fail(out, INJECT_SEIZE, error, INJECT_WHY_REFUSED);
    }
    return inject_fail(out, INJECT_VDSO, error, "its memory cannot be read");
}

/* The [vdso] line of /proc/PID/maps; inode 0, so that no file's name is taken for it. */
static int
find_vdso(const struct inject_target *target, uint64_t *start, uint64_t *end, struct inject_result *out)
{
    unsigned long from, to, inode;
    char path[64], permissions[5], *line = NULL;
    size_t size = 0;
    int name, error;
    FILE *maps;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/maps", target->pid, target->tid);
    maps = fopen(path, "re");
    if (maps == NULL) {
        return memory_refused(errno == ENOENT ? ESRCH : errno, out);
    }
    error = inject_fail(out, INJECT_VDSO, EOPNOTSUPP, "it has no vdso, so no instruction can be borrowed");
    while (getline(&line, &size, maps) >= 0) {
        if (sscanf(line, "%lx-%lx %4s %*x %*s %lu %n", &from, &to, permissions, &inode, &name) == 4 &&
            inode == 0 && permissions[2] == 'x' && strcmp(line + name, "[vdso]\n") == 0) {
            *start = from;
            *end = to;
            error = 0;
            break;
        }
    }
    free(line);
    fclose(maps);
    return error;
}

/*
 * Every vdso falls back to the real call where the clock cannot be read in user mode, so the instruction
 * is in it; a second look at it follows once the target stands still. On x86 any two bytes will do, be
 * they the middle of another instruction: only this one is ever executed.
 */
static int
find_syscall_insn(struct inject_target *target, struct inject_result *out)
{
    uint64_t start = 0, end = 0, word;
    const Elf64_Ehdr *header;
    struct iovec local, remote;
    unsigned char *text = NULL;
    size_t length;
    ssize_t size;
    int error = find_vdso(target, &start, &end, out);

    if (error != 0) {
        return error;
    }
    length = end - start;
    text = malloc(length);
    if (text == NULL) {
        return inject_fail(out, INJECT_VDSO, ENOMEM, "out of memory");
    }
    local = (struct iovec){text, length};
    remote = (struct iovec){(void *)(uintptr_t)start, length}; // NOLINT: an address over there
    size = process_vm_readv(target->tid, &local, 1, &remote, 1, 0);
    if (size != (ssize_t)length) {
        error = memory_refused(size < 0 ? errno : EFAULT, out);
        goto done;
    }
    header = (const Elf64_Ehdr *)(const void *)text;
    if (length < sizeof(*header) || header->e_ident[EI_CLASS] != ELFCLASS64 ||
        header->e_machine != ARCH_ELF_MACHINE) {
        error = inject_fail(out, INJECT_TARGET, EOPNOTSUPP, "a 32-bit process");
        goto done;
    }
    error = inject_fail(out, INJECT_VDSO, EOPNOTSUPP, "its vdso has no system-call instruction");
    for (size_t at = sizeof(*header); at + sizeof(word) <= length; at += ARCH_INSN_ALIGN) {
        memcpy(&word, text + at, sizeof(word));
        if (arch_is_syscall_insn(word)) {
            target->syscall_insn = start + at;
            error = 0;
            break;
        }
    }
done:
    free(text);
    return error;
}

int
inject_find_target(pid_t pid, struct inject_target *target, struct inject_result *out)
{
    int error;

    *target = (struct inject_target){.pid = pid, .pidfd = -1, .status_fd = -1};
    if (pid == getpid()) {
        return inject_fail(out, INJECT_TARGET, EINVAL, "this very process: it needs no injection");
    }
    error = pick_thread(target, out);
    if (error != 0) {
        return error;
    }
    target->pidfd = (int)syscall(SYS_pidfd_open, target->tid, target->tid == pid ? 0 : PIDFD_OF_THREAD);
    if (target->pidfd < 0) {
        if (target->tid != pid && errno == EINVAL) {
            return inject_fail(out, INJECT_TARGET, EOPNOTSUPP, "its main thread has exited: needs Linux 6.9");
        }
        if (errno == EINVAL || errno == ENOENT) { /* before and since 6.9 */
            return inject_fail(out, INJECT_TARGET, EINVAL, "a thread, not a process: give the process id");
        }
        return inject_fail(out, INJECT_TARGET, errno, "no pidfd for it");
    }
    error = check_status(target, out);
    return error != 0 ? error : find_syscall_insn(target, out);
}

void
inject_release_target(struct inject_target *target)
{
    if (target->status_fd >= 0) {
        close(target->status_fd);
    }
    if (target->pidfd >= 0) {
        close(target->pidfd);
    }
}

#endif
