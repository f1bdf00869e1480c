/* Answers that take their time, in C, for the daemon tests: one connection at a time, one request each. Prints its port.
 *
 * /poll is a long poll: news come after 0.4 s, and with them the head; the body is written 0.8 s later. /half sends half
 * of its body, reads until the client has closed its side, and goes on after 0.6 s. /hints writes its head behind
 * interim ones, in one write, and its body after 0.6 s. */
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static volatile int calls;

static void doze(int ms) {
    struct timespec time = {0, ms * 1000000L};
    nanosleep(&time, 0);
    calls++;
}

__attribute__((noinline)) void news(void) {
    doze(400);
    calls++;
}

__attribute__((noinline)) void silence(void) {
    doze(800);
    calls++;
}

__attribute__((noinline)) void rest(void) {
    doze(600);
    calls++;
}

static void put(int fd, const char *text) { write(fd, text, strlen(text)); }

static void read_to_end(int fd) {
    char bytes[1024];
    while (read(fd, bytes, sizeof(bytes)) > 0) {
    }
}

__attribute__((noinline)) void serve(int fd, const char *head) {
    if (memcmp(head, "GET /poll", 9) == 0) {
        news();
        put(fd, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        silence();
        put(fd, "2\r\nok\r\n");
        put(fd, "0\r\n\r\n");
    } else if (memcmp(head, "GET /half", 9) == 0) {
        put(fd, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha");
        read_to_end(fd);
        rest();
        put(fd, "lf");
    } else {
        put(fd, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        rest();
        put(fd, "ok");
    }
    read_to_end(fd);
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&address, length);
    listen(listener, 5);
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, 0, 0);
        char head[1024] = {0};
        if (read(fd, head, sizeof(head) - 1) > 0) serve(fd, head);
        close(fd);
    }
}
