#include <mmkit/program_break.h>

#include <stdbool.h>
#include <sys/stat.h>

#include <mmkit/sys.h>

/* Of whoever calls mmk_break_move. */
static mmk_break_piece ours;

/* The kernel counts a process's threads as links of its task directory. Without /proc: assume the worst. */
static bool has_other_threads(void)
{
    struct stat status;
    return stat("/proc/self/task", &status) < 0 || status.st_nlink > 3;
}

static intptr_t shrink(mmk_break_piece *piece, intptr_t increment)
{
    intptr_t top = mmk_sys_sbrk(0);
    if (top != piece->top || increment < piece->floor - piece->top)
        return -MMK_EFOREIGN;
    if (has_other_threads())
        return -MMK_ETHREADS;
    intptr_t previous = mmk_sys_sbrk(increment);
    if (previous >= 0)
        piece->top = previous + increment;
    return previous;
}

intptr_t mmk_break_move_piece(mmk_break_piece *piece, intptr_t increment)
{
    if (increment < 0)
        return shrink(piece, increment);
    intptr_t previous = mmk_sys_sbrk(increment);
    if (previous < 0 || increment == 0)
        return previous;
    if (previous != piece->top)
        piece->floor = previous;
    piece->top = previous + increment;
    return previous;
}

intptr_t mmk_break_move(intptr_t increment)
{
    return mmk_break_move_piece(&ours, increment);
}
