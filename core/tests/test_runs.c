#include <mmkit/runs.h>

#include <errno.h>
#include <string.h>

#include "check.h"

enum {
    PAGES = 48,
    STEPS = 200000,
};

static uint64_t random_state = 0x9e3779b97f4a7c15;

static size_t random_below(size_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (size_t)(random_state % limit);
}

static void set(mmk_runs *runs, size_t first, size_t end, int value, int otherwise)
{
    CHECK(mmk_runs_reserve(runs, 2) == 0);
    mmk_runs_set(runs, first, end, value, otherwise);
    CHECK(mmk_runs_check(runs, otherwise));
}

TEST(an_empty_step_function_is_the_default_everywhere)
{
    mmk_runs runs = {0};
    size_t end = 0;
    CHECK(mmk_runs_at(&runs, 5, 9, 7, &end) == 7 && end == 9);
    CHECK(mmk_runs_check(&runs, 7));
    mmk_runs_cut(&runs, 0);
    mmk_runs_clear(&runs);
    CHECK(runs.items == NULL && runs.count == 0 && runs.capacity == 0);
}

TEST(equal_neighbours_become_one_run)
{
    mmk_runs runs = {0};
    set(&runs, 0, 4, 3, 0);
    set(&runs, 8, 12, 3, 0);
    CHECK(runs.count == 2);
    set(&runs, 4, 8, 3, 0);
    CHECK(runs.count == 1 && runs.items[0].first == 0 && runs.items[0].end == 12);
    mmk_runs_clear(&runs);
}

TEST(unequal_neighbours_stay_apart_and_the_end_is_where_the_value_changes)
{
    mmk_runs runs = {0};
    size_t end = 0;
    set(&runs, 8, 12, 3, 0);
    set(&runs, 12, 16, 4, 0);
    CHECK(mmk_runs_at(&runs, 0, 40, 0, &end) == 0 && end == 8);
    CHECK(mmk_runs_at(&runs, 9, 40, 0, &end) == 3 && end == 12);
    CHECK(mmk_runs_at(&runs, 9, 11, 0, &end) == 3 && end == 11);
    CHECK(mmk_runs_at(&runs, 12, 40, 0, &end) == 4 && end == 16);
    CHECK(mmk_runs_at(&runs, 16, 40, 0, &end) == 0 && end == 40);
    mmk_runs_clear(&runs);
}

TEST(setting_the_default_stores_nothing_and_splits_what_it_meets)
{
    mmk_runs runs = {0};
    set(&runs, 2, 10, 1, 0);
    set(&runs, 4, 6, 0, 0);
    CHECK(runs.count == 2 && runs.items[0].end == 4 && runs.items[1].first == 6);
    set(&runs, 0, 20, 0, 0);
    CHECK(runs.count == 0);
    mmk_runs_clear(&runs);
}

TEST(room_that_cannot_be_had_is_refused_and_nothing_changes)
{
    mmk_runs runs = {0};
    set(&runs, 2, 10, 1, 0);
    mmk_runs before = runs;
    CHECK(mmk_runs_reserve(&runs, SIZE_MAX / 32) == -ENOMEM);
    /* Where the number of bytes wraps, and where the number of runs does. */
    CHECK(mmk_runs_reserve(&runs, SIZE_MAX / sizeof(mmk_run) - 1) == -ENOMEM);
    CHECK(mmk_runs_reserve(&runs, SIZE_MAX) == -ENOMEM);
    CHECK(memcmp(&runs, &before, sizeof runs) == 0);
    mmk_runs_clear(&runs);
}

static void check_against_model(const mmk_runs *runs, const int model[PAGES], int otherwise)
{
    CHECK(mmk_runs_check(runs, otherwise));
    for (size_t page = 0; page < PAGES; page++) {
        size_t end = 0;
        CHECK(mmk_runs_at(runs, page, PAGES, otherwise, &end) == model[page]);
        CHECK(end > page && end <= PAGES);
        for (size_t same = page; same < end; same++)
            CHECK(model[same] == model[page]);
        CHECK(end == PAGES || model[end] != model[page]);
    }
}

static void compare_with_a_plain_array(int otherwise)
{
    mmk_runs runs = {0};
    int model[PAGES];
    for (size_t page = 0; page < PAGES; page++)
        model[page] = otherwise;
    for (int step = 0; step < STEPS; step++) {
        size_t first = random_below(PAGES);
        if (random_below(50) == 0) {
            mmk_runs_cut(&runs, first);
            for (size_t page = first; page < PAGES; page++)
                model[page] = otherwise;
        } else {
            size_t end = first + 1 + random_below(random_below(2) ? PAGES - first : 1);
            int value = (int)random_below(4);
            set(&runs, first, end, value, otherwise);
            for (size_t page = first; page < end; page++)
                model[page] = value;
        }
        check_against_model(&runs, model, otherwise);
    }
    mmk_runs_clear(&runs);
}

TEST(any_sequence_of_changes_gives_what_a_plain_array_gives)
{
    compare_with_a_plain_array(0);
    compare_with_a_plain_array(2);
    compare_with_a_plain_array(-1);
}

TEST(the_checker_sees_every_kind_of_damage)
{
    mmk_run unsorted[] = {{8, 12, 1}, {0, 4, 2}}, overlapping[] = {{0, 4, 1}, {3, 6, 2}},
            unmerged[] = {{0, 4, 1}, {4, 6, 1}};
    mmk_run empty[] = {{4, 4, 1}}, is_default[] = {{0, 4, 0}};
    CHECK(!mmk_runs_check(&(mmk_runs){unsorted, 2, 2}, 0));
    CHECK(!mmk_runs_check(&(mmk_runs){overlapping, 2, 2}, 0));
    CHECK(!mmk_runs_check(&(mmk_runs){unmerged, 2, 2}, 0));
    CHECK(!mmk_runs_check(&(mmk_runs){empty, 1, 1}, 0));
    CHECK(!mmk_runs_check(&(mmk_runs){is_default, 1, 1}, 0));
}

int main(void)
{
    RUN(an_empty_step_function_is_the_default_everywhere);
    RUN(equal_neighbours_become_one_run);
    RUN(unequal_neighbours_stay_apart_and_the_end_is_where_the_value_changes);
    RUN(setting_the_default_stores_nothing_and_splits_what_it_meets);
    RUN(any_sequence_of_changes_gives_what_a_plain_array_gives);
    RUN(the_checker_sees_every_kind_of_damage);
    RUN(room_that_cannot_be_had_is_refused_and_nothing_changes);
    return 0;
}
