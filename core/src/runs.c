#include <mmkit/runs.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int mmk_runs_reserve(mmk_runs *runs, size_t extra)
{
    if (extra <= runs->capacity - runs->count)
        return 0;
    if (extra > SIZE_MAX / 2 / sizeof *runs->items)
        return -ENOMEM;
    size_t needed = runs->count + extra;
    size_t capacity = runs->capacity * 2 > needed ? runs->capacity * 2 : needed + 2;
    mmk_run *items = reallocarray(runs->items, capacity, sizeof *items);
    if (!items)
        return -ENOMEM;
    runs->items = items;
    runs->capacity = capacity;
    return 0;
}

/* Index of the first run that ends after page. */
static size_t first_ending_after(const mmk_runs *runs, size_t page)
{
    size_t low = 0, high = runs->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (runs->items[middle].end <= page)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Replace the items [from, to) by replacement[0 .. count). */
static void splice(mmk_runs *runs, size_t from, size_t to, const mmk_run *replacement, size_t count)
{
    memmove(runs->items + from + count, runs->items + to, (runs->count - to) * sizeof *runs->items);
    memcpy(runs->items + from, replacement, count * sizeof *replacement);
    runs->count = runs->count - (to - from) + count;
}

static void append_merging(mmk_run *items, size_t *count, mmk_run run)
{
    if (run.first == run.end)
        return;
    if (*count > 0 && items[*count - 1].end == run.first && items[*count - 1].value == run.value)
        items[*count - 1].end = run.end;
    else
        items[(*count)++] = run;
}

void mmk_runs_set(mmk_runs *runs, size_t first, size_t end, int value, int otherwise)
{
    /* Everything that overlaps or touches [first, end) is replaced by at most three runs. */
    size_t from = first == 0 ? 0 : first_ending_after(runs, first - 1);
    size_t to = from;
    while (to < runs->count && runs->items[to].first <= end)
        to++;

    mmk_run pieces[3];
    size_t count = 0;
    if (from < to) {
        mmk_run head = runs->items[from];
        head.end = head.end < first ? head.end : first;
        if (head.first < head.end)
            append_merging(pieces, &count, head);
    }
    if (value != otherwise)
        append_merging(pieces, &count, (mmk_run){first, end, value});
    if (from < to) {
        mmk_run tail = runs->items[to - 1];
        tail.first = tail.first > end ? tail.first : end;
        if (tail.first < tail.end)
            append_merging(pieces, &count, tail);
    }
    splice(runs, from, to, pieces, count);
}

int mmk_runs_at(const mmk_runs *runs, size_t page, size_t limit, int otherwise, size_t *end)
{
    size_t index = first_ending_after(runs, page);
    if (index == runs->count) {
        *end = limit;
        return otherwise;
    }
    const mmk_run *run = &runs->items[index];
    size_t change = run->first > page ? run->first : run->end;
    *end = change < limit ? change : limit;
    return run->first > page ? otherwise : run->value;
}

void mmk_runs_cut(mmk_runs *runs, size_t first)
{
    while (runs->count > 0 && runs->items[runs->count - 1].first >= first)
        runs->count--;
    if (runs->count > 0 && runs->items[runs->count - 1].end > first)
        runs->items[runs->count - 1].end = first;
}

void mmk_runs_clear(mmk_runs *runs)
{
    free(runs->items);
    *runs = (mmk_runs){0};
}

bool mmk_runs_check(const mmk_runs *runs, int otherwise)
{
    for (size_t i = 0; i < runs->count; i++) {
        const mmk_run *run = &runs->items[i];
        if (run->first >= run->end || run->value == otherwise)
            return false;
        if (i == 0)
            continue;
        const mmk_run *previous = run - 1;
        if (previous->end > run->first || (previous->end == run->first && previous->value == run->value))
            return false;
    }
    return true;
}
