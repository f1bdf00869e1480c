/* A server with next to no work of its own: one thread per connection, keep-alive, a constant answer.
 * What a profiler adds to each system call shows here first. Prints its port; listens on 127.0.0.1.
 * Build: cc -O2 -pthread hot_server.c */

#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "listen.h"

static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n";

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

int main(void) {
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
