#include <mmkit/access.h>
#include <mmkit/advice.h>
#include <mmkit/fault.h>
#include <mmkit/protect.h>
#include <mmkit/resize.h>
#include <mmkit/snapshot.h>
#include <mmkit/storage.h>

#include "snapshot_scene.h"

/* ---- what it is for ---- */

TEST(a_snapshot_stays_while_the_region_is_written_to)
{
    open_scene();
    CHECK(snapshot_is_numbered() && dirty_bytes() == 0);
    store(region.base + pages(3) + 5, 'x');
    memset(region.base + pages(10), 'y', pages(2));
    CHECK(mmk_access_store(&region, pages(20) - 1, "zz", 2, &fault) == 0);
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(5));
    CHECK(region.base[pages(3) + 5] == 'x' && all_bytes_are(region.base + pages(10), pages(2), 'y'));
    CHECK(region.base[pages(20) - 1] == 'z' && region.base[pages(20)] == 'z');
    close_scene();
}

TEST(part_of_it_is_read_whatever_was_written)
{
    open_scene();
    store(region.base + pages(4), 'x');
    CHECK(mmk_snapshot_read(&snapshot, pages(4) - 3, copy, pages(1) + 6, &fault) == 0);
    CHECK(all_bytes_are(copy, 3, 4) && all_bytes_are(copy + 3, pages(1), 5) &&
          all_bytes_are(copy + 3 + pages(1), 3, 6));
    CHECK(mmk_snapshot_read(&snapshot, pages(PAGES), copy, 0, &fault) == 0);
    CHECK(mmk_snapshot_read(&snapshot, pages(PAGES), copy, 1, &fault) == -ERANGE);
    CHECK(mmk_snapshot_read(&snapshot, 1, copy, SIZE_MAX, &fault) == -ERANGE);
    close_scene();
}

TEST(every_first_write_is_noted_once_in_order)
{
    size_t offsets[8];
    open_scene();
    store(region.base + pages(7) + 77, 'x');
    store(region.base + pages(7) + 1, 'x');
    store(region.base + pages(2) + 22, 'x');
    store(region.base + pages(PAGES) - 1, 'x');
    CHECK(mmk_snapshot_faults(&snapshot, 0, offsets, 8) == 3);
    CHECK(offsets[0] == pages(7) + 77 && offsets[1] == pages(2) + 22 && offsets[2] == pages(PAGES) - 1);
    CHECK(mmk_snapshot_faults(&snapshot, 2, offsets, 8) == 1 && offsets[0] == pages(PAGES) - 1);
    CHECK(mmk_snapshot_faults(&snapshot, 0, offsets, 2) == 2 && mmk_snapshot_faults(&snapshot, 9, offsets, 8) == 0);
    close_scene();
}

TEST(restoring_brings_every_page_back)
{
    open_scene();
    memset(region.base + pages(1), 'x', pages(5));
    store(region.base + pages(9), 'x');
    CHECK(mmk_snapshot_restore(&snapshot, &fault) == 0);
    CHECK(pages_are_numbered(region.base, PAGES) && snapshot_is_numbered());
    store(region.base + pages(1), 'y');
    store(region.base + pages(30), 'y');
    CHECK(mmk_snapshot_restore(&snapshot, &fault) == 0 && pages_are_numbered(region.base, PAGES));
    CHECK(mmk_region_protect(&region, pages(9), pages(1), PROT_READ, false) == 0);
    store(region.base + pages(1), 'y');
    CHECK(mmk_snapshot_restore(&snapshot, &fault) == -EFAULT && fault.address == (uintptr_t)region.base + pages(9));
    CHECK(region.base[pages(1)] == 'y');
    close_scene();
}

TEST(after_its_release_nothing_is_caught_and_everything_writable)
{
    open_scene();
    store(region.base + pages(1), 'x');
    mmk_snapshot_release(&snapshot);
    CHECK(bytes_with(region.base, pages(PAGES), "rw-p") == pages(PAGES));
    CHECK(!atomic_load(&region.hook));
    CHECK(mmk_snapshot_read(&snapshot, 0, copy, 1, &fault) == -MMK_ECLOSED);
    CHECK(mmk_snapshot_restore(&snapshot, &fault) == -MMK_ECLOSED);
    CHECK(mmk_snapshot_faults(&snapshot, 0, NULL, 0) == -MMK_ECLOSED);
    mmk_snapshot_release(&snapshot);
    number_pages(&region);
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
    store(region.base + pages(1), 'x');
    CHECK(snapshot_is_numbered());
    close_scene();
}

TEST(reading_costs_nothing_and_writing_once_a_page)
{
    size_t offset;
    open_scene();
    size_t before = status_bytes("RssAnon:");
    CHECK(pages_are_numbered(region.base, PAGES));
    CHECK(mmk_snapshot_faults(&snapshot, 0, &offset, 1) == 0);
    CHECK(UNDER_SANITIZER || status_bytes("RssAnon:") < before + pages(8));
    for (int i = 0; i < 1000; i++)
        store(region.base + pages(5) + (size_t)i, 'x');
    CHECK(mmk_snapshot_faults(&snapshot, 0, &offset, 1) == 1 && atomic_load(&snapshot.fault_count) == 1);
    close_scene();
}

/* ---- protections, guards, and what the kernel writes ---- */

TEST(what_the_region_forbids_stays_forbidden)
{
    open_scene();
    CHECK(mmk_region_protect(&region, pages(2), pages(1), PROT_READ, false) == 0);
    CHECK(mmk_guarded_copy(region.base + pages(2), "x", 1, &fault) == -EFAULT && dirty_bytes() == 0);
    store(region.base + pages(3), 'x');
    CHECK(mmk_region_protect(&region, pages(3), pages(1), PROT_READ, false) == 0);
    CHECK(mmk_guarded_copy(region.base + pages(3), "y", 1, &fault) == -EFAULT && region.base[pages(3)] == 'x');
    CHECK(mmk_region_protect(&region, 0, pages(PAGES), RW, false) == 0);
    store(region.base + pages(2), 'x');
    store(region.base + pages(3), 'y');
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(2));
    close_scene();
}

TEST(a_read_only_part_becomes_writable_through_the_snapshot_only)
{
    mmk_cover cover;
    map_numbered_pages();
    CHECK(mmk_region_protect(&region, 0, pages(8), PROT_READ, false) == 0);
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
    CHECK(mmk_region_cover(&region, &cover, pages(4), pages(8), RW, false) == 0);
    memset(region.base + pages(4), 'x', pages(8));
    CHECK(snapshot_is_numbered());
    CHECK(mmk_region_uncover(&region, &cover, false) == 0);
    CHECK(mmk_guarded_copy(region.base + pages(4), "y", 1, &fault) == -EFAULT);
    CHECK(mmk_region_protect(&region, 0, pages(8), RW, false) == 0);
    memset(region.base, 'y', pages(PAGES));
    CHECK(snapshot_is_numbered());
    close_scene();
}

TEST(a_guard_is_no_page_to_be_kept)
{
    if (UNDER_TSAN)
        SKIP("TSan blocks all signals in handlers");
    map_numbered_pages();
    CHECK(mmk_region_guard(&region, pages(5), pages(1), false) == 0);
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
    CHECK(mmk_guarded_copy(region.base + pages(5), "x", 1, &fault) == -EFAULT && dirty_bytes() == 0);
    CHECK(mmk_region_guard(&region, pages(6), pages(1), true) == -MMK_EPINNED);
    CHECK(mmk_region_unguard(&region, pages(5), pages(1)) == 0);
    store(region.base + pages(5), 'x');
    CHECK(mmk_snapshot_read(&snapshot, pages(5), copy, pages(1), &fault) == 0 && all_bytes_are(copy, pages(1), 0));
    close_scene();
}

/* An OPEN page that faults for another reason must not be tried for ever. */
TEST(a_page_that_was_kept_and_is_protected_behind_its_back_faults)
{
    open_scene();
    store(region.base + pages(5), 'x');
    if (mmk_sys_madvise(region.base + pages(5), pages(1), 102 /* MADV_GUARD_INSTALL */) == 0)
        CHECK(mmk_guarded_copy(region.base + pages(5), "y", 1, &fault) == -EFAULT);
    close_scene();
}

TEST(system_calls_write_where_a_page_was_populated_for_writing)
{
    int ends[2];
    open_scene();
    CHECK(pipe(ends) == 0 && write(ends[1], "hello", 5) == 5);
    CHECK(read(ends[0], region.base + pages(8), 5) == -1 && errno == EFAULT);
    int error = mmk_region_populate(&region, pages(8), pages(1), true);
    CHECK(error == 0 || error == -EINVAL); /* before Linux 5.14 */
    CHECK(read(ends[0], region.base + pages(8), 5) == 5 && memcmp(region.base + pages(8), "hello", 5) == 0);
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(1) && atomic_load(&snapshot.fault_count) == 0);
    close(ends[0]), close(ends[1]);
    close_scene();
}

TEST(what_would_lose_contents_unseen_is_refused_by_force_too)
{
    mmk_range vacated;
    open_scene();
    CHECK(mmk_region_close(&region) == -MMK_EPINNED);
    CHECK(mmk_region_discard(&region, 0, pages(1), true) == -MMK_EPINNED);
    CHECK(mmk_region_punch(&region, 0, pages(1), true, &fault) == -MMK_EPINNED);
    CHECK(mmk_region_guard(&region, 0, pages(1), true) == -MMK_EPINNED);
    CHECK(mmk_region_resize(&region, pages(1), &vacated) == -MMK_EPINNED);
    CHECK(mmk_region_seal(&region) == -MMK_EPINNED);
    CHECK(mmk_region_set_fault_hook(&region, NULL) == -EBUSY);
    CHECK(snapshot_is_numbered());
    close_scene();
}

TEST(a_region_grows_where_it_is_under_a_snapshot)
{
    mmk_range vacated;
    mmk_request request = anonymous(pages(PAGES), RW);
    request.reserve = pages(2 * PAGES);
    map(&region, request);
    number_pages(&region);
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
    CHECK(mmk_region_resize(&region, pages(2 * PAGES), &vacated) == 0);
    memset(region.base, 'x', pages(2 * PAGES));
    CHECK(mmk_region_protect(&region, 0, pages(2 * PAGES), PROT_READ, false) == 0);
    CHECK(mmk_region_protect(&region, 0, pages(2 * PAGES), RW, false) == 0);
    memset(region.base, 'y', pages(2 * PAGES));
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(PAGES));
    close_scene();
}

TEST(what_cannot_have_one_is_told_so)
{
    mmk_snapshot other;
    map(&region, shared_anonymous(pages(1)));
    CHECK(mmk_snapshot_take(&snapshot, &region) == -MMK_EUNSUPPORTED);
    mmk_region_dispose(&region);
    CHECK(mmk_snapshot_take(&snapshot, &region) == -MMK_ECLOSED);
    mmk_snapshot_release(&snapshot);
    int fd = memory_file(pages(1));
    map(&region, file(fd, pages(1), MAP_PRIVATE));
    CHECK(mmk_snapshot_take(&snapshot, &region) == -MMK_EUNSUPPORTED);
    mmk_region_dispose(&region);
    close(fd);
    open_scene();
    CHECK(mmk_snapshot_take(&other, &region) == -EBUSY);
    mmk_snapshot_release(&other);
    CHECK(mmk_snapshot_read(&other, 0, copy, 0, &fault) == -MMK_ECLOSED && snapshot_is_numbered());
    close_scene();
}

/* ---- fork ---- */

static void go_on_in_the_child(void)
{
    CHECK(snapshot_is_numbered());
    memset(region.base, 'c', pages(PAGES));
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(PAGES));
    CHECK(mmk_snapshot_restore(&snapshot, &fault) == 0 && pages_are_numbered(region.base, PAGES));
    close_scene();
}

TEST(parent_and_child_go_on_each_by_itself)
{
    open_scene();
    store(region.base + pages(1), 'x');
    in_child(go_on_in_the_child);
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(1) && region.base[pages(1)] == 'x');
    close_scene();
}

static void child_without_the_region(void)
{
    CHECK(mmk_region_is_closed(&region));
    CHECK(mmk_snapshot_read(&snapshot, 0, copy, 1, &fault) == -MMK_ECLOSED);
    mmk_snapshot_release(&snapshot);
    mmk_region_dispose(&region);
}

TEST(a_child_that_has_not_got_the_region_has_no_snapshot)
{
    open_scene();
    CHECK(mmk_region_advise(&region, 0, pages(PAGES), 10 /* MADV_DONTFORK */) == 0);
    in_child(child_without_the_region);
    CHECK(snapshot_is_numbered());
    close_scene();
}

/* ---- a kernel that refuses ---- */

static size_t allowed_first, allowed_end, refused;

/* All but one range: as at vm.max_map_count, where moving the border between two areas needs none, and splitting one
 * does. */
static int refuse_to_split(const struct seccomp_data *call)
{
    size_t first = (call->args[0] - (uintptr_t)region.base) / mmk_page_size(), count = call->args[1] / mmk_page_size();
    if (first >= PAGES || (first == allowed_first && first + count == allowed_end))
        return 0;
    refused++;
    return ENOMEM;
}

static void store_where_only_this_may_be_opened(size_t page, size_t first, size_t end)
{
    allowed_first = first, allowed_end = end;
    atomic_store(&watched.armed, true);
    store(region.base + pages(page), 'x');
    atomic_store(&watched.armed, false);
    CHECK(snapshot_is_numbered());
}

static void store_at_the_limit(void)
{
    open_scene();
    store(region.base + pages(40), 'x');
    watch_mprotect(refuse_to_split);
    store_where_only_this_may_be_opened(30, 30, 40);
    CHECK(refused == 1 && dirty_bytes() == pages(11));
    store_where_only_this_may_be_opened(50, 50, PAGES);
    CHECK(refused == 2 && dirty_bytes() == pages(25));
    store_where_only_this_may_be_opened(20, 0, 30);
    CHECK(refused == 4 && dirty_bytes() == pages(55));
    close_scene();
}

TEST(where_the_process_has_too_many_areas_pages_around_are_kept_as_well)
{
    if (UNDER_TSAN)
        SKIP("TSan puts handlers off");
    in_child(store_at_the_limit);
}

static int refuse_protecting(const struct seccomp_data *call)
{
    return call->args[2] == PROT_READ ? ENOMEM : 0;
}

static void take_where_it_is_refused(void)
{
    map_numbered_pages();
    watch_mprotect(refuse_protecting);
    atomic_store(&watched.armed, true);
    CHECK(mmk_snapshot_take(&snapshot, &region) == -ENOMEM);
    atomic_store(&watched.armed, false);
    CHECK(!atomic_load(&region.snapshot) && !atomic_load(&region.hook));
    CHECK(bytes_with(region.base, pages(PAGES), "rw-p") == pages(PAGES));
    mmk_snapshot_release(&snapshot);
    CHECK(mmk_region_close(&region) == 0);
}

TEST(a_snapshot_that_is_refused_changes_nothing)
{
    in_child(take_where_it_is_refused);
}

int main(void)
{
    RUN(a_snapshot_stays_while_the_region_is_written_to);
    RUN(part_of_it_is_read_whatever_was_written);
    RUN(every_first_write_is_noted_once_in_order);
    RUN(restoring_brings_every_page_back);
    RUN(after_its_release_nothing_is_caught_and_everything_writable);
    RUN(reading_costs_nothing_and_writing_once_a_page);
    RUN(what_the_region_forbids_stays_forbidden);
    RUN(a_read_only_part_becomes_writable_through_the_snapshot_only);
    RUN(a_guard_is_no_page_to_be_kept);
    RUN(a_page_that_was_kept_and_is_protected_behind_its_back_faults);
    RUN(system_calls_write_where_a_page_was_populated_for_writing);
    RUN(what_would_lose_contents_unseen_is_refused_by_force_too);
    RUN(a_region_grows_where_it_is_under_a_snapshot);
    RUN(what_cannot_have_one_is_told_so);
    RUN(parent_and_child_go_on_each_by_itself);
    RUN(a_child_that_has_not_got_the_region_has_no_snapshot);
    RUN(where_the_process_has_too_many_areas_pages_around_are_kept_as_well);
    RUN(a_snapshot_that_is_refused_changes_nothing);
    return 0;
}
