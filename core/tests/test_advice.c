#include <mmkit/advice.h>
#include <mmkit/protect.h>
#include <mmkit/residency.h>

#include "support.h"

TEST(a_hint_reaches_the_kernel)
{
    mmk_region region;
    map_pages(&region, 4);
    number_pages(&region);
    static const int hints[] = {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_COLD, MADV_DONTDUMP};
    for (size_t i = 0; i < sizeof hints / sizeof *hints; i++)
        CHECK(mmk_region_advise(&region, pages(1), pages(2), hints[i]) == 0);
    CHECK(mmk_region_advise(&region, 0, pages(1), 12345) == -EINVAL);
    CHECK(mmk_region_advise(&region, 0, pages(1), MADV_REMOVE) == -MMK_EUNSUPPORTED);
    CHECK(pages_are_numbered(region.base, 4));
    mmk_region_dispose(&region);
}

TEST(advice_that_destroys_data_is_refused_and_the_data_stays)
{
    static const int destroying[] = {4, 8, 9, 24, 100, 101, 102};
    mmk_region region;
    map_pages(&region, 2);
    number_pages(&region);
    for (size_t i = 0; i < sizeof destroying / sizeof *destroying; i++) {
        CHECK(mmk_advice_destroys(&region, destroying[i]));
        CHECK(mmk_region_advise(&region, 0, pages(2), destroying[i]) == -MMK_EUNSUPPORTED);
    }
    CHECK(pages_are_numbered(region.base, 2));
    mmk_region_dispose(&region);
}

TEST(giving_shared_pages_back_destroys_nothing_and_is_a_hint)
{
    mmk_region region;
    map(&region, shared_anonymous(pages(2)));
    number_pages(&region);
    CHECK(mmk_region_advise(&region, 0, pages(2), MADV_DONTNEED) == 0);
    CHECK(pages_are_numbered(region.base, 2));
    mmk_region_dispose(&region);
}

TEST(populating_brings_every_page_in)
{
    mmk_region region;
    size_t bytes;
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    map_pages(&region, 8);
    CHECK(mmk_region_populate(&region, pages(1), pages(3), true) == 0);
    CHECK(mmk_region_resident(&region, 0, pages(8), pagemap, &bytes) == 0 && bytes >= pages(3));
    CHECK(mmk_region_populate(&region, 0, pages(8), false) == 0);
    CHECK(mmk_region_resident(&region, 0, pages(8), pagemap, &bytes) == 0 && bytes == pages(8));
    CHECK(mmk_region_populate(&region, 0, 0, true) == 0);
    mmk_region_dispose(&region);
    close(pagemap);
}

TEST(populating_past_the_end_of_the_file_says_that_an_access_would_fault)
{
    mmk_region region;
    int fd = numbered_file(pages(1));
    map(&region, file(fd, pages(3), MAP_SHARED));
    CHECK(mmk_region_populate(&region, 0, pages(1), true) == 0);
    CHECK(mmk_region_populate(&region, 0, pages(3), false) == -EFAULT);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(populating_a_guard_is_refused)
{
    mmk_region region;
    map_pages(&region, 3);
    CHECK(mmk_region_guard(&region, pages(1), pages(1), false) == 0);
    int error = mmk_region_populate(&region, 0, pages(3), true);
    CHECK(error == (region.kernel_guards ? -EFAULT : -ENOMEM));
    mmk_region_dispose(&region);
}

TEST(discarded_private_pages_read_as_zeros_or_as_the_file)
{
    mmk_region region;
    map_pages(&region, 3);
    number_pages(&region);
    CHECK(mmk_region_discard(&region, pages(1), pages(1), false) == 0);
    CHECK(region.base[0] == 1 && all_bytes_are(region.base + pages(1), pages(1), 0) && region.base[pages(2)] == 3);
    mmk_region_dispose(&region);

    int fd = numbered_file(pages(2));
    map(&region, file(fd, pages(2), MAP_PRIVATE));
    memset(region.base, 'x', pages(2));
    CHECK(mmk_region_discard(&region, 0, pages(2), false) == 0 && pages_are_numbered(region.base, 2));
    mmk_region_dispose(&region);
    close(fd);

    map(&region, shared_anonymous(pages(2)));
    number_pages(&region);
    CHECK(mmk_region_discard(&region, 0, pages(2), false) == 0 && pages_are_numbered(region.base, 2));
    mmk_region_dispose(&region);
}

TEST(other_advice_that_destroys_looks_at_views_as_discarding_does)
{
    mmk_region region;
    mmk_view view;
    map(&region, shared_anonymous(pages(2)));
    number_pages(&region);
    CHECK(mmk_view_open(&region, &view, 0, 1, false) == 0);
    CHECK(mmk_region_destroy(&region, 0, pages(2), MMK_MADV_REMOVE, false) == -MMK_EPINNED);
    CHECK(pages_are_numbered(region.base, 2));
    CHECK(mmk_region_destroy(&region, 0, pages(2), MMK_MADV_REMOVE, true) == 0);
    CHECK(all_bytes_are(region.base, pages(2), 0));
    CHECK(mmk_region_destroy(&region, pages(2), pages(1), MMK_MADV_REMOVE, true) == -ERANGE);
    mmk_view_close(&region, &view);
    mmk_region_dispose(&region);
}

TEST(what_is_looked_at_used_or_locked_is_not_discarded)
{
    mmk_region region;
    mmk_view view;
    map_pages(&region, 4);
    number_pages(&region);
    CHECK(mmk_view_open(&region, &view, pages(1), 1, false) == 0);
    CHECK(mmk_region_discard(&region, 0, pages(2), false) == -MMK_EPINNED);
    CHECK(mmk_region_discard(&region, 0, pages(1), false) == 0);
    CHECK(mmk_region_discard(&region, pages(2), pages(2), false) == 0);
    CHECK(region.base[pages(1)] == 2);
    CHECK(mmk_region_discard(&region, 0, pages(4), true) == 0 && region.base[pages(1)] == 0);
    mmk_view_close(&region, &view);

    number_pages(&region);
    CHECK(mmk_region_enter(&region) == 0);
    CHECK(mmk_region_discard(&region, 0, pages(1), false) == -MMK_EPINNED);
    mmk_region_leave(&region);
    if (!UNDER_SANITIZER) {
        CHECK(mmk_region_lock(&region, 0, pages(4)) == 0);
        CHECK(mmk_region_discard(&region, 0, pages(4), false) == -EINVAL);
        CHECK(mmk_region_unlock(&region, 0, pages(4)) == 0);
    }
    CHECK(pages_are_numbered(region.base, 4));
    mmk_region_dispose(&region);
}

int main(void)
{
    RUN(a_hint_reaches_the_kernel);
    RUN(advice_that_destroys_data_is_refused_and_the_data_stays);
    RUN(giving_shared_pages_back_destroys_nothing_and_is_a_hint);
    RUN(populating_brings_every_page_in);
    RUN(populating_past_the_end_of_the_file_says_that_an_access_would_fault);
    RUN(other_advice_that_destroys_looks_at_views_as_discarding_does);
    RUN(discarded_private_pages_read_as_zeros_or_as_the_file);
    RUN(what_is_looked_at_used_or_locked_is_not_discarded);
    RUN(populating_a_guard_is_refused);
    return 0;
}
