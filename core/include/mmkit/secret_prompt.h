/* secret_prompt.h: a line typed at a terminal that does not show it, straight to where it shall stand.
 *
 * Whatever ends the wait, the terminal is as it was before: a line, a signal that ends or stops the process, or one
 * that it handles. Signals that would end or stop it are caught for the time of the call, only where nobody else
 * handles them; they are sent again when the terminal has been put back, and after a stop the wait goes on.
 *
 * Threads: one at a time. Fork: a child that another thread forks meanwhile is not asking; there signals do what they
 * did before. Signals: no.
 */
#ifndef MMKIT_SECRET_PROMPT_H
#define MMKIT_SECRET_PROMPT_H

#include <stdbool.h>
#include <sys/types.h>

#include <mmkit/base.h>

/* Write `text`, and read a line. termios(3), read(2).
 *
 * terminal  open for reading and writing, O_NONBLOCK: it is waited for only where signals are let in
 * again     go on after -EINTR: what was typed so far counts. Who does not go on flushes it, tcflush(3)
 * returns   the bytes of the line without its end, in `line`; nothing else of it was anywhere in this process
 *           -EINTR    a signal came that the process handles
 *           -ENODATA  end of file (^D) instead of a line
 *           -E2BIG    the line has more than `room` bytes; the rest was thrown away
 *           -EBUSY    another thread is asking
 *           -errno    of the terminal */
MMK_API MMK_MUST_CHECK ssize_t mmk_secret_prompt(int terminal, const char *text, bool again, char *line, size_t room);

#endif
