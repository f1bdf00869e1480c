/* A server for the kernel tests: one connection at a time, one request each. Prints its port, then
 * the addresses of spin, middle, outer and what follows them. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

static volatile unsigned long sink;

/* CPU time, so that the number of samples does not depend on what else runs. */
static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Compiled with -fno-toplevel-reorder: a function ends where the next one begins. */
__attribute__((noinline)) void spin(void) {
    long long end = now() + 300000000LL;
    for (;;) {
        for (int i = 0; i < 1000000; i++) sink += i;
        if (now() > end) break;
    }
    sink++;
}

__attribute__((noinline)) void middle(void) {
    volatile char room[64];
    room[0] = 1;
    spin();
    sink += room[0];
}

/* Blocks and wakes thousands of times, by bytes to and fro between two processes on one CPU. */
static void flip(void) {
    int to[2], from[2];
    char byte = 0;
    cpu_set_t before, one;
    sched_getaffinity(0, sizeof(before), &before);
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof(one), &one);
    if (pipe(to) != 0 || pipe(from) != 0) return;
    if (fork() == 0) {
        while (read(to[0], &byte, 1) == 1 && byte == 0) write(from[1], &byte, 1);
        _exit(0);
    }
    for (int i = 0; i < 4000; i++) {
        write(to[1], &byte, 1);
        read(from[0], &byte, 1);
    }
    byte = 1;
    write(to[1], &byte, 1);
    for (int i = 0; i < 2; i++) {
        close(to[i]);
        close(from[i]);
    }
    sched_setaffinity(0, sizeof(before), &before);
}

/* Computes with its stack pointer in pages that were never written, as far as the kernel knows. */
__attribute__((noinline)) static void hollow(void) {
    volatile char room[3 * PAGE];
    for (long i = 1; i < 100000000; i++) sink = (sink + i) / 3;
    room[0] = 1;
}

__attribute__((noinline)) static void shallow(void) {
    /* The page below the frame has the return addresses of what is called. */
    unsigned long end = ((unsigned long)__builtin_frame_address(0) & -PAGE) - PAGE;
    madvise((void *)(end - 4 * PAGE), 4 * PAGE, MADV_DONTNEED);
    hollow();
    sink++;
}

__attribute__((noinline)) void outer(const char *request) {
    volatile char room[32];
    room[0] = 2;
    if (memcmp(request, "GET /nap", 8) == 0) {
        struct timespec time = {0, 300000000};
        nanosleep(&time, 0);
    } else if (memcmp(request, "GET /signal", 11) == 0) {
        raise(SIGUSR1);
    } else if (memcmp(request, "GET /flip", 9) == 0) {
        flip();
    } else if (memcmp(request, "GET /hollow", 11) == 0) {
        shallow();
    } else {
        middle();
    }
    sink += room[0];
}

__attribute__((noinline)) void last(void) { sink++; }

static void on_signal(int number) {
    middle();
    sink += number;
}

int main(void) {
    signal(SIGUSR1, on_signal);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    bind(listener, (struct sockaddr *)&address, length);
    listen(listener, 5);
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("%d\n%p %p %p %p\n", ntohs(address.sin_port), (void *)spin, (void *)middle,
           (void *)outer, (void *)last);
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, 0, 0);
        char request[1024];
        long count = read(fd, request, sizeof(request));
        if (count > 0) {
            static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
            outer(request);
            write(fd, answer, sizeof(answer) - 1);
            /* Until the client closes. */
            while (read(fd, request, sizeof(request)) > 0) {
            }
        }
        close(fd);
    }
}
