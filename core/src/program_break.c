#include <mmkit/program_break.h>

#include <stdbool.h>
#include <sys/stat.h>

#include <mmkit/sys.h>

/* The piece of the break that was taken here last and can be given back. */
static struct {
    intptr_t floor;
    intptr_t top;
} ours;

/* The kernel counts a process's threads as links of its task directory. Without /proc: assume the worst. */
static bool has_other_threads(void)
{
    struct stat status;
    return stat("/proc/self/task", &status) < 0 || status.st_nlink > 3;
}

static intptr_t shrink(intptr_t increment)
{
    intptr_t top = mmk_sys_sbrk(0);
    if (top != ours.top || increment < ours.floor - ours.top)
        return -MMK_EFOREIGN;
    if (has_other_threads())
        return -MMK_ETHREADS;
    intptr_t previous = mmk_sys_sbrk(increment);
    if (previous >= 0)
        ours.top = previous + increment;
    return previous;
}

intptr_t mmk_break_move(intptr_t increment)
{
    if (increment < 0)
        return shrink(increment);
    intptr_t previous = mmk_sys_sbrk(increment);
    if (previous < 0 || increment == 0)
        return previous;
    if (previous != ours.top)
        ours.floor = previous;
    ours.top = previous + increment;
    return previous;
}
