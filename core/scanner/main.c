/* mmkit-scan: the process that searches the memory of another one, or a file, for a needle.
 *
 *     mmkit-scan NEEDLE TARGET PAGEMAP exact|line
 *
 * The first three are descriptors: where the needle is read from; what is searched (/proc/PID/mem, a core file);
 * /proc/PID/pagemap, or -1. The ranges come on standard input, the answer goes to standard output: report.h. Who
 * starts it has opened them, so it needs no permission of its own. It is a program of its own so that it is no copy
 * of a process that has the needle in its memory.
 *
 * Needle, texts and what was read of the target stand in one mapping, which is locked, absent from core files, and
 * wiped before it ends. Nobody may trace it meanwhile. */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <mmkit/scan.h>
#include <mmkit/sys.h>

#include "pages.h"
#include "report.h"

enum {
    LEAST_BUFFER = 32 * 1024, /* with all else in less than the 64 KiB that containers may lock */
    MOST_HITS = 65536,
    TOO_MANY = 1,
};

typedef struct scanner {
    mmk_scan_stream stream;
    int target;
    int pagemap;
    size_t hits;
    uint64_t looked_at; /* bytes */
    scanner_record unread;
} scanner;

static _Noreturn void fail(uint32_t step, int error)
{
    report(&(scanner_record){.kind = REPORT_FAILED, .form = step, .error = error});
    report_flush();
    _exit(0);
}

/* ---- memory for secrets ------------------------------------------------------------------------------ */

/* Map memory that no core file has. *not_locked is set where it may be swapped out. */
static void *map_secret(size_t size, int *not_locked)
{
    intptr_t memory = mmk_sys_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory < 0)
        fail(STEP_MEMORY, (int)-memory);
    int error = mmk_sys_mlock((void *)memory, size);
    if (error)
        *not_locked = -error;
    error = mmk_sys_madvise((void *)memory, size, MADV_DONTDUMP);
    if (error)
        fail(STEP_MEMORY, -error);
    return (void *)memory;
}

static void be_private(void)
{
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
}

/* ---- the needle -------------------------------------------------------------------------------------- */

/* Read a file until its end, without the newline that programs add to a line. */
static ssize_t read_line(int fd, char *bytes, size_t room)
{
    ssize_t length = read_fully(fd, bytes, room);
    return length > 0 && bytes[length - 1] == '\n' ? length - 1 : length;
}

static size_t read_needle(int fd, char *bytes, size_t room, bool is_line)
{
    ssize_t length = is_line ? read_line(fd, bytes, room) : read_fully(fd, bytes, room);
    if (length < 0)
        fail(STEP_NEEDLE, (int)-length);
    if (length < MMK_SCAN_NEEDLE_MIN || length > MMK_SCAN_NEEDLE_MAX) {
        explicit_bzero(bytes, room);
        fail(STEP_LENGTH, EINVAL);
    }
    return (size_t)length;
}

/* ---- searching --------------------------------------------------------------------------------------- */

static int report_hit(void *context, const mmk_scan_hit *hit)
{
    scanner *s = context;
    if (s->hits++ == MOST_HITS)
        return TOO_MANY;
    report(&(scanner_record){.kind = REPORT_HIT,
                             .form = hit->form,
                             .address = hit->address,
                             .length = hit->length,
                             .start = hit->start,
                             .whole = hit->whole});
    return 0;
}

static void report_unread(scanner *s)
{
    if (s->unread.length)
        report(&s->unread);
    s->unread.length = 0;
}

/* Neighbours that failed alike are told together. */
static void note_unread(scanner *s, uint64_t address, uint64_t length, int error)
{
    scanner_record *unread = &s->unread;
    if (unread->length && unread->address + unread->length == address && unread->error == error) {
        unread->length += length;
        return;
    }
    report_unread(s);
    *unread = (scanner_record){.kind = REPORT_UNREAD, .error = error, .address = address, .length = length};
}

/* Search [start, end) of the addresses in a range. */
static int search_run(scanner *s, const scanner_range *range, uint64_t start, uint64_t end)
{
    while (start < end) {
        uint8_t *place;
        size_t room;
        int answer = mmk_scan_room(&s->stream, start, &place, &room);
        if (answer)
            return answer;
        size_t wanted = end - start < room ? (size_t)(end - start) : room;
        ssize_t got = pread(s->target, place, wanted, (off_t)(range->offset + (start - range->address)));
        if (got < 0 && errno == EINTR)
            continue;
        if (got == 0) {
            note_unread(s, start, end - start, ENODATA);
            return 0;
        }
        if (got < 0) {
            uint64_t next = mmk_round_down(start, mmk_page_size()) + mmk_page_size();
            next = next < end ? next : end;
            note_unread(s, start, next - start, errno);
            start = next;
            continue;
        }
        s->looked_at += (uint64_t)got;
        start += (uint64_t)got;
        answer = mmk_scan_took(&s->stream, (size_t)got);
        if (answer)
            return answer;
    }
    return 0;
}

static int search_range(scanner *s, const scanner_range *range)
{
    uint64_t start = range->address, end = range->address + range->length;
    int answer = 0;
    while (start < end && answer == 0) {
        uint64_t run_end = range->is_private ? pages_next_run(s->pagemap, &start, end) : end;
        answer = search_run(s, range, start, run_end);
        start = run_end;
    }
    report_unread(s);
    return answer;
}

static int search_ranges(scanner *s)
{
    scanner_range range;
    ssize_t got;
    while ((got = read_fully(STDIN_FILENO, &range, sizeof range)) == sizeof range) {
        int answer = search_range(s, &range);
        if (answer)
            return answer;
    }
    if (got)
        fail(STEP_RANGES, got < 0 ? (int)-got : EINVAL);
    return mmk_scan_end(&s->stream);
}

/* ---- the program ------------------------------------------------------------------------------------- */

int main(int count, char **arguments)
{
    if (count != 5)
        return 2;
    be_private();
    int not_locked = 0;
    size_t needle_room = MMK_SCAN_NEEDLE_MAX + 2; /* a newline, and one byte that is too many */
    char *needle = map_secret(needle_room, &not_locked);
    size_t length = read_needle(atoi(arguments[1]), needle, needle_room, strcmp(arguments[4], "line") == 0);

    size_t texts = mmk_round_up(mmk_scan_size(length), mmk_page_size());
    size_t reach = 4 * length, buffer = MMK_SCAN_ROOM(reach) > LEAST_BUFFER ? MMK_SCAN_ROOM(reach) : LEAST_BUFFER;
    char *memory = map_secret(texts + buffer, &not_locked);
    mmk_scan *scan = (mmk_scan *)memory;
    int error = mmk_scan_prepare(scan, needle, length);
    explicit_bzero(needle, needle_room);
    if (error)
        fail(STEP_LENGTH, -error);

    scanner s = {.target = atoi(arguments[2]), .pagemap = atoi(arguments[3])};
    s.stream = (mmk_scan_stream){
        .scan = scan, .report = report_hit, .context = &s, .buffer = (uint8_t *)memory + texts, .capacity = buffer};
    int answer = search_ranges(&s);
    explicit_bzero(memory, texts + buffer);
    report(&(scanner_record){.kind = answer == TOO_MANY ? REPORT_MANY : REPORT_DONE,
                             .error = not_locked,
                             .length = s.looked_at,
                             .whole = length});
    report_flush();
    return 0;
}
