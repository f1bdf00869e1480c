/* An event loop in C, for the daemon tests: waits by poll or select, as its argument says, for new connections and for
 * all clients, and answers 150 ms after each head. Prints its port. */
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CLIENTS 16

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
static struct pollfd entries[1 + CLIENTS];
static long long due[1 + CLIENTS];

static long long now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000LL + time.tv_nsec / 1000000;
}

static void wait_by_select(int timeout_ms) {
    fd_set set;
    struct timeval time = {timeout_ms / 1000, timeout_ms % 1000 * 1000};
    FD_ZERO(&set);
    for (int i = 0; i <= CLIENTS; i++)
        if (entries[i].fd >= 0) FD_SET(entries[i].fd, &set);
    select(FD_SETSIZE, &set, 0, 0, timeout_ms < 0 ? 0 : &time);
    for (int i = 0; i <= CLIENTS; i++)
        entries[i].revents = entries[i].fd >= 0 && FD_ISSET(entries[i].fd, &set) ? POLLIN : 0;
}

static int next_timeout_ms(void) {
    long long next = -1;
    for (int i = 1; i <= CLIENTS; i++)
        if (due[i] && (next < 0 || due[i] < next)) next = due[i];
    if (next < 0) return -1;
    return next > now_ms() ? (int)(next - now_ms()) : 0;
}

static void read_from(int i) {
    char head[4096];
    if (read(entries[i].fd, head, sizeof(head)) > 0) {
        due[i] = now_ms() + 150;
    } else {
        close(entries[i].fd);
        entries[i].fd = -1;
        due[i] = 0;
    }
}

static void admit(void) {
    int fd = accept(entries[0].fd, 0, 0);
    for (int i = 1; i <= CLIENTS; i++)
        if (entries[i].fd < 0) {
            entries[i].fd = fd;
            return;
        }
    close(fd);
}

int main(int count, char **arguments) {
    int selects = count > 1 && strcmp(arguments[1], "select") == 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    for (int i = 0; i <= CLIENTS; i++) entries[i] = (struct pollfd){-1, POLLIN, 0};
    entries[0].fd = socket(AF_INET, SOCK_STREAM, 0);
    bind(entries[0].fd, (struct sockaddr *)&address, length);
    listen(entries[0].fd, 5);
    getsockname(entries[0].fd, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        if (selects)
            wait_by_select(next_timeout_ms());
        else
            poll(entries, 1 + CLIENTS, next_timeout_ms());
        for (int i = 1; i <= CLIENTS; i++) {
            if (entries[i].revents) read_from(i);
            if (due[i] && due[i] <= now_ms()) {
                write(entries[i].fd, answer, sizeof(answer) - 1);
                due[i] = 0;
            }
        }
        if (entries[0].revents) admit();
    }
}
