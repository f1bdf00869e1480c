/* The first process of the virtual machine of `cargo xtask vm`: sets the little up that the tests
 * need, runs /test with the arguments in /args (one per line), prints its exit status on a line of
 * its own and powers off. Linked statically: the libraries in the image are the test's. */

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

static int run_test(void) {
    static char line[MAX_ARGS][256];
    char *args[MAX_ARGS + 2] = {"/test"};
    char *environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "RUST_BACKTRACE=1",
                           "LANG=C.UTF-8", "PROFILERD_TEST_C_SERVER=/server", NULL};
    FILE *file = fopen("/args", "r");
    for (int i = 0; file && i < MAX_ARGS && fgets(line[i], sizeof line[i], file); i++) {
        line[i][strcspn(line[i], "\n")] = 0;
        args[i + 1] = line[i];
    }
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
    mount_at("tmpfs", "/tmp");
    mount_at("tmpfs", "/run");
    int console = open("/dev/ttyS0", O_RDWR);
    if (console >= 0)
        for (int fd = 0; fd < 3; fd++)
            dup2(console, fd);
    loopback_up();
    int status = run_test();
    printf("\nprofilerd-vm: exit status %d\n", status);
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}
