/* Two processes, one request each, for the daemon tests: the first answers below functions whose names the test has
 * chosen, the second, its child, below a plain one. Prints the port of each. */
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static volatile int calls;

__attribute__((noinline)) void doze(void) {
    struct timespec time = {0, 600000000L};
    nanosleep(&time, 0);
    calls++;
}

/* FUNCTIONS */

__attribute__((noinline)) void plain(int n) {
    doze();
    calls += n;
}

static int listen_anywhere(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&address, length);
    listen(listener, 5);
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

static void serve(int listener, void (*work)(int)) {
    static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    for (;;) {
        int fd = accept(listener, 0, 0);
        char head[1024] = {0};
        if (read(fd, head, sizeof(head) - 1) > 0) {
            work(SITES);
            write(fd, answer, strlen(answer));
        }
        close(fd);
    }
}

int main(void) {
    int first = listen_anywhere(), second = listen_anywhere();
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve(second, plain);
    }
    serve(first, chain0);
}
