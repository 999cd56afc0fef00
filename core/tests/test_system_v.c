/* System V segments as regions. */
#include <mmkit/access.h>
#include <mmkit/protect.h>
#include <mmkit/registry.h>
#include <mmkit/resize.h>
#include <mmkit/storage.h>

#include <sys/shm.h>
#include <sys/wait.h>

#include "support.h"

static int segment(size_t length)
{
    int shmid = shmget(IPC_PRIVATE, length, IPC_CREAT | 0600);
    CHECK(shmid >= 0);
    return shmid;
}

static unsigned long attachments(int shmid)
{
    struct shmid_ds status;
    CHECK(shmctl(shmid, IPC_STAT, &status) == 0);
    return status.shm_nattch;
}

static mmk_request system_v(int shmid, size_t length, int prot)
{
    return (mmk_request){
        .length = length, .prot = prot, .flags = MAP_SHARED, .fd = -1, .system_v = true, .shmid = shmid};
}

static void drop(mmk_region *region, int shmid)
{
    mmk_region_dispose(region);
    CHECK(attachments(shmid) == 0);
    CHECK(shmctl(shmid, IPC_RMID, NULL) == 0);
}

TEST(an_attached_segment_is_a_region_that_the_registry_knows)
{
    mmk_region region;
    int shmid = segment(pages(1) + 10);
    size_t before = mmk_registry_count();
    map(&region, system_v(shmid, pages(1) + 10, RW));
    CHECK(mmk_registry_count() == before + 1);
    CHECK(mmk_registry_overlap((uintptr_t)region.base, 1).length == pages(2));
    CHECK(region.asked == pages(1) + 10 && mmk_region_length(&region) == pages(2) && attachments(shmid) == 1);
    CHECK(mmk_access_store(&region, 0, "hello", 5, &fault) == 0);
    char *other = shmat(shmid, NULL, SHM_RDONLY);
    CHECK(memcmp(other, "hello", 5) == 0);
    CHECK(shmdt(other) == 0);
    drop(&region, shmid);
    CHECK(mmk_registry_count() == before);
}

TEST(closing_detaches_though_the_addresses_stay_taken)
{
    mmk_region region;
    mmk_view view;
    int shmid = segment(pages(2));
    map(&region, system_v(shmid, pages(2), RW));
    CHECK(mmk_view_open(&region, &view, 0, 1, true) == 0);
    CHECK(mmk_region_close(&region) == -MMK_EPINNED && attachments(shmid) == 1);
    mmk_view_close(&region, &view);
    CHECK(mmk_region_close(&region) == 0 && attachments(shmid) == 0);
    CHECK(mmk_registry_overlap((uintptr_t)region.base, 1).length == pages(2));
    drop(&region, shmid);
}

TEST(a_segment_attached_for_reading_faults_on_writing_as_an_error)
{
    mmk_region region;
    int shmid = segment(pages(1));
    map(&region, system_v(shmid, pages(1), PROT_READ));
    CHECK(mmk_access_store(&region, 0, "x", 1, &fault) == -EFAULT && fault.reason == MMK_FAULT_PROTECTION);
    CHECK(mmk_region_protect(&region, 0, pages(1), RW, false) == -EACCES);
    drop(&region, shmid);
}

TEST(part_of_a_segment_can_be_protected_and_all_of_it_is_detached)
{
    mmk_region region;
    int shmid = segment(pages(3));
    map(&region, system_v(shmid, pages(3), RW));
    CHECK(mmk_region_protect(&region, pages(1), pages(1), PROT_NONE, false) == 0);
    CHECK(mmk_access_store(&region, pages(1), "x", 1, &fault) == -EFAULT);
    CHECK(mmk_region_punch(&region, 0, pages(1), false, &fault) == 0);
    drop(&region, shmid);
}

TEST(a_segment_does_not_grow_and_takes_no_reservation)
{
    mmk_region region;
    mmk_range vacated;
    int shmid = segment(pages(1));
    mmk_request request = system_v(shmid, pages(1), RW);
    request.reserve = pages(2);
    CHECK(mmk_region_map(&region, &request) == -EINVAL && attachments(shmid) == 0);
    request.reserve = 0;
    map(&region, request);
    CHECK(mmk_region_resize(&region, pages(2), &vacated) == -MMK_EUNSUPPORTED);
    drop(&region, shmid);
    CHECK(mmk_region_map(&region, &request) == -EINVAL || mmk_region_map(&region, &request) == -EIDRM);
}

TEST(a_forked_child_has_the_segment_and_what_it_closes_is_its_own)
{
    mmk_region region;
    int shmid = segment(pages(1)), status;
    map(&region, system_v(shmid, pages(1), RW));
    pid_t child = fork();
    if (child == 0) {
        bool good = attachments(shmid) == 2 && mmk_access_store(&region, 0, "c", 1, &fault) == 0;
        good = good && mmk_region_close(&region) == 0 && attachments(shmid) == 1;
        _exit(good ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(region.base[0] == 'c' && attachments(shmid) == 1);
    drop(&region, shmid);
}

int main(void)
{
    RUN(an_attached_segment_is_a_region_that_the_registry_knows);
    RUN(closing_detaches_though_the_addresses_stay_taken);
    RUN(a_segment_attached_for_reading_faults_on_writing_as_an_error);
    RUN(part_of_a_segment_can_be_protected_and_all_of_it_is_detached);
    RUN(a_segment_does_not_grow_and_takes_no_reservation);
    RUN(a_forked_child_has_the_segment_and_what_it_closes_is_its_own);
    return 0;
}
