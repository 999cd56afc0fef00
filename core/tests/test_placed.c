#include <mmkit/placed.h>

#include <sched.h>

#include <mmkit/barrier.h>
#include <mmkit/condition.h>
#include <mmkit/event.h>
#include <mmkit/lock.h>
#include <mmkit/semaphore.h>

#include "meeting.h"

#define BEING_MADE (UINT64_C(0x2077656e) << 32)

static mmk_lock *new_lock(void)
{
    mmk_lock *lock = shared_zeros(sizeof *lock);
    CHECK(mmk_lock_create(lock, MMK_LOCK) == 0);
    return lock;
}

static int check(const mmk_lock *lock)
{
    return mmk_placed_check(&lock->placed, MMK_LOCK, sizeof *lock);
}

TEST(each_kind_is_found_as_itself_and_as_no_other)
{
    static const size_t sizes[] = {sizeof(mmk_lock),      sizeof(mmk_lock),  sizeof(mmk_condition),
                                   sizeof(mmk_semaphore), sizeof(mmk_event), sizeof(mmk_barrier)};
    for (int made = MMK_LOCK; made <= MMK_BARRIER; made++) {
        void *place = shared_zeros(sizes[made - 1]);
        int error = made == MMK_CONDITION   ? mmk_condition_create(place)
                    : made == MMK_SEMAPHORE ? mmk_semaphore_create(place, 1, true)
                    : made == MMK_EVENT     ? mmk_event_create(place)
                    : made == MMK_BARRIER   ? mmk_barrier_create(place, 2)
                                            : mmk_lock_create(place, (mmk_placed_kind)made);
        CHECK(error == 0);
        for (int kind = MMK_LOCK; kind <= MMK_BARRIER; kind++)
            CHECK(mmk_placed_check(place, (mmk_placed_kind)kind, sizes[kind - 1]) == (kind == made ? 0 : -MMK_EKIND));
        CHECK(munmap(place, sizes[made - 1]) == 0);
    }
}

TEST(what_is_not_there_or_not_ours_is_refused_by_its_reason)
{
    mmk_lock *lock = shared_zeros(sizeof *lock);
    CHECK(check(lock) == -MMK_ENOTHING);
    atomic_store(&lock->placed.magic, 0x1234);
    CHECK(check(lock) == -MMK_EALIEN);
    CHECK(mmk_lock_create(lock, MMK_LOCK) == -MMK_EALIEN);
    atomic_store(&lock->placed.magic, 0);
    CHECK(mmk_lock_create(lock, MMK_LOCK) == 0 && check(lock) == 0);
    CHECK(mmk_lock_create(lock, MMK_LOCK) == -EEXIST);
    mmk_placed good = lock->placed;
    lock->placed.version++;
    CHECK(check(lock) == -MMK_EFORMAT);
    lock->placed = good;
    lock->placed.size++;
    CHECK(check(lock) == -MMK_EFORMAT);
    lock->placed = good;
    lock->placed.mutex_abi ^= 3 << 16;
    CHECK(check(lock) == -MMK_EABI);
    lock->placed = good;
    lock->placed.boot[15] ^= 1;
    CHECK(check(lock) == -MMK_EBOOT);
    lock->placed = good;
    lock->placed.namespaces++;
    CHECK(check(lock) == -MMK_EOTHERPIDS);
    lock->placed = good;
    CHECK(check(lock) == 0);
    mmk_placed_remove(&lock->placed);
    CHECK(check(lock) == -MMK_ENOTHING);
    CHECK(mmk_lock_create(lock, MMK_RLOCK) == 0);
    CHECK(munmap(lock, sizeof *lock) == 0);
}

static void take_place_and_die(void *with)
{
    mmk_lock *lock = with;
    atomic_store(&lock->placed.magic, BEING_MADE | (uint32_t)getpid());
    for (;;)
        pause();
}

TEST(a_maker_that_died_half_way_is_found_out_and_not_waited_for)
{
    mmk_lock *lock = shared_zeros(sizeof *lock);
    pid_t maker = start(take_place_and_die, lock);
    WAIT_UNTIL(atomic_load(&lock->placed.magic) != 0);
    CHECK(check(lock) == -EBUSY);
    CHECK(mmk_lock_create(lock, MMK_LOCK) == -EBUSY);
    killed(maker);
    CHECK(check(lock) == -MMK_EHALFMADE);
    CHECK(mmk_lock_create(lock, MMK_LOCK) == 0);
    CHECK(check(lock) == 0);
    CHECK(munmap(lock, sizeof *lock) == 0);
}

static void find_it_foreign(void *with)
{
    CHECK(check(with) == -MMK_EOTHERPIDS);
}

static void fork_into_new_namespace(void *with)
{
    CHECK(unshare(CLONE_NEWPID) == 0);
    ends_well(start(find_it_foreign, with));
    CHECK(check(with) == 0);
}

static void fork_into_new_time(void *with)
{
    if (unshare(CLONE_NEWTIME) != 0)
        _exit(errno == EINVAL ? 0 : 1);
    ends_well(start(find_it_foreign, with));
    CHECK(check(with) == 0);
}

TEST(another_pid_namespace_is_refused)
{
    if (geteuid() != 0)
        SKIP("a PID namespace takes root");
    mmk_lock *lock = new_lock();
    ends_well(start(fork_into_new_namespace, lock));
    CHECK(munmap(lock, sizeof *lock) == 0);
}

TEST(another_time_namespace_where_starts_are_other_numbers_is_refused)
{
    if (geteuid() != 0)
        SKIP("a time namespace takes root");
    mmk_lock *lock = new_lock();
    ends_well(start(fork_into_new_time, lock));
    CHECK(munmap(lock, sizeof *lock) == 0);
}

TEST(a_process_is_told_from_another_with_its_pid)
{
    mmk_process self;
    CHECK(mmk_process_self(&self) == 0);
    CHECK(self.pid == (uint32_t)getpid() && self.start > 0);
    CHECK(!mmk_process_is_gone(&self));
    CHECK(!mmk_process_is_gone(&(mmk_process){self.pid, 0}));
    CHECK(mmk_process_is_gone(&(mmk_process){self.pid, self.start + 1}));
    CHECK(mmk_thread_id() == (uint32_t)gettid());
}

typedef struct other_thread {
    atomic_int id;
    atomic_bool may_end;
} other_thread;

static void *be_a_thread(void *with)
{
    other_thread *self = with;
    atomic_store(&self->id, (int)gettid());
    while (!atomic_load(&self->may_end))
        nap();
    return NULL;
}

TEST(a_process_whose_number_a_thread_has_now_is_gone)
{
    other_thread other = {0};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, be_a_thread, &other) == 0);
    WAIT_UNTIL(atomic_load(&other.id) != 0);
    CHECK(mmk_process_is_gone(&(mmk_process){(uint32_t)atomic_load(&other.id), 5}));
    CHECK(mmk_process_is_gone(&(mmk_process){(uint32_t)atomic_load(&other.id), 0}));
    atomic_store(&other.may_end, true);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(!mmk_process_is_gone(&(mmk_process){0, 0}));
}

static void wait_for_ever(void *unused)
{
    (void)unused;
    for (;;)
        pause();
}

static void tell_the_dead_without_pidfd_open(void *with)
{
    refuse(SYS_pidfd_open, 0, 0, 0, EPERM);
    CHECK(!mmk_process_is_gone(with));
    mmk_process other = {(uint32_t)start(wait_for_ever, NULL), 0};
    CHECK(!mmk_process_is_gone(&other));
    CHECK(kill((pid_t)other.pid, SIGKILL) == 0);
    siginfo_t info;
    CHECK(waitid(P_PID, other.pid, &info, WEXITED | WNOWAIT) == 0);
    CHECK(mmk_process_is_gone(&other));
    CHECK(waitpid((pid_t)other.pid, NULL, 0) == (pid_t)other.pid);
    CHECK(mmk_process_is_gone(&other));
}

TEST(the_dead_are_told_where_a_filter_refuses_pidfd_open)
{
    mmk_process self;
    CHECK(mmk_process_self(&self) == 0);
    ends_well(start(tell_the_dead_without_pidfd_open, &self));
}

static void be_somebody_else(void *with)
{
    const mmk_process *parent = with;
    mmk_process self;
    CHECK(mmk_process_self(&self) == 0);
    CHECK(self.pid == (uint32_t)getpid() && self.pid != parent->pid);
    CHECK(mmk_thread_id() == self.pid);
    CHECK(atomic_load(&mmk_process_generation) == 1);
}

TEST(a_forked_child_is_somebody_else)
{
    mmk_process self;
    CHECK(mmk_process_self(&self) == 0 && mmk_thread_id());
    ends_well(start(be_somebody_else, &self));
    CHECK(atomic_load(&mmk_process_generation) == 0);
}

static void read_no_proc(void *with)
{
    limit(RLIMIT_NOFILE, 0);
    CHECK(!mmk_process_is_gone(with));
    mmk_process self;
    CHECK(mmk_process_self(&self) == -EMFILE);
    CHECK(mmk_lock_create(shared_zeros(sizeof(mmk_lock)), MMK_LOCK) == -EMFILE);
}

TEST(who_cannot_be_looked_at_is_not_gone)
{
    mmk_process parent;
    CHECK(mmk_process_self(&parent) == 0);
    ends_well(start(read_no_proc, &parent));
}

int main(void)
{
    alarm(100);
    RUN(each_kind_is_found_as_itself_and_as_no_other);
    RUN(what_is_not_there_or_not_ours_is_refused_by_its_reason);
    RUN(a_maker_that_died_half_way_is_found_out_and_not_waited_for);
    RUN(another_pid_namespace_is_refused);
    RUN(another_time_namespace_where_starts_are_other_numbers_is_refused);
    RUN(a_process_is_told_from_another_with_its_pid);
    RUN(a_process_whose_number_a_thread_has_now_is_gone);
    RUN(the_dead_are_told_where_a_filter_refuses_pidfd_open);
    RUN(a_forked_child_is_somebody_else);
    RUN(who_cannot_be_looked_at_is_not_gone);
    return 0;
}
