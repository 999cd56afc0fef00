/* What becomes of who writes past a secret, or touches one that is not open. */
#include <mmkit/secret.h>

#include "scenes.h"

enum { KEY = 30, TEXT = 400 }; /* 30: two bytes of slack before the next slot's size */

static char *said; /* by the last scene, in shared memory */
static mmk_secret_refusal refusal;

static mmk_secret opened(size_t length, mmk_secret_kind kind, bool alone)
{
    mmk_secret secret = {0};
    CHECK(mmk_secret_take(&secret, length, kind, alone, &refusal) == 0);
    CHECK(mmk_secret_open(&secret, true) == 0);
    memset(secret.bytes, 0x5a, length);
    return secret;
}

/* The scene ends by abort(), after one line that has these words. */
static void aborts(void scene(void), const char *words)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    int before = dup(STDERR_FILENO);
    CHECK(before >= 0 && dup2(ends[1], STDERR_FILENO) >= 0);
    int number = end_of(scene);
    CHECK(dup2(before, STDERR_FILENO) >= 0);
    close(before);
    close(ends[1]);
    char text[TEXT] = {0};
    CHECK(read(ends[0], text, sizeof text - 1) > 0);
    close(ends[0]);
    if (number != SIGABRT || !strstr(text, words))
        fprintf(stderr, "signal %d, said: %s\n", number, text);
    CHECK(number == SIGABRT && strstr(text, words));
    CHECK(strncmp(text, "mmkit: secret memory is corrupt at 0x", 37) == 0);
    CHECK(strchr(text, '\n') == text + strlen(text) - 1);
}

static void write_one_behind(void)
{
    mmk_secret secret = opened(KEY, MMK_SECRET_LOCKED, false);
    secret.bytes[KEY] = 0;
    (void)!mmk_secret_shut(&secret, true);
}

static void write_one_before(void)
{
    mmk_secret secret = opened(KEY, MMK_SECRET_LOCKED, false);
    secret.bytes[-1] ^= 1;
    (void)!mmk_secret_shut(&secret, true);
}

static void write_the_last_of_the_slack(void)
{
    mmk_secret secret = opened(KEY, MMK_SECRET_LOCKED, false);
    secret.bytes[47] ^= 0x80;
    (void)!mmk_secret_shut(&secret, true);
}

static void write_one_before_what_stands_alone(void)
{
    mmk_secret secret = opened(100, MMK_SECRET_LOCKED, true);
    secret.bytes[-1] ^= 1;
    (void)!mmk_secret_shut(&secret, true);
}

/* Its own end is unharmed: the mate is found damaged when it is given. */
static void write_into_a_mate_that_was_opened(void)
{
    mmk_secret secret = opened(KEY, MMK_SECRET_LOCKED, false), mate = opened(KEY, MMK_SECRET_LOCKED, false);
    CHECK(mmk_secret_shut(&mate, true) == 0);
    mate.bytes[KEY] ^= 1;
    CHECK(mmk_secret_shut(&secret, true) == 0);
    (void)!mmk_secret_give(&mate);
}

static void write_into_a_slot_that_nobody_has(void)
{
    mmk_secret secret = opened(KEY, MMK_SECRET_LOCKED, false), mate = opened(KEY, MMK_SECRET_LOCKED, false);
    CHECK(mmk_secret_shut(&mate, true) == 0);
    char *stale = mate.bytes;
    CHECK(mmk_secret_give(&mate) == 0);
    stale[3] ^= 1;
    CHECK(mmk_secret_shut(&secret, true) == 0);
    CHECK(mmk_secret_take(&mate, KEY, MMK_SECRET_LOCKED, false, &refusal) == 0 && mate.bytes == stale);
    (void)!mmk_secret_open(&mate, false);
}

TEST(a_write_by_one_past_either_end_ends_the_process)
{
    aborts(write_one_behind, "the bytes behind it");
    aborts(write_one_before, "the bytes before it");
    aborts(write_the_last_of_the_slack, "the bytes behind it");
    aborts(write_one_before_what_stands_alone, "the bytes before it");
}

TEST(a_write_into_another_slot_is_found_when_that_is_used)
{
    aborts(write_into_a_mate_that_was_opened, "the bytes behind it");
    aborts(write_into_a_slot_that_nobody_has, "a slot that nobody had");
}

static void touch_what_is_shut(void)
{
    mmk_secret secret = opened(KEY, MMK_SECRET_LOCKED, false);
    CHECK(mmk_secret_shut(&secret, true) == 0);
    touch(secret.bytes);
}

static void touch_behind_what_stands_alone(void)
{
    mmk_secret secret = opened(KEY, MMK_SECRET_LOCKED, true);
    touch(secret.bytes + KEY);
}

static void write_what_is_open_for_reading(void)
{
    mmk_secret secret = opened(KEY, MMK_SECRET_LOCKED, false);
    CHECK(mmk_secret_open(&secret, false) == 0 && mmk_secret_shut(&secret, true) == 0);
    touch(secret.bytes);
}

static void touch_what_was_given(void)
{
    mmk_secret secret = opened(100000, MMK_SECRET_LOCKED, false);
    CHECK(mmk_secret_shut(&secret, true) == 0 && mmk_secret_give(&secret) == 0);
    touch(secret.bytes);
}

TEST(an_access_that_is_not_allowed_is_a_fault)
{
    CHECK(end_of(touch_what_is_shut) == SIGSEGV);
    CHECK(end_of(touch_behind_what_stands_alone) == SIGSEGV);
    CHECK(end_of(write_what_is_open_for_reading) == SIGSEGV);
    CHECK(end_of(touch_what_was_given) == SIGSEGV);
}

/* ---- what is left when a process ends by exit(3), seen by who shares its memory ---- */

static void exit_with_secrets(void)
{
    mmk_secret secret = opened(KEY, MMK_SECRET_LOCKED, false);
    said = secret.bytes;
    /* Runs after what mmkit has registered with its first secret: those registered first run last. */
    exit(0);
}

static void look_when_all_is_over(void)
{
    if (said && memmem(said, KEY, "ZZZZ", 4)) /* 0x5a */
        abort();
    /* Handlers that run after mmkit's may have secrets, too: in slots that are whole. */
    mmk_secret fresh = opened(KEY, MMK_SECRET_LOCKED, false);
    CHECK(mmk_secret_shut(&fresh, true) == 0 && mmk_secret_give(&fresh) == 0);
}

TEST(exit_wipes_what_nobody_gave_back)
{
    said = NULL;
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        atexit(look_when_all_is_over);
        exit_with_secrets();
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

int main(void)
{
    set_the_scenes();
    RUN(exit_wipes_what_nobody_gave_back);
    RUN(a_write_by_one_past_either_end_ends_the_process);
    RUN(a_write_into_another_slot_is_found_when_that_is_used);
    RUN(an_access_that_is_not_allowed_is_a_fault);
    return 0;
}
