#include "report.h"

#include <errno.h>
#include <unistd.h>

enum { WAITING = 128 };

static scanner_record waiting[WAITING];
static size_t count;

ssize_t read_fully(int fd, void *bytes, size_t length)
{
    size_t done = 0;
    while (done < length) {
        ssize_t got = read(fd, (char *)bytes + done, length - done);
        if (got == 0)
            break;
        if (got < 0 && errno != EINTR)
            return -errno;
        done += got > 0 ? (size_t)got : 0;
    }
    return (ssize_t)done;
}

void report_flush(void)
{
    size_t length = count * sizeof waiting[0];
    for (size_t done = 0; done < length;) {
        ssize_t put = write(STDOUT_FILENO, (char *)waiting + done, length - done);
        if (put < 0 && errno != EINTR)
            _exit(1); /* nobody listens */
        done += put > 0 ? (size_t)put : 0;
    }
    count = 0;
}

void report(const scanner_record *record)
{
    waiting[count++] = *record;
    if (count == WAITING)
        report_flush();
}
