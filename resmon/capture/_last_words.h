/* The last words of a process that ends without a word from Python: the end marks of its flights, written by a signal's handler or,
 * with the status that nobody but exit() is told, while the process exits.
 *
 * In a handler nothing may be done but calls that POSIX names async-signal-safe; an end mark is an open, a write and a rename, into
 * room that was reserved when the flight began (layout.reserve). It comes whatever Python is doing at that moment, deep inside of a
 * collective too, which a handler in Python would have to wait for.
 *
 * What the program does with its signals stays as it was. A signal whose action was the default one ends the process as before, by
 * the same signal, once the mark is written. A handler that was there is called, and the signal is noted: how the run ends is then
 * up to that handler. One that comes later takes our place; if it is one of Python's, which calls none that was before it, we are put
 * in front of it again some steps later, else the signal is none of our business any more. A signal that was ignored stays so.
 * Children that are forked inherit the handler and are not spoken for.
 */

#if defined(_WIN32)

#define LAST_WORDS_METHODS

#else

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define FLIGHTS 64
#define LONGEST_MARK 4096
#define LONGEST_REASON 2048
#define LOOKS 16 /* steps between two looks at who has the signals */

struct flight {
    volatile sig_atomic_t taken;
    volatile sig_atomic_t leaving; /* its end depends on the exit status */
    volatile sig_atomic_t noted;   /* the signal that a handler of the program's own was given last */
    volatile time_t noted_at;
    pid_t owner;
    volatile long long step; /* the newest that is over, or -1 */
    char reserved[PATH_MAX], end[PATH_MAX];
    char reason[LONGEST_REASON]; /* to be said besides the exit status, as it stands inside of a JSON string */
};

static struct flight flights[FLIGHTS];

#define ENDS(signal, how, is_crash) {.number = signal, .name = #signal, .outcome = how, .crash = is_crash}

static struct {
    int number;
    const char *name, *outcome;
    int crash; /* a handler that was there may mend what happened, so it is left alone */
    int held; /* ours was put there and not taken away by us */
    struct sigaction before;
} signals[] = {
    ENDS(SIGTERM, "interrupted", 0),
    ENDS(SIGINT, "interrupted", 0),
    ENDS(SIGHUP, "interrupted", 0),
    ENDS(SIGSEGV, "killed", 1),
    ENDS(SIGBUS, "killed", 1),
    ENDS(SIGFPE, "killed", 1),
    ENDS(SIGILL, "killed", 1),
    ENDS(SIGABRT, "killed", 1),
};

#define SIGNALS (sizeof signals / sizeof *signals)

static char *text(char *to, const char *from)
{
    while (*from)
        *to++ = *from++;
    return to;
}

static char *decimal(char *to, unsigned long long number, int digits)
{
    char reversed[24];
    int n = 0;
    do
        reversed[n++] = (char)('0' + number % 10);
    while ((number /= 10) || n < digits);
    while (n)
        *to++ = reversed[--n];
    return to;
}

/* The end mark, whole or not at all. Without the reserved file there is nothing to say: the mark is written already. */
static void mark(const struct flight *of, const char *outcome, const char *reason, int status)
{
    char content[LONGEST_MARK], *to = content;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    to = text(text(text(to, "{\"outcome\": \""), outcome), "\", \"time\": ");
    to = decimal(to, (unsigned long long)now.tv_sec, 1);
    *to++ = '.';
    to = decimal(to, (unsigned long long)now.tv_nsec / 1000, 6);
    to = text(to, ", \"step\": ");
    to = of->step < 0 ? text(to, "null") : decimal(to, (unsigned long long)of->step, 1);
    to = text(to, ", \"reason\": \"");
    if (status) {
        to = decimal(text(to, "exit status "), (unsigned long long)status, 1);
        to = text(to, reason);
    } else
        to = text(to, reason);
    to = text(to, "\"}\n");
    int file = open(of->reserved, O_WRONLY | O_CLOEXEC);
    if (file < 0)
        return;
    ssize_t length = to - content;
    int whole = write(file, content, (size_t)length) == length && ftruncate(file, length) == 0;
    close(file);
    if (whole)
        rename(of->reserved, of->end);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    int before_errno = errno;
    size_t i = 0;
    while (i < SIGNALS - 1 && signals[i].number != number)
        i++;
    const struct sigaction *before = &signals[i].before;
    int is_default = !(before->sa_flags & SA_SIGINFO) && before->sa_handler == SIG_DFL;
    pid_t self = getpid();
    for (int j = 0; j < FLIGHTS; j++) {
        if (!flights[j].taken || flights[j].owner != self)
            continue;
        if (is_default)
            mark(&flights[j], signals[i].outcome, signals[i].name, 0);
        else {
            flights[j].noted_at = time(NULL);
            flights[j].noted = number;
        }
    }
    if (is_default) {
        sigaction(number, before, NULL);
        raise(number); /* it is blocked until we return, and then ends the process */
    } else if (before->sa_flags & SA_SIGINFO)
        before->sa_sigaction(number, info, context);
    else
        before->sa_handler(number);
    errno = before_errno;
}

/* What Python has the kernel call for every handler that is a Python function; not known where SIGINT has none. */
static void (*trampoline)(int);

static void hold_signals(void)
{
    struct sigaction interrupt;
    if (!trampoline && sigaction(SIGINT, NULL, &interrupt) == 0 && !(interrupt.sa_flags & SA_SIGINFO) &&
        interrupt.sa_handler != SIG_DFL && interrupt.sa_handler != SIG_IGN)
        trampoline = interrupt.sa_handler;
    for (size_t i = 0; i < SIGNALS; i++) {
        struct sigaction now, ours;
        if (sigaction(signals[i].number, NULL, &now) != 0)
            continue;
        int takes_context = now.sa_flags & SA_SIGINFO;
        int is_default = !takes_context && now.sa_handler == SIG_DFL;
        if (takes_context ? now.sa_sigaction == on_signal : now.sa_handler == SIG_IGN)
            continue;
        /* Who has replaced our handler once may call it as the one before theirs, and must not be called by it. */
        int is_pythons = !takes_context && trampoline && now.sa_handler == trampoline;
        if (!is_default && (signals[i].crash || (signals[i].held && !is_pythons)))
            continue;
        signals[i].before = now;
        ours = now; /* its mask, and whether system calls are taken up again */
        ours.sa_sigaction = on_signal;
        ours.sa_flags = (now.sa_flags & ~SA_RESETHAND) | SA_SIGINFO | SA_ONSTACK;
        signals[i].held |= sigaction(signals[i].number, &ours, NULL) == 0;
    }
}

/* Where the handler is not ours any more somebody else has put theirs there, and it stays. */
static void release_signals(void)
{
    for (size_t i = 0; i < SIGNALS; i++) {
        struct sigaction now;
        if (!signals[i].held || sigaction(signals[i].number, NULL, &now) != 0)
            continue;
        if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_signal)
            sigaction(signals[i].number, &signals[i].before, NULL), signals[i].held = 0;
    }
}

#if defined(__GLIBC__)
static void on_exiting(int status, void *unused)
{
    (void)unused;
    status &= 0xff;
    pid_t self = getpid();
    for (int j = 0; j < FLIGHTS; j++) {
        if (!flights[j].taken || flights[j].owner != self || !flights[j].leaving)
            continue;
        /* As a shell says it of its children, and scripts with handlers of their own. */
        const char *told = status == 128 + SIGTERM ? "SIGTERM" : status == 128 + SIGINT ? "SIGINT" : NULL;
        if (told)
            mark(&flights[j], "interrupted", told, 0);
        else
            mark(&flights[j], status ? "failed" : "finished", status ? flights[j].reason : "", status);
        flights[j].taken = 0;
    }
}
#endif

static struct flight *flight_of(PyObject *handle)
{
    long i = PyLong_AsLong(handle);
    if (i == -1 && PyErr_Occurred())
        return NULL;
    if (i < 0 || i >= FLIGHTS || !flights[i].taken)
        return (void)PyErr_Format(PyExc_ValueError, "there is no flight %ld", i), NULL;
    return &flights[i];
}

static PyObject *last_words_begin(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    char *paths[2];
    if (!expects(given, 2))
        return NULL;
    for (int i = 0; i < 2; i++) {
        Py_ssize_t length;
        if (PyBytes_AsStringAndSize(arguments[i], &paths[i], &length) < 0)
            return NULL;
        if (length >= PATH_MAX)
            return PyErr_Format(PyExc_ValueError, "a path of %zd bytes", length);
    }
    pid_t process = getpid();
    int place = 0, mine = 0;
    for (int j = FLIGHTS - 1; j >= 0; j--) {
        mine += flights[j].taken && flights[j].owner == process;
        if (!flights[j].taken || flights[j].owner != process) /* free, or left over from the process that we were forked from */
            place = j + 1;
    }
    if (!place)
        return PyErr_Format(PyExc_ValueError, "%d flights at once", FLIGHTS);
#if defined(__GLIBC__)
    static pid_t waits_for_exit; /* children inherit what waits, but not those that have replaced their program */
    if (!waits_for_exit) {
        on_exit(on_exiting, NULL);
        waits_for_exit = process;
    }
#endif
    struct flight *of = &flights[place - 1];
    memset(of, 0, sizeof *of);
    text(of->reserved, paths[0]);
    text(of->end, paths[1]);
    of->owner = process;
    of->step = -1;
    of->taken = 1;
    if (!mine)
        hold_signals();
    return PyLong_FromLong(place - 1);
}

static PyObject *last_words_step(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct flight *of;
    if (!expects(given, 2) || !(of = flight_of(arguments[0])))
        return NULL;
    long long step = PyLong_AsLongLong(arguments[1]);
    if (step == -1 && PyErr_Occurred())
        return NULL;
    of->step = step;
    static unsigned steps;
    if (++steps % LOOKS == 0)
        hold_signals();
    Py_RETURN_NONE;
}

static PyObject *last_words_noted(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct flight *of;
    if (!expects(given, 1) || !(of = flight_of(arguments[0])))
        return NULL;
    return Py_BuildValue("(iL)", (int)of->noted, (long long)of->noted_at);
}

static PyObject *last_words_leave(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct flight *of;
    char *reason;
    Py_ssize_t length;
    if (!expects(given, 2) || !(of = flight_of(arguments[0])) || PyBytes_AsStringAndSize(arguments[1], &reason, &length) < 0)
        return NULL;
    if (length >= LONGEST_REASON)
        return PyErr_Format(PyExc_ValueError, "a reason of %zd bytes", length);
    text(of->reason, reason);
#if defined(__GLIBC__)
    of->leaving = 1;
    Py_RETURN_TRUE;
#else
    Py_RETURN_FALSE;
#endif
}

static PyObject *last_words_end(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct flight *of;
    if (!expects(given, 1) || !(of = flight_of(arguments[0])))
        return NULL;
    of->taken = 0;
    int others = 0;
    for (int j = 0; j < FLIGHTS; j++)
        others += flights[j].taken && flights[j].owner == of->owner;
    if (!others)
        release_signals();
    Py_RETURN_NONE;
}

#define LAST_WORDS_METHODS                                                                          \
    {"last_words_begin", (PyCFunction)(void (*)(void))last_words_begin, METH_FASTCALL, NULL},       \
    {"last_words_step", (PyCFunction)(void (*)(void))last_words_step, METH_FASTCALL, NULL},         \
    {"last_words_noted", (PyCFunction)(void (*)(void))last_words_noted, METH_FASTCALL, NULL},       \
    {"last_words_leave", (PyCFunction)(void (*)(void))last_words_leave, METH_FASTCALL, NULL},       \
    {"last_words_end", (PyCFunction)(void (*)(void))last_words_end, METH_FASTCALL, NULL},

#endif
