/* Secrets that live: where they stand, who may touch them, what a fork and limits do to them. */
#include <sys/random.h>
#include <sys/syscall.h>

#include <mmkit/registry.h>
#include <mmkit/secret.h>

#include "support.h"

enum { KEY = 32, WIPE_ON_FORK_NR = 18 };

static mmk_secret_refusal refusal;

static mmk_secret made(size_t length)
{
    mmk_secret secret = {0};
    CHECK(mmk_secret_take(&secret, length, MMK_SECRET_LOCKED, false, &refusal) == 0);
    return secret;
}

static void put(mmk_secret *secret, int value)
{
    CHECK(mmk_secret_open(secret, true) == 0);
    memset(secret->bytes, value, secret->length);
    CHECK(mmk_secret_shut(secret, true) == 0);
}

static bool holds(mmk_secret *secret, int value)
{
    CHECK(mmk_secret_open(secret, false) == 0);
    bool same = all_bytes_are(secret->bytes, secret->length, value);
    CHECK(mmk_secret_shut(secret, false) == 0);
    return same;
}

static const char *page_of(const mmk_secret *secret)
{
    return (const char *)mmk_round_down((uintptr_t)secret->bytes, mmk_page_size());
}

static bool page_is(const mmk_secret *secret, const char *perms)
{
    return bytes_with(page_of(secret), mmk_page_size(), perms) == mmk_page_size();
}

TEST(a_new_secret_is_zeros_and_keeps_what_is_put_into_it)
{
    static const size_t lengths[] = {1, 7, 31, 32, 33, 96, 97, 500, 2016, 4064, 4065, 4096, 5000, 100000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        for (int alone = 0; alone < 2; alone++) {
            mmk_secret secret = {0};
            CHECK(mmk_secret_take(&secret, lengths[i], MMK_SECRET_LOCKED, alone, &refusal) == 0);
            CHECK(holds(&secret, 0));
            put(&secret, 0x5a);
            CHECK(holds(&secret, 0x5a));
            CHECK(mmk_secret_wipe(&secret) == 0 && holds(&secret, 0));
            CHECK(mmk_secret_give(&secret) == 0 && mmk_secret_give(&secret) == 0);
        }
}

TEST(nothing_can_be_read_but_while_it_is_open)
{
    mmk_secret secret = made(KEY);
    CHECK(page_is(&secret, "---p"));
    CHECK(mmk_secret_open(&secret, false) == 0 && page_is(&secret, "r--p"));
    CHECK(mmk_secret_open(&secret, true) == 0 && page_is(&secret, "rw-p"));
    CHECK(mmk_secret_open(&secret, true) == 0 && page_is(&secret, "rw-p"));
    CHECK(mmk_secret_shut(&secret, true) == 0 && page_is(&secret, "rw-p"));
    CHECK(mmk_secret_shut(&secret, true) == 0 && page_is(&secret, "r--p"));
    CHECK(mmk_secret_shut(&secret, false) == 0 && page_is(&secret, "---p"));
    CHECK(mmk_secret_give(&secret) == 0);
}

TEST(who_opens_a_slot_opens_its_mates)
{
    mmk_secret one = made(KEY), other = made(KEY);
    CHECK(page_of(&one) == page_of(&other));
    CHECK(mmk_secret_open(&one, true) == 0 && mmk_secret_open(&other, false) == 0);
    CHECK(mmk_secret_shut(&one, true) == 0 && page_is(&other, "r--p"));
    CHECK(mmk_secret_shut(&other, false) == 0 && page_is(&other, "---p"));
    CHECK(mmk_secret_give(&one) == 0 && mmk_secret_give(&other) == 0);
}

TEST(an_open_secret_is_not_given_and_a_given_one_not_opened)
{
    mmk_secret secret = made(KEY);
    CHECK(mmk_secret_open(&secret, false) == 0);
    CHECK(mmk_secret_give(&secret) == -MMK_EPINNED);
    CHECK(mmk_secret_shut(&secret, false) == 0);
    CHECK(mmk_secret_give(&secret) == 0 && mmk_secret_is_closed(&secret));
    CHECK(mmk_secret_open(&secret, false) == -MMK_ECLOSED && mmk_secret_wipe(&secret) == -MMK_ECLOSED);
}

TEST(what_was_in_a_slot_is_gone_when_it_is_given)
{
    mmk_secret mate = made(KEY), secret = made(KEY);
    put(&secret, 0x5a);
    char *where = secret.bytes;
    CHECK(mmk_secret_give(&secret) == 0);
    CHECK(mmk_secret_open(&mate, false) == 0);
    for (size_t i = 0; i < KEY; i++)
        CHECK(where[i] != 0 && !all_bytes_are(where, KEY, 0x5a));
    CHECK(mmk_secret_shut(&mate, false) == 0);
    /* The same slot again: zeros. */
    secret = made(KEY);
    CHECK(secret.bytes == where && holds(&secret, 0));
    CHECK(mmk_secret_give(&secret) == 0 && mmk_secret_give(&mate) == 0);
}

/* The terminator of a string that is one byte too long would pass for a canary otherwise. */
TEST(no_byte_of_a_canary_is_zero)
{
    mmk_secret secret = made(3000);
    put(&secret, 0x5a);
    CHECK(mmk_secret_open(&secret, false) == 0);
    for (const char *byte = page_of(&secret); byte < page_of(&secret) + mmk_page_size(); byte++)
        CHECK(*byte != 0);
    CHECK(mmk_secret_shut(&secret, false) == 0 && mmk_secret_give(&secret) == 0);
}

TEST(an_area_is_locked_and_kept_out_of_dumps_and_children)
{
    char path[64], line[512];
    mmk_secret secret = made(KEY);
    snprintf(path, sizeof path, "/proc/self/smaps");
    FILE *smaps = fopen(path, "r");
    bool here = false, told = false;
    unsigned long kib;
    while (fgets(line, sizeof line, smaps)) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            here = from <= (uintptr_t)secret.bytes && (uintptr_t)secret.bytes < to;
        if (here && sscanf(line, "Locked: %lu kB", &kib) == 1)
            CHECK(UNDER_SANITIZER || kib * 1024 == mmk_page_size());
        if (here && strncmp(line, "VmFlags:", 8) == 0) {
            told = true;
            CHECK(UNDER_SANITIZER || strstr(line, " lo"));
            CHECK(strstr(line, " dd") && strstr(line, " wf"));
        }
    }
    fclose(smaps);
    CHECK(told);
    CHECK(mmk_registry_overlap((uintptr_t)secret.bytes, 1).length == 3 * mmk_page_size());
    CHECK(mmk_secret_give(&secret) == 0);
}

TEST(many_slabs_come_and_go_and_one_of_a_size_stays)
{
    enum { MANY = 1000 };
    static mmk_secret many[MANY];
    size_t before = mmk_secret_footprint(), most;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < MANY; i++)
            many[i] = made(KEY);
        most = mmk_secret_footprint();
        CHECK(most - before <= (MANY / 64 + 1) * mmk_page_size());
        for (int i = 0; i < MANY; i += 3)
            put(&many[i], i);
        for (int i = 0; i < MANY; i++)
            CHECK(holds(&many[i], i % 3 ? 0 : i));
        for (int i = 0; i < MANY; i++)
            CHECK(mmk_secret_give(&many[(i * 7) % MANY]) == 0);
        CHECK(mmk_secret_footprint() <= before + mmk_page_size());
    }
}

TEST(one_that_stands_alone_ends_at_the_guard)
{
    mmk_secret secret = {0};
    CHECK(mmk_secret_take(&secret, 33, MMK_SECRET_LOCKED, true, &refusal) == 0);
    char *end = secret.bytes + 33;
    CHECK((uintptr_t)end % mmk_page_size() == 0);
    CHECK(mmk_secret_open(&secret, true) == 0);
    CHECK(!can_read(end) && can_read(end - 1));
    CHECK(is_held(end, mmk_page_size()) && is_held(end - 2 * mmk_page_size(), mmk_page_size()));
    CHECK(mmk_secret_shut(&secret, true) == 0 && mmk_secret_give(&secret) == 0);
    CHECK(is_free(end - 2 * mmk_page_size(), 3 * mmk_page_size()));
}

static const void *filled_by_libc;

/* In the place of libc's. */
__attribute__((visibility("default"))) ssize_t getrandom(void *buffer, size_t length, unsigned flags)
{
    filled_by_libc = buffer;
    return syscall(SYS_getrandom, buffer, length, flags);
}

TEST(random_bytes_differ_and_come_from_the_kernel)
{
    mmk_secret one = made(600), other = made(600);
    CHECK(mmk_secret_randomize(&one) == 0 && mmk_secret_randomize(&other) == 0);
    CHECK(filled_by_libc != one.bytes && filled_by_libc != other.bytes);
    CHECK(mmk_secret_open(&one, false) == 0 && mmk_secret_open(&other, false) == 0);
    CHECK(!mmk_secret_equal(one.bytes, other.bytes, 600) && mmk_secret_equal(one.bytes, one.bytes, 600));
    CHECK(!all_bytes_are(one.bytes + 568, KEY, 0));
    CHECK(mmk_secret_shut(&one, false) == 0 && mmk_secret_shut(&other, false) == 0);
    CHECK(mmk_secret_give(&one) == 0 && mmk_secret_give(&other) == 0);
}

TEST(bytes_are_copied_and_compared_whatever_their_number)
{
    char from[300], to[300];
    for (size_t i = 0; i < sizeof from; i++)
        from[i] = (char)(i * 7 + 1);
    for (size_t length = 0; length < 70; length++) {
        memset(to, 0, sizeof to);
        mmk_secret_copy(to, from, length);
        CHECK(memcmp(to, from, length) == 0 && to[length] == 0);
        CHECK(mmk_secret_equal(to, from, length) && !mmk_secret_equal(to, from, length + 1));
        mmk_secret_scrub();
        mmk_secret_erase(to, length);
        CHECK(all_bytes_are(to, sizeof to, 0));
    }
}

/* ---- memfd_secret(2) ---- */

TEST(what_the_kernel_has_not_mapped_is_a_secret_too)
{
    mmk_secret secret = {0};
    int error = mmk_secret_take(&secret, KEY, MMK_SECRET_MEMFD, false, &refusal);
    if (error == -ENOSYS)
        SKIP("memfd_secret(2) is off");
    CHECK(error == 0);
    CHECK(page_is(&secret, "---s"));
    put(&secret, 0x5a);
    CHECK(holds(&secret, 0x5a));
    CHECK(mmk_secret_open(&secret, false) == 0 && !can_read(secret.bytes));
    CHECK(mmk_secret_shut(&secret, false) == 0 && mmk_secret_give(&secret) == 0);
}

/* ---- fork ---- */

static mmk_secret inherited, opened, hidden;

static void use_what_was_inherited(void)
{
    CHECK(mmk_secret_is_closed(&inherited) && mmk_secret_open(&inherited, false) == -MMK_ECLOSED);
    CHECK(mmk_secret_footprint() == 0);
    /* Who had it open reads zeros, and cannot shut what is closed wrongly. */
    CHECK(all_bytes_are(opened.bytes, KEY, 0));
    CHECK(mmk_secret_shut(&opened, true) == 0 && mmk_secret_give(&opened) == 0);
    CHECK(mmk_secret_give(&inherited) == 0);
    if (hidden.area)
        CHECK(is_held(hidden.bytes, 1) && mmk_secret_shut(&hidden, false) == 0);
    mmk_secret fresh = made(KEY);
    put(&fresh, 7);
    CHECK(page_of(&fresh) != page_of(&opened) && holds(&fresh, 7));
    CHECK(UNDER_SANITIZER || locked_bytes() == mmk_page_size());
    in_child(drop_privileges);
    CHECK(holds(&fresh, 7) && mmk_secret_give(&fresh) == 0);
}

TEST(a_child_has_nothing_of_its_parent_and_makes_its_own)
{
    inherited = made(500);
    opened = made(KEY);
    put(&inherited, 0x5a);
    put(&opened, 0x5a);
    CHECK(mmk_secret_open(&opened, true) == 0);
    hidden = (mmk_secret){0};
    if (mmk_secret_take(&hidden, KEY, MMK_SECRET_MEMFD, false, &refusal) == 0)
        CHECK(mmk_secret_open(&hidden, false) == 0);
    in_child(use_what_was_inherited);
    CHECK(holds(&inherited, 0x5a) && all_bytes_are(opened.bytes, KEY, 0x5a));
    CHECK(mmk_secret_shut(&opened, true) == 0);
    CHECK(mmk_secret_give(&opened) == 0 && mmk_secret_give(&inherited) == 0);
    CHECK(mmk_secret_shut(&hidden, false) == 0 && mmk_secret_give(&hidden) == 0);
}

/* ---- limits ---- */

static void fill_the_limit(void)
{
    enum { MANY = 2000 };
    static mmk_secret many[MANY];
    limit(RLIMIT_MEMLOCK, 64 << 10);
    drop_privileges();
    int count = 0, error = 0;
    mmk_secret waiting = made(400), mate = made(900);
    CHECK(mmk_secret_give(&waiting) == 0 && mmk_secret_give(&mate) == 0);
    while (!(error = mmk_secret_take(&many[count], KEY, MMK_SECRET_LOCKED, false, &refusal)))
        put(&many[count], count), count++;
    /* All 64 KiB: what was kept of other sizes was given back. */
    CHECK(count == 16 * (int)(mmk_page_size() / 64));
    CHECK(error == -ENOMEM && strcmp(refusal.call, "mlock") == 0 && refusal.length == mmk_page_size());
    CHECK(locked_bytes() == 64 << 10);
    for (int i = 0; i < count; i++)
        CHECK(holds(&many[i], i));
    CHECK(mmk_secret_take(&mate, KEY, MMK_SECRET_UNLOCKED, false, &refusal) == 0);
    CHECK(mmk_secret_give(&many[5]) == 0);
    CHECK(mmk_secret_take(&many[5], KEY, MMK_SECRET_LOCKED, false, &refusal) == 0);
    /* The limit is looked at before: the kernel is not even asked. */
    refuse(SYS_mlock, 1, 0, 0, EACCES);
    CHECK(mmk_secret_take(&many[count], KEY, MMK_SECRET_LOCKED, false, &refusal) == -ENOMEM);
}

static void have_no_limit_at_all(void)
{
    limit(RLIMIT_MEMLOCK, 0);
    drop_privileges();
    mmk_secret secret = {0};
    CHECK(mmk_secret_take(&secret, KEY, MMK_SECRET_LOCKED, false, &refusal) == -EPERM);
}

TEST(the_lock_limit_is_used_up_to_its_end_and_then_refused)
{
    if (UNDER_SANITIZER)
        SKIP("a sanitizer's mlock does nothing");
    in_child(fill_the_limit);
    in_child(have_no_limit_at_all);
}

static struct {
    long call;
    int argument;
    uint32_t value;
    const char *name;
} refused_calls[] =
    {
        {SYS_mprotect, 2, RW, "mprotect"},
        {SYS_mprotect, 2, PROT_NONE, "mprotect"},
        {SYS_mlock, 1, 4096, "mlock"},
        {SYS_madvise, 2, 16, "madvise"},
        {SYS_madvise, 2, WIPE_ON_FORK_NR, "madvise"},
        {SYS_mmap, 2, PROT_NONE, "mmap"},
},
  *refused_call;

static void make_where_a_call_is_refused(void)
{
    mmk_secret secret = {0};
    /* What mmkit and malloc need once is there after this. */
    mmk_secret earlier = made(1000);
    size_t before = bytes_with((void *)0, SIZE_MAX / 2, NULL);
    refuse(refused_call->call, refused_call->argument, 0xffffffff, refused_call->value, EAGAIN);
    CHECK(mmk_secret_take(&secret, KEY, MMK_SECRET_LOCKED, false, &refusal) == -EAGAIN);
    CHECK(strcmp(refusal.call, refused_call->name) == 0);
    CHECK(!secret.area && mmk_secret_footprint() == mmk_page_size());
    CHECK(bytes_with((void *)0, SIZE_MAX / 2, NULL) == before);
    CHECK(mmk_secret_give(&earlier) == 0);
}

TEST(whatever_call_is_refused_nothing_stays_behind)
{
    if (UNDER_SANITIZER)
        SKIP("a sanitizer maps memory of its own");
    for (size_t i = 0; i < sizeof refused_calls / sizeof *refused_calls; i++) {
        refused_call = &refused_calls[i];
        in_child(make_where_a_call_is_refused);
    }
}

static void open_where_access_is_refused(void)
{
    mmk_secret secret = made(KEY);
    put(&secret, 0x5a);
    refuse(SYS_mprotect, 2, 0xffffffff, PROT_READ, EACCES);
    CHECK(mmk_secret_open(&secret, false) == -EACCES && page_is(&secret, "---p"));
    CHECK(mmk_secret_open(&secret, true) == 0 && all_bytes_are(secret.bytes, KEY, 0x5a));
    CHECK(mmk_secret_shut(&secret, true) == 0);
    refuse(SYS_mprotect, 2, 0xffffffff, RW, EACCES);
    CHECK(mmk_secret_give(&secret) == -EACCES && !mmk_secret_is_closed(&secret));
}

TEST(a_refused_access_opens_nothing_and_a_refused_wipe_gives_nothing)
{
    in_child(open_where_access_is_refused);
}

/* ---- threads ---- */

static atomic_int errors;

static void *live(void *seed)
{
    unsigned random = (unsigned)(uintptr_t)seed;
    mmk_secret own[8] = {0};
    for (int round = 0; round < (UNDER_SANITIZER ? 300 : 3000); round++) {
        random = random * 1664525 + 1013904223;
        mmk_secret *secret = &own[random >> 8 & 7];
        mmk_secret_refusal why;
        int value = (int)(random >> 16 & 0x7f);
        if (mmk_secret_is_closed(secret)) {
            if (mmk_secret_take(secret, 1 + (random >> 20), MMK_SECRET_LOCKED, false, &why) != 0)
                atomic_fetch_add(&errors, 1);
        } else if (random >> 12 & 1) {
            put(secret, value);
            if (!holds(secret, value))
                atomic_fetch_add(&errors, 1);
        } else if (mmk_secret_give(secret) != 0)
            atomic_fetch_add(&errors, 1);
    }
    for (int i = 0; i < 8; i++)
        if (mmk_secret_give(&own[i]) != 0)
            atomic_fetch_add(&errors, 1);
    return NULL;
}

static void make_one(void)
{
    mmk_secret secret = made(KEY);
    put(&secret, 1);
    CHECK(holds(&secret, 1) && mmk_secret_give(&secret) == 0);
}

TEST(threads_make_open_and_give_while_others_fork)
{
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, live, (void *)(i * 7919 + 1)) == 0);
    /* TSan does not go with children of many threads that use them. */
    for (int i = 0; i < 20 && !UNDER_TSAN; i++)
        in_child(make_one);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(errors == 0);
}

int main(void)
{
    RUN(whatever_call_is_refused_nothing_stays_behind);
    RUN(a_new_secret_is_zeros_and_keeps_what_is_put_into_it);
    RUN(nothing_can_be_read_but_while_it_is_open);
    RUN(who_opens_a_slot_opens_its_mates);
    RUN(an_open_secret_is_not_given_and_a_given_one_not_opened);
    RUN(what_was_in_a_slot_is_gone_when_it_is_given);
    RUN(no_byte_of_a_canary_is_zero);
    RUN(an_area_is_locked_and_kept_out_of_dumps_and_children);
    RUN(many_slabs_come_and_go_and_one_of_a_size_stays);
    RUN(one_that_stands_alone_ends_at_the_guard);
    RUN(random_bytes_differ_and_come_from_the_kernel);
    RUN(bytes_are_copied_and_compared_whatever_their_number);
    RUN(what_the_kernel_has_not_mapped_is_a_secret_too);
    RUN(a_child_has_nothing_of_its_parent_and_makes_its_own);
    RUN(the_lock_limit_is_used_up_to_its_end_and_then_refused);
    RUN(a_refused_access_opens_nothing_and_a_refused_wipe_gives_nothing);
    RUN(threads_make_open_and_give_while_others_fork);
    return 0;
}
