/* A server with a page that never arrives, in C, for the daemon tests: one connection at a time. Prints its port.
 *
 *   stuck_server uffd|fuse library FOLDER   the page is the first of FOLDER/libpython3.11.so.1.0, which is mapped
 *   stuck_server uffd|fuse stack FOLDER     requests are served, in 3 s, on a stack whose pages above the first four never
 *                                           arrive
 *
 * With uffd, nobody fills the page, and FOLDER must be on tmpfs. With fuse, FOLDER becomes a file system that a child
 * process serves, which answers everything but reads of such pages; this program alone sees it. When the child ends the
 * file system does, and with it every wait: were it this process, a thread that waits would keep it from ending. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 32, GOOD_PAGES = 4, FILE_NODE = 2 };

static int is_library, device, client;
static char *memory;
static ucontext_t caller, served;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* The first byte that never arrives. */
static size_t bad_offset(void) { return is_library ? 0 : GOOD_PAGES * PAGE; }

static void answer(uint64_t unique, int error, const void *body, size_t length) {
    char bytes[sizeof(struct fuse_out_header) + PAGE];
    struct fuse_out_header head = {.len = sizeof(head) + length, .error = error, .unique = unique};
    memcpy(bytes, &head, sizeof(head));
    memcpy(bytes + sizeof(head), body, length);
    if (write(device, bytes, head.len) < 0 && errno != ENOENT) fail("write to /dev/fuse");
}

static struct fuse_attr attributes(uint64_t node) {
    struct fuse_attr attr = {.ino = node, .nlink = 1, .blksize = PAGE};
    attr.mode = node == FILE_NODE ? S_IFREG | 0755 : S_IFDIR | 0755;
    attr.size = node == FILE_NODE ? PAGES * PAGE : 0;
    return attr;
}

static void serve_files(void) {
    static char request[64 * PAGE], zeros[PAGE];
    for (;;) {
        if (read(device, request, sizeof(request)) < 0) {
            if (errno == EINTR || errno == ENOENT) continue;
            _exit(0);
        }
        struct fuse_in_header *head = (void *)request;
        struct fuse_init_in *init = (void *)(head + 1);
        struct fuse_read_in *reading = (void *)(head + 1);
        struct fuse_init_out inited = {.major = 7, .minor = 31, .max_write = PAGE};
        struct fuse_entry_out entry = {.nodeid = FILE_NODE, .attr_valid = 3600, .attr = attributes(FILE_NODE)};
        struct fuse_attr_out attr = {.attr_valid = 3600, .attr = attributes(head->nodeid)};
        struct fuse_open_out opened = {.fh = 1};
        switch (head->opcode) {
        case FUSE_INIT:
            if (init->minor < inited.minor) inited.minor = init->minor;
            answer(head->unique, 0, &inited, sizeof(inited));
            break;
        case FUSE_LOOKUP:
            answer(head->unique, 0, &entry, sizeof(entry));
            break;
        case FUSE_GETATTR:
            answer(head->unique, 0, &attr, sizeof(attr));
            break;
        case FUSE_OPEN:
            answer(head->unique, 0, &opened, sizeof(opened));
            break;
        case FUSE_READ:
            if (reading->offset < bad_offset()) answer(head->unique, 0, zeros, PAGE);
            break;
        case FUSE_FORGET:
        case FUSE_INTERRUPT:
            break;
        default:
            answer(head->unique, -ENOSYS, 0, 0);
        }
    }
}

static void mount_files(const char *folder) {
    char options[128];
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0) fail("/dev/fuse");
    if (unshare(CLONE_NEWNS) < 0 || mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) < 0) fail("unshare");
    snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=%d,group_id=%d", device, getuid(), getgid());
    if (mount("stuck", folder, "fuse", MS_NOSUID | MS_NODEV, options) < 0) fail("mount");
    pid_t parent = getpid();
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == parent) serve_files();
        _exit(0);
    }
    close(device);
}

static void map_file(const char *folder, int is_fuse) {
    char path[4096];
    snprintf(path, sizeof(path), "%s/libpython3.11.so.1.0", folder);
    int file = open(path, is_fuse ? O_RDONLY : O_RDWR | O_CREAT, 0755);
    if (file < 0 || (!is_fuse && ftruncate(file, PAGES * PAGE) < 0)) fail(path);
    int protection = PROT_READ | (is_library ? PROT_EXEC : PROT_WRITE);
    int flags = is_fuse ? MAP_PRIVATE : MAP_SHARED;
    memory = mmap(0, PAGES * PAGE, protection, flags, file, 0);
    if (memory == MAP_FAILED) fail("mmap");
}

static void leave_unfilled(void) {
    int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING};
    range.range.start = (uintptr_t)memory + bad_offset();
    range.range.len = PAGES * PAGE - bad_offset();
    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0 || ioctl(uffd, UFFDIO_REGISTER, &range) < 0) fail("userfaultfd");
}

/* As an attacker would: the page is asked for before anybody else does. */
static void *touch(void *unused) {
    volatile char *page = memory + bad_offset();
    (void)*page;
    return unused;
}

static void doze(void) {
    struct timespec time = {3, 0};
    nanosleep(&time, 0);
}

__attribute__((noinline)) void serve(void) {
    static const char text[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
    char head[1024];
    if (read(client, head, sizeof(head)) > 0) {
        if (!is_library) doze();
        if (write(client, text, sizeof(text) - 1) < 0) perror("write");
    }
}

int main(int count, char **arguments) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    pthread_t thread;
    if (count != 4) return 2;
    int is_fuse = strcmp(arguments[1], "fuse") == 0;
    is_library = strcmp(arguments[2], "library") == 0;
    if (is_fuse) mount_files(arguments[3]);
    map_file(arguments[3], is_fuse);
    if (!is_fuse) leave_unfilled();
    pthread_create(&thread, 0, touch, 0);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&address, length);
    listen(listener, 16);
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        client = accept(listener, 0, 0);
        if (is_library) {
            serve();
        } else {
            getcontext(&served);
            served.uc_stack.ss_sp = memory;
            served.uc_stack.ss_size = GOOD_PAGES * PAGE;
            served.uc_link = &caller;
            makecontext(&served, serve, 0);
            swapcontext(&caller, &served);
        }
        close(client);
    }
}
