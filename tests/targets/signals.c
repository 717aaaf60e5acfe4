/*
 * signals: waits in sigsuspend() for queued signals, and checks of each that it is the next in line and where
 * it came from. A value of -1 ends it. Prints "ready", then "ok COUNT" or "bad: ...".
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static volatile sig_atomic_t expected, done, wrong;

static void
handler(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)context;
    if (info->si_value.sival_int == -1) {
        done = 1;
    } else if (info->si_value.sival_int != expected++ || info->si_code != SI_QUEUE ||
               info->si_pid != getppid()) {
        wrong++;
    }
}

int
main(void)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigset_t blocked, open;

    sigfillset(&blocked);
    sigprocmask(SIG_SETMASK, &blocked, &open);
    sigaction(SIGRTMIN, &action, NULL);
    puts("ready");
    fflush(stdout);
    while (!done) {
        int before = expected + done;

        sigsuspend(&open);
        if (expected + done == before) {
            wrong++; /* returned without a handler */
        }
    }
    if (wrong) {
        printf("bad: %d\n", (int)wrong);
    } else {
        printf("ok %d\n", (int)expected);
    }
    return wrong != 0;
}
