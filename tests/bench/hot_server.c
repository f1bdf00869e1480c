/* A server with next to no work of its own: one thread per connection, keep-alive, a constant answer.
 * What a profiler adds to each system call shows here first. Prints its port; listens on 127.0.0.1.
 *
 *   hot_server [NAPS NAP_US SPIN_US]   before it answers it sleeps so often for so long, and computes after each
 *
 * Build: cc -O2 -pthread hot_server.c */

#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "listen.h"

static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n";

static long naps, nap_us, spin_us;

static long now_us(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

__attribute__((noinline)) static void spin(void) {
    long end = now_us() + spin_us;
    while (now_us() < end) {
    }
}

__attribute__((noinline)) static void work(void) {
    struct timespec nap = {.tv_sec = nap_us / 1000000, .tv_nsec = nap_us % 1000000 * 1000};
    for (long i = 0; i < naps; i++) {
        nanosleep(&nap, NULL);
        spin();
    }
}

static void *serve(void *argument) {
    int fd = (int)(intptr_t)argument;
    char head[8192];
    size_t used = 0;
    for (;;) {
        ssize_t got = read(fd, head + used, sizeof head - 1 - used);
        if (got <= 0)
            break;
        used += (size_t)got;
        head[used] = 0;
        char *end;
        while ((end = strstr(head, "\r\n\r\n")) != NULL) {
            work();
            if (write(fd, ANSWER, sizeof ANSWER - 1) < 0)
                goto closed;
            size_t length = (size_t)(end + 4 - head);
            used -= length;
            memmove(head, head + length, used + 1);
        }
        if (used == sizeof head - 1)
            break; /* a head larger than the buffer */
    }
closed:
    close(fd);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 1 && argc != 4) {
        fprintf(stderr, "usage: hot_server [NAPS NAP_US SPIN_US]\n");
        return 2;
    }
    if (argc == 4) {
        naps = atol(argv[1]);
        nap_us = atol(argv[2]);
        spin_us = atol(argv[3]);
    }
    signal(SIGPIPE, SIG_IGN);
    int listener = listen_on_loopback("hot_server", 128);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd) == 0)
            pthread_detach(thread);
        else
            close(fd);
    }
}
