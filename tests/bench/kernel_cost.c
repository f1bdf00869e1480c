/* What hooks cost, measured where they are paid.
 *
 *   kernel_cost calls     prints nanoseconds of getppid(), of read() of 64 bytes of a file, and of write() and
 *                         read() of 64 bytes on a socket together, least of many rounds
 *   kernel_cost empty TRACEPOINT...
 *                         attaches a program that does nothing to each of them; prints "ready" and stays until
 *                         its input ends: what the kernel itself takes for a tracepoint
 *   kernel_cost serve     prints a port; GET /switch answers nanoseconds per switch between its thread and
 *                         another one on the same CPU; below DEPTH frames GET /spin/DEPTH computes 500 ms,
 *                         GET /nap/DEPTH sleeps 500 times a millisecond, GET /sleep/DEPTH once 500 ms
 *
 * Build: cc -O2 -pthread kernel_cost.c */

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "listen.h"

enum { ROUNDS = 40, CALLS = 50000, SWITCHES = 40000 };

static uint64_t now_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void pin(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void make_call(int kind, int zero, const int *pair) {
    static const char zeros[64];
    char bytes[64];
    if (kind == 0)
        syscall(SYS_getppid);
    else if (kind == 1 && read(zero, bytes, sizeof bytes) < 0)
        exit(1);
    else if (kind == 2 && (write(pair[0], zeros, sizeof zeros) < 0 || read(pair[1], bytes, sizeof bytes) < 0))
        exit(1);
}

static void print_calls(void) {
    int zero = open("/dev/zero", O_RDONLY), pair[2];
    double least[3] = {1e9, 1e9, 1e9};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        exit(1);
    pin();
    for (int round = 0; round < ROUNDS; round++)
        for (int kind = 0; kind < 3; kind++) {
            uint64_t start = now_ns(CLOCK_MONOTONIC);
            for (int i = 0; i < CALLS; i++)
                make_call(kind, zero, pair);
            double ns = (double)(now_ns(CLOCK_MONOTONIC) - start) / CALLS;
            if (ns < least[kind])
                least[kind] = ns;
        }
    printf("%.2f %.2f %.2f\n", least[0], least[1], least[2]);
}

static int hold_empty(char **tracepoints) {
    struct bpf_insn program[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0},
        {.code = BPF_JMP | BPF_EXIT},
    };
    union bpf_attr load = {0};
    load.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
    load.insns = (uint64_t)(uintptr_t)program;
    load.insn_cnt = 2;
    load.license = (uint64_t)(uintptr_t)"GPL";
    int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
    for (; *tracepoints != NULL; tracepoints++) {
        union bpf_attr open_it = {0};
        open_it.raw_tracepoint.name = (uint64_t)(uintptr_t)*tracepoints;
        open_it.raw_tracepoint.prog_fd = (uint32_t)fd;
        if (fd < 0 || syscall(SYS_bpf, BPF_RAW_TRACEPOINT_OPEN, &open_it, sizeof open_it) < 0) {
            perror(*tracepoints);
            return 1;
        }
    }
    puts("ready");
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0) {
    }
    return 0;
}

static sem_t to_other, to_us;

static void *other(void *unused) {
    (void)unused;
    pin();
    for (int i = 0; i < SWITCHES / 2; i++) {
        sem_wait(&to_other);
        sem_post(&to_us);
    }
    return NULL;
}

static double switch_ns(void) {
    pthread_t thread;
    pin();
    sem_init(&to_other, 0, 0);
    sem_init(&to_us, 0, 0);
    pthread_create(&thread, NULL, other, NULL);
    uint64_t start = now_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < SWITCHES / 2; i++) {
        sem_post(&to_other);
        sem_wait(&to_us);
    }
    double ns = (double)(now_ns(CLOCK_MONOTONIC) - start) / SWITCHES;
    pthread_join(thread, NULL);
    return ns;
}

static volatile uint64_t sink;

static void spin(void) {
    uint64_t end = now_ns(CLOCK_THREAD_CPUTIME_ID) + 500000000;
    while (now_ns(CLOCK_THREAD_CPUTIME_ID) < end)
        for (int i = 0; i < 100000; i++)
            sink += (uint64_t)i;
}

static void nap(void) {
    struct timespec time = {.tv_nsec = 1000000};
    for (int i = 0; i < 500; i++)
        nanosleep(&time, NULL);
}

static void sleep_once(void) {
    struct timespec time = {.tv_nsec = 500000000};
    nanosleep(&time, NULL);
}

__attribute__((noinline)) static int below(int depth, void (*work)(void)) {
    volatile char frame[96];
    frame[0] = (char)depth;
    if (depth > 0)
        return below(depth - 1, work) + frame[0];
    work();
    return frame[0];
}

static const struct {
    const char *prefix;
    void (*work)(void);
} WORKS[] = {{"GET /spin/", spin}, {"GET /nap/", nap}, {"GET /sleep/", sleep_once}};

_Noreturn static void serve(void) {
    int listener = listen_on_loopback("kernel_cost", 8);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        char head[2048];
        ssize_t got;
        while ((got = read(fd, head, sizeof head - 1)) > 0) {
            char body[32], answer[160];
            head[got] = 0;
            double value = 0;
            if (strncmp(head, "GET /switch ", 12) == 0)
                value = switch_ns();
            for (size_t i = 0; i < sizeof WORKS / sizeof WORKS[0]; i++) {
                size_t length = strlen(WORKS[i].prefix);
                if (strncmp(head, WORKS[i].prefix, length) == 0)
                    value = below(atoi(head + length), WORKS[i].work);
            }
            int body_length = snprintf(body, sizeof body, "%.2f\n", value);
            int length = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s",
                                  body_length, body);
            if (write(fd, answer, (size_t)length) < 0)
                break;
        }
        close(fd);
    }
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "calls") == 0) {
        print_calls();
        return 0;
    }
    if (argc > 2 && strcmp(argv[1], "empty") == 0)
        return hold_empty(argv + 2);
    if (argc == 2 && strcmp(argv[1], "serve") == 0)
        serve();
    fprintf(stderr, "usage: kernel_cost calls|empty|serve\n");
    return 2;
}
