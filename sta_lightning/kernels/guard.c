/* Around every loop that reads a mapped file: a file that shrinks while it is read raises SIGBUS, which would end the
 * process. Inside a loop the signal comes back as a status; everywhere else it goes where it went before. */
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>

enum { STA_OK = 0, STA_SUSPECT = 1, STA_GONE = 2 };

static __thread sigjmp_buf sta_place;
static __thread volatile sig_atomic_t sta_armed;
/* A handler is put in place once, and what it passes a signal on to is what was there before it: no signal goes round in a
 * circle. When something else has taken the signal since, the next of these is put in front of that. */
enum { STA_HANDLERS = 8 };
static struct sigaction sta_before[STA_HANDLERS];
static int sta_placed;

static void sta_on_bus(const struct sigaction *before, int number, siginfo_t *info, void *context) {
    if (sta_armed && info->si_code > 0) { /* a fault, not sent by a process */
        sta_armed = 0;
        siglongjmp(sta_place, 1);
    }
    if (before->sa_flags & SA_SIGINFO) {
        before->sa_sigaction(number, info, context);
    } else if (before->sa_handler != SIG_DFL && before->sa_handler != SIG_IGN) {
        before->sa_handler(number);
    } else {
        signal(number, SIG_DFL); /* ends the process as it would have ended without us */
        raise(number);
    }
}

#define STA_HANDLER(i) \
    static void sta_on_bus_##i(int number, siginfo_t *info, void *context) { \
        sta_on_bus(&sta_before[i], number, info, context); \
    }
STA_HANDLER(0)
STA_HANDLER(1)
STA_HANDLER(2)
STA_HANDLER(3)
STA_HANDLER(4)
STA_HANDLER(5)
STA_HANDLER(6)
STA_HANDLER(7)

/* The handler in place. */
void *sta_current(void) {
    struct sigaction now;
    if (sigaction(SIGBUS, NULL, &now)) return NULL;
    return (now.sa_flags & SA_SIGINFO) ? (void *)now.sa_sigaction : (void *)now.sa_handler;
}

/* Puts a handler in front of the one in place; 0 if that could be done. */
int sta_watch(void) {
    static void (*const handlers[STA_HANDLERS])(int, siginfo_t *, void *) = {
        sta_on_bus_0, sta_on_bus_1, sta_on_bus_2, sta_on_bus_3, sta_on_bus_4, sta_on_bus_5, sta_on_bus_6, sta_on_bus_7,
    };
    struct sigaction ours;
    if (sta_placed == STA_HANDLERS || sigaction(SIGBUS, NULL, &sta_before[sta_placed])) return -1;
    memset(&ours, 0, sizeof ours);
    sigemptyset(&ours.sa_mask);
    ours.sa_sigaction = handlers[sta_placed];
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    if (sigaction(SIGBUS, &ours, NULL)) return -1;
    sta_placed++;
    return 0;
}

#define STA_GUARDED(...)                         \
    do {                                         \
        if (sigsetjmp(sta_place, 1)) return STA_GONE; \
        sta_armed = 1;                           \
        __VA_ARGS__;                             \
        sta_armed = 0;                           \
    } while (0)

/* The last thing a sum of finite numbers is: itself minus itself is 0; of NaN and of infinity it is NaN. */
#define STA_FINITE(x) ((x) - (x) == 0)
