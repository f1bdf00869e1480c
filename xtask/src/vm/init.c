/* The first process of the virtual machine of `cargo xtask vm`: sets the little up that the tests
 * need, runs each line of /runs (a program and its arguments, with tabs between them), prints the
 * exit status of each on a line of its own and powers off. Linked statically: the libraries in the
 * image are the tests'. */

#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_ARGS 32

static void mount_at(const char *type, const char *path) {
    mkdir(path, 0755);
    if (mount(type, path, type, 0, NULL) != 0)
        perror(path);
}

static void loopback_up(void) {
    struct ifreq request = {0};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    strcpy(request.ifr_name, "lo");
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request) != 0) {
        perror("lo");
        return;
    }
    request.ifr_flags |= IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &request) != 0)
        perror("lo");
    close(fd);
}

static int run_test(char *line) {
    char *args[MAX_ARGS + 1];
    char *environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "RUST_BACKTRACE=1",
                           "LANG=C.UTF-8", "PROFILERD_TEST_C_SERVER=/server",
                           "PROFILERD=/profilerd",
                           /* Emulated, the daemon may be late by more than the usual 20 ms. */
                           "SAMPLE_SERVICE_METHOD_MS=200", NULL};
    int count = 0;
    for (char *arg = strtok(line, "\t\n"); arg && count < MAX_ARGS; arg = strtok(NULL, "\t\n"))
        args[count++] = arg;
    args[count] = NULL;
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        execve(args[0], args, environment);
        perror(args[0]);
        _exit(127);
    }
    /* Orphans of the test are ours to reap; only its own end counts. */
    while (wait(&status) != child)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(void) {
    mount_at("proc", "/proc");
    mount_at("sysfs", "/sys");
    mount_at("devtmpfs", "/dev");
    mount_at("tmpfs", "/run");
    /* Not mounted: a working copy may lie below it, whose files are in the initramfs then. */
    mkdir("/tmp", 01777);
    int console = open("/dev/console", O_RDWR);
    if (console >= 0)
        for (int fd = 0; fd < 3; fd++)
            dup2(console, fd);
    loopback_up();
    static char line[4096];
    FILE *runs = fopen("/runs", "r");
    while (runs && fgets(line, sizeof line, runs)) {
        int status = run_test(line);
        printf("\nprofilerd-vm: exit status %d\n", status);
        fflush(stdout);
    }
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}
