#include <mmkit/scan.h>

#include <string.h>

/* Search what has not been, up to a place in the buffer. */
static int search_to(mmk_scan_stream *stream, size_t to)
{
    int answer = mmk_scan_bytes(stream->scan, stream->buffer, stream->filled, stream->next, to, stream->address,
                                stream->report, stream->context);
    stream->next = to;
    return answer;
}

/* Let go of what no hit can reach any more. */
static void move_down(mmk_scan_stream *stream)
{
    size_t reach = mmk_scan_reach(stream->scan);
    if (stream->next <= reach)
        return;
    size_t gone = stream->next - reach;
    memmove(stream->buffer, stream->buffer + gone, stream->filled - gone);
    stream->address += gone;
    stream->next -= gone;
    stream->filled -= gone;
}

int mmk_scan_room(mmk_scan_stream *stream, uint64_t address, uint8_t **place, size_t *room)
{
    int answer = 0;
    if (stream->filled == 0 || address != stream->address + stream->filled) {
        answer = mmk_scan_end(stream);
        stream->address = address;
    } else {
        move_down(stream);
    }
    *place = stream->buffer + stream->filled;
    *room = stream->capacity - stream->filled;
    return answer;
}

int mmk_scan_took(mmk_scan_stream *stream, size_t length)
{
    stream->filled += length;
    /* A hit that begins further on may go on in what comes next. */
    size_t reach = mmk_scan_reach(stream->scan);
    return stream->filled > stream->next + reach ? search_to(stream, stream->filled - reach) : 0;
}

int mmk_scan_end(mmk_scan_stream *stream)
{
    int answer = search_to(stream, stream->filled);
    stream->next = stream->filled = 0;
    return answer;
}
