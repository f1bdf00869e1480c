/* A host with many processes: as many as asked for that wait and do nothing, some of them services.
 *
 *   crowd PROCESSES SERVICES
 *
 * So many of them are named, SW_AGENT_NAME=bench-crowd-N; nobody would take the others for a service. Prints
 * "ready" when all have executed their program; they end with this one. Build: cc -O2 crowd.c */

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static const char MEMBER[] = "member";

_Noreturn static void become_member(const char *program, int number, int services, pid_t parent) {
    if (number < services) {
        char name[32];
        snprintf(name, sizeof name, "bench-crowd-%d", number);
        setenv("SW_AGENT_NAME", name, 1);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == parent)
        execl(program, program, MEMBER, (char *)NULL);
    _exit(1);
}

_Noreturn static void wait_for_ever(void) {
    for (;;)
        pause();
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], MEMBER) == 0)
        wait_for_ever();
    int processes = argc == 3 ? atoi(argv[1]) : 0, services = argc == 3 ? atoi(argv[2]) : 0;
    if (processes <= 0 || services < 0) {
        fprintf(stderr, "usage: crowd PROCESSES SERVICES\n");
        return 2;
    }
    /* Each child's end of the pipe closes when it executes, or dies before. */
    int started[2];
    if (pipe2(started, O_CLOEXEC) != 0) {
        perror("crowd: pipe");
        return 1;
    }
    pid_t parent = getpid();
    for (int i = 0; i < processes; i++) {
        pid_t child = fork();
        if (child < 0) {
            perror("crowd: fork");
            return 1;
        }
        if (child == 0)
            become_member(argv[0], i, services, parent);
    }
    close(started[1]);
    char byte;
    while (read(started[0], &byte, 1) > 0) {
    }
    puts("ready");
    fflush(stdout);
    wait_for_ever();
}
