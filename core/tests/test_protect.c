#include <mmkit/access.h>
#include <mmkit/advice.h>
#include <mmkit/protect.h>
#include <mmkit/residency.h>

#include "support.h"

enum {
    PAGES = 12,
    COVERS = 5,
};

static int kernel_prot(const mmk_region *region, size_t page)
{
    char *address = region->base + pages(page);
    return (can_read(address) ? PROT_READ : 0) | (can_write(address) ? PROT_WRITE : 0);
}

/* Are recorded and real protections of each page the expected ones ('w' RW, 'r' READ, '-' none)? */
static void check_prots(mmk_region *region, const char *expected)
{
    for (size_t page = 0; expected[page]; page++) {
        int prot = expected[page] == 'w' ? RW : expected[page] == 'r' ? PROT_READ : PROT_NONE;
        CHECK(mmk_region_prot_of_range(region, pages(page), pages(1)) == prot);
        CHECK(kernel_prot(region, page) == prot);
    }
}

static void protect(mmk_region *region, size_t page, size_t count, int prot)
{
    CHECK(mmk_region_protect(region, pages(page), pages(count), prot, false) == 0);
}

static void cover(mmk_region *region, mmk_cover *by, size_t page, size_t count, int prot)
{
    CHECK(mmk_region_cover(region, by, pages(page), pages(count), prot, false) == 0);
}

static void uncover(mmk_region *region, mmk_cover *by)
{
    CHECK(mmk_region_uncover(region, by, false) == 0);
}

TEST(protecting_a_part_or_the_whole_sets_just_that)
{
    mmk_region region;
    map_pages(&region, 6);
    protect(&region, 1, 2, PROT_READ);
    check_prots(&region, "wrrwww");
    protect(&region, 2, 2, PROT_NONE);
    check_prots(&region, "wr--ww");
    protect(&region, 0, 6, PROT_READ);
    check_prots(&region, "rrrrrr");
    CHECK(region.protections.count == 0 && region.prot == PROT_READ);
    protect(&region, 0, 0, PROT_NONE);
    check_prots(&region, "rrrrrr");
    CHECK(mmk_region_prot_of_range(&region, pages(1) + 5, 1) == PROT_READ);
    mmk_region_dispose(&region);
}

TEST(a_range_that_is_not_whole_pages_inside_is_refused)
{
    mmk_region region;
    mmk_cover unused;
    map_pages(&region, 4);
    const mmk_range bad[] = {{(char *)1, pages(1)},
                             {0, pages(1) + 1},
                             {0, pages(5)},
                             {(char *)pages(5), 0},
                             {(char *)pages(1), SIZE_MAX - pages(1) + 1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        size_t offset = (size_t)bad[i].base, length = bad[i].length;
        int refused = i < 2 ? -EINVAL : -ERANGE; /* not whole pages; not inside */
        CHECK(mmk_region_protect(&region, offset, length, PROT_NONE, false) == refused);
        CHECK(mmk_region_cover(&region, &unused, offset, length, PROT_NONE, false) == refused);
        CHECK(mmk_region_guard(&region, offset, length, false) == refused);
        CHECK(mmk_region_unguard(&region, offset, length) == refused);
        CHECK(mmk_region_lock(&region, offset, length) == refused);
        CHECK(mmk_region_discard(&region, offset, length, false) == refused);
        CHECK(mmk_region_advise(&region, offset, length, MADV_NORMAL) == refused);
    }
    CHECK(region.covers == NULL);
    check_prots(&region, "wwww");
    mmk_region_dispose(&region);
}

TEST(covers_nest_overlap_and_end_in_any_order)
{
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    mmk_region region;
    map_pages(&region, 6);
    protect(&region, 5, 1, PROT_READ);
    for (int order = 0; order < 6; order++) {
        mmk_cover covers[3];
        cover(&region, &covers[0], 0, 4, PROT_READ);
        check_prots(&region, "rrrrwr");
        cover(&region, &covers[1], 2, 4, PROT_NONE);
        check_prots(&region, "rr----");
        cover(&region, &covers[2], 3, 1, RW);
        check_prots(&region, "rr-w--");
        for (int i = 0; i < 3; i++)
            uncover(&region, &covers[orders[order][i]]);
        check_prots(&region, "wwwwwr");
        CHECK(region.covers == NULL);
    }
    mmk_region_dispose(&region);
}

TEST(what_is_protected_under_a_cover_takes_effect_when_the_cover_ends)
{
    mmk_region region;
    mmk_cover window;
    map_pages(&region, 4);
    cover(&region, &window, 1, 2, PROT_NONE);
    protect(&region, 0, 4, PROT_READ);
    check_prots(&region, "r--r");
    uncover(&region, &window);
    check_prots(&region, "rrrr");
    uncover(&region, &window); /* not there any more: nothing to do */
    mmk_region_dispose(&region);
}

TEST(a_cover_of_a_closed_region_ends_without_complaint)
{
    mmk_region region;
    mmk_cover window;
    map_pages(&region, 1);
    cover(&region, &window, 0, 1, PROT_READ);
    CHECK(mmk_region_close(&region) == 0);
    uncover(&region, &window);
    mmk_region_dispose(&region);
}

static uint64_t random_state = 88172645463325252;

static size_t random_below(size_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (size_t)(random_state % limit);
}

TEST(any_sequence_of_protections_covers_and_guards_gives_what_the_model_gives)
{
    static const int prots[] = {PROT_NONE, PROT_READ, RW};
    mmk_region region;
    mmk_cover covers[COVERS];
    int order[COVERS], laid = 0; /* oldest first */
    bool used[COVERS] = {false}, guarded[PAGES] = {false};
    int base[PAGES];
    map_pages(&region, PAGES);
    for (size_t page = 0; page < PAGES; page++)
        base[page] = RW;
    for (int step = 0; step < 4000; step++) {
        size_t first = random_below(PAGES), end = first + 1 + random_below(PAGES - first);
        int prot = prots[random_below(3)];
        size_t what = random_below(6);
        int which = (int)random_below(COVERS);
        if (what < 2) {
            protect(&region, first, end - first, prot);
            for (size_t page = first; page < end; page++)
                base[page] = prot;
        } else if (what < 4 && !used[which]) {
            cover(&region, &covers[which], first, end - first, prot);
            used[which] = true;
            order[laid++] = which;
        } else if (what < 4) {
            uncover(&region, &covers[which]);
            used[which] = false;
            int kept = 0;
            for (int i = 0; i < laid; i++)
                if (order[i] != which)
                    order[kept++] = order[i];
            laid = kept;
        } else {
            CHECK((what == 4 ? mmk_region_guard(&region, pages(first), pages(end - first), false)
                             : mmk_region_unguard(&region, pages(first), pages(end - first))) == 0);
            for (size_t page = first; page < end; page++)
                guarded[page] = what == 4;
        }
        CHECK(mmk_runs_check(&region.protections, region.prot) && mmk_runs_check(&region.guards, 0));
        for (size_t page = 0; page < PAGES; page++) {
            int expected = base[page];
            for (int i = 0; i < laid; i++)
                if (covers[order[i]].first <= page && page < covers[order[i]].end)
                    expected = covers[order[i]].prot;
            CHECK(mmk_region_prot_of_range(&region, pages(page), pages(1)) == expected);
            CHECK(kernel_prot(&region, page) == (guarded[page] ? PROT_NONE : expected));
        }
    }
    for (int i = 0; i < COVERS; i++)
        if (used[i])
            uncover(&region, &covers[i]);
    mmk_region_dispose(&region);
}

static void model_with_old_guards(void)
{
    refuse_kernel_guards();
    any_sequence_of_protections_covers_and_guards_gives_what_the_model_gives();
}

TEST(the_same_holds_where_the_kernel_has_no_guards)
{
    in_child(model_with_old_guards);
}

TEST(access_is_not_taken_from_a_live_view_but_by_force)
{
    mmk_region region;
    mmk_view reading, writing;
    mmk_cover window;
    map_pages(&region, 4);
    CHECK(mmk_view_open(&region, &reading, pages(1) + 10, 10, false) == 0);
    CHECK(mmk_view_open(&region, &writing, pages(3) - 1, 1, true) == 0);
    CHECK(mmk_region_protect(&region, pages(1), pages(1), PROT_NONE, false) == -MMK_EPINNED);
    CHECK(mmk_region_protect(&region, pages(2), pages(1), PROT_READ, false) == -MMK_EPINNED);
    CHECK(mmk_region_cover(&region, &window, 0, pages(4), PROT_READ, false) == -MMK_EPINNED);
    CHECK(mmk_region_guard(&region, pages(1), pages(1), false) == -MMK_EPINNED);
    CHECK(region.covers == NULL);
    check_prots(&region, "wwww");

    protect(&region, 0, 2, PROT_READ); /* the reading view loses nothing */
    protect(&region, 3, 1, PROT_NONE);
    check_prots(&region, "rrw-");
    CHECK(mmk_region_protect(&region, 0, pages(4), PROT_NONE, true) == 0);
    check_prots(&region, "----");

    cover(&region, &window, 0, 4, RW);
    CHECK(mmk_region_uncover(&region, &window, false) == -MMK_EPINNED);
    CHECK(region.covers == &window);
    check_prots(&region, "wwww");
    CHECK(mmk_region_uncover(&region, &window, true) == 0);
    mmk_view_close(&region, &reading);
    mmk_view_close(&region, &writing);
    mmk_region_dispose(&region);
}

/* Page 1 loses access when the window ends; the view looks at page 0, which does not. */
TEST(a_cover_ends_beside_a_view_that_loses_nothing)
{
    mmk_region region;
    mmk_view view;
    mmk_cover window;
    map_pages(&region, 2);
    protect(&region, 1, 1, PROT_NONE);
    CHECK(mmk_view_open(&region, &view, 0, 1, true) == 0);
    cover(&region, &window, 0, 2, RW);
    CHECK(mmk_region_uncover(&region, &window, false) == 0);
    check_prots(&region, "w-");
    mmk_view_close(&region, &view);
    mmk_region_dispose(&region);
}

TEST(access_is_not_taken_from_a_running_operation_but_by_force)
{
    mmk_region region;
    map_pages(&region, 2);
    CHECK(mmk_region_enter(&region) == 0);
    CHECK(mmk_region_protect(&region, 0, pages(1), PROT_READ, false) == -MMK_EPINNED);
    CHECK(mmk_region_guard(&region, 0, pages(1), false) == -MMK_EPINNED);
    protect(&region, 0, 2, RW);
    check_prots(&region, "ww");
    CHECK(mmk_region_protect(&region, 0, pages(1), PROT_READ, true) == 0);
    mmk_region_leave(&region);
    check_prots(&region, "rw");
    mmk_region_dispose(&region);
}

TEST(what_the_file_was_not_opened_for_is_refused_and_the_old_protections_stay)
{
    mmk_region region;
    mmk_cover window;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    mmk_request request = file(fd, pages(4), MAP_SHARED);
    request.prot = PROT_READ;
    map(&region, request);
    protect(&region, 1, 1, PROT_NONE);
    CHECK(mmk_region_protect(&region, 0, pages(4), RW, false) == -EACCES);
    CHECK(mmk_region_cover(&region, &window, pages(1), pages(2), RW, false) == -EACCES);
    CHECK(region.covers == NULL);
    check_prots(&region, "r-rr");
    mmk_region_dispose(&region);
    close(fd);
}

/* mprotect(2) does the areas of a range one after the other, and stops at the first that refuses. */
static void fail_half_way(void)
{
    mmk_region region;
    mmk_cover window;
    map_pages(&region, 6);
    protect(&region, 0, 2, PROT_READ);
    CHECK(mmk_sys_mseal(region.base + pages(4), pages(1), 0) == 0);
    CHECK(mmk_region_protect(&region, 0, pages(6), PROT_NONE, false) == -EPERM);
    check_prots(&region, "rrwwww");
    CHECK(mmk_region_cover(&region, &window, pages(1), pages(5), PROT_NONE, false) == -EPERM);
    check_prots(&region, "rrwwww");
}

TEST(a_protection_that_fails_half_way_is_taken_back)
{
    int error = mmk_sys_mseal(NULL, 0, 0);
    if (error == -ENOSYS)
        SKIP("no mseal(2): Linux 6.10");
    in_child(fail_half_way);
}

static void guard_and_look(void)
{
    mmk_region region;
    map_pages(&region, 6);
    number_pages(&region);
    CHECK(mmk_region_guard(&region, pages(1), pages(2), false) == 0);
    CHECK(can_read(region.base) && !can_read(region.base + pages(1)) && !can_write(region.base + pages(2)));
    CHECK(can_write(region.base + pages(3)));
    protect(&region, 0, 6, PROT_READ);
    protect(&region, 0, 6, RW);
    CHECK(!can_read(region.base + pages(1)) && !can_write(region.base + pages(2)));
    CHECK(mmk_region_discard(&region, 0, pages(4), false) == 0);
    CHECK(!can_read(region.base + pages(1)));
    CHECK(mmk_region_unguard(&region, 0, pages(2)) == 0);
    CHECK(all_bytes_are(region.base + pages(1), pages(1), 0) && !can_read(region.base + pages(2)));
    CHECK(mmk_region_unguard(&region, 0, pages(6)) == 0);
    CHECK(all_bytes_are(region.base, pages(4), 0) && region.base[pages(5)] == 6);
    mmk_region_dispose(&region);
}

TEST(a_guard_faults_whatever_the_protection_until_it_is_taken_away)
{
    guard_and_look();
}

static void guard_without_kernel_guards(void)
{
    refuse_kernel_guards();
    guard_and_look();

    /* Shared memory keeps what is behind the guard; the protection of the moment comes back. */
    mmk_region region;
    map(&region, shared_anonymous(pages(4)));
    number_pages(&region);
    CHECK(mmk_region_guard(&region, pages(1), pages(2), false) == 0);
    CHECK(!region.kernel_guards && bytes_with(region.base + pages(1), pages(2), "---s") == pages(2));
    protect(&region, 0, 4, PROT_READ);
    CHECK(mmk_region_unguard(&region, 0, pages(4)) == 0);
    check_prots(&region, "rrrr");
    CHECK(pages_are_numbered(region.base, 4));
    mmk_region_dispose(&region);
}

TEST(before_Linux_6_13_a_guard_is_PROT_NONE)
{
    in_child(guard_without_kernel_guards);
}

static void guard_locked_pages(mmk_request request)
{
    mmk_region region;
    map(&region, request);
    number_pages(&region);
    CHECK(mmk_region_lock(&region, pages(2), pages(1)) == 0);
    CHECK(mmk_region_guard(&region, pages(2), pages(1), false) == -EINVAL);
    CHECK(mmk_region_guard(&region, 0, pages(4), false) == -EINVAL);
    check_prots(&region, "wwww");
    CHECK(pages_are_numbered(region.base + pages(0), 4));
    CHECK(mmk_region_unlock(&region, pages(2), pages(1)) == 0);
    CHECK(mmk_region_guard(&region, 0, pages(4), false) == 0);
    CHECK(!can_read(region.base) && !can_read(region.base + pages(2)));
    CHECK(mmk_region_unguard(&region, 0, pages(4)) == 0);
    check_prots(&region, "wwww");
    mmk_region_dispose(&region);
}

TEST(guarding_locked_pages_is_refused_and_changes_nothing)
{
    guard_locked_pages(anonymous(pages(4), RW));
}

TEST(guarding_locked_shared_pages_is_refused_and_changes_nothing)
{
    guard_locked_pages(shared_anonymous(pages(4)));
}

static void guard_locked_pages_without_kernel_guards(void)
{
    refuse_kernel_guards();
    guard_locked_pages(anonymous(pages(4), RW));
    guard_locked_pages(shared_anonymous(pages(4)));
}

TEST(guarding_locked_pages_is_refused_by_old_kernels_too)
{
    in_child(guard_locked_pages_without_kernel_guards);
}

int main(void)
{
    RUN(protecting_a_part_or_the_whole_sets_just_that);
    RUN(a_range_that_is_not_whole_pages_inside_is_refused);
    RUN(covers_nest_overlap_and_end_in_any_order);
    RUN(what_is_protected_under_a_cover_takes_effect_when_the_cover_ends);
    RUN(a_cover_of_a_closed_region_ends_without_complaint);
    RUN(any_sequence_of_protections_covers_and_guards_gives_what_the_model_gives);
    RUN(the_same_holds_where_the_kernel_has_no_guards);
    RUN(access_is_not_taken_from_a_live_view_but_by_force);
    RUN(access_is_not_taken_from_a_running_operation_but_by_force);
    RUN(what_the_file_was_not_opened_for_is_refused_and_the_old_protections_stay);
    RUN(a_protection_that_fails_half_way_is_taken_back);
    RUN(a_guard_faults_whatever_the_protection_until_it_is_taken_away);
    RUN(before_Linux_6_13_a_guard_is_PROT_NONE);
    RUN(guarding_locked_pages_is_refused_and_changes_nothing);
    RUN(guarding_locked_shared_pages_is_refused_and_changes_nothing);
    RUN(guarding_locked_pages_is_refused_by_old_kernels_too);
    RUN(a_cover_ends_beside_a_view_that_loses_nothing);
    return 0;
}
