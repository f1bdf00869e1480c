/* What keeps the namespaces of a pod: waits for ever, ends when it is told to. */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static void leave(int signal) {
    (void)signal;
    _exit(0);
}

int main(void) {
    signal(SIGTERM, leave);
    signal(SIGINT, leave);
    for (;;)
        pause();
}
