/* A process is killed before each instruction that it executes while it sends, takes or finishes, one process an
 * instruction. Whoever is left finds everything that was committed, whole, once or as often as the mode allows, and
 * goes on.
 */
#include <mmkit/channel.h>

#include <signal.h>
#include <sys/ptrace.h>

#include "channels.h"
#include "support.h"

enum {
    CAPACITY = 4096,
    LENGTH = 100,
    MOST_STEPS = 100000, /* in which a work is done */
};

static int descriptor;
static mmk_channel channel; /* the parent's, and what the child begins with */

/* What the child has lived to see; it outlives it. */
static struct {
    _Atomic bool sent, took;
} *seen;

static void send_one(mmk_channel *to, int byte)
{
    mmk_channel_message message;
    CHECK(reserve_now(to, LENGTH, &message) == 0);
    memset(message.message.data, byte, LENGTH);
    mmk_channel_commit(to, &message);
}

/* returns the byte that the next message is made of; 0: there is none. */
static int receive_one(mmk_channel *from)
{
    mmk_channel_message message;
    int error = mmk_channel_take(from, &message);
    if (error == -EAGAIN)
        return 0;
    CHECK(error == 0 && message.message.length == LENGTH);
    int byte = message.message.data[0];
    CHECK(all_bytes_are(message.message.data, LENGTH, byte));
    mmk_channel_finish(from, &message);
    return byte;
}

/* ---- the child ---- */

static void send_again(void)
{
    send_one(&channel, 2);
    atomic_store(&seen->sent, true);
}

static void take_and_finish(void)
{
    mmk_channel_message message;
    CHECK(mmk_channel_take(&channel, &message) == 0 && message.message.data[0] == 1);
    atomic_store(&seen->took, true);
    mmk_channel_finish(&channel, &message);
}

/* Run a child until it has executed so many instructions of a work, and kill it. returns whether it had so many. */
static bool die_at(unsigned step, void prepare(void), void work(void))
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        prepare();
        CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
        raise(SIGSTOP);
        work();
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
    for (unsigned i = 0; i < step && WIFSTOPPED(status); i++) {
        CHECK(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0);
        CHECK(waitpid(child, &status, 0) == child);
    }
    if (!WIFSTOPPED(status)) {
        CHECK(status == 0);
        return false;
    }
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    return true;
}

/* ---- what is left ---- */

static void check_after_sender(void)
{
    /* The parent has the first lane; the child had the second. */
    CHECK(mmk_channel_mend(&channel) == 1);
    int received = receive_one(&channel);
    CHECK(received == 2 || (received == 0 && !atomic_load(&seen->sent)));
    mmk_channel other;
    CHECK(mmk_channel_attach(&other, dup(descriptor)) == 0);
    send_one(&other, 3);
    CHECK(channel.lanes[1].shared->owner == other.owner);
    CHECK(receive_one(&channel) == 3 && receive_one(&channel) == 0);
    mmk_channel_close(&other);
}

static void check_after_reader(bool at_most_once)
{
    CHECK(mmk_channel_mend(&channel) == 1);
    bool took = atomic_load(&seen->took), came = false;
    int received;
    while ((received = receive_one(&channel)) == 1) {
        CHECK(!came && !(took && at_most_once));
        came = true;
    }
    CHECK(came || took || at_most_once);
    CHECK(received == 2 && receive_one(&channel) == 0);
    send_one(&channel, 3);
    CHECK(receive_one(&channel) == 3);
}

/* ---- all instructions ---- */

static void begin(uint32_t flags)
{
    memset(seen, 0, sizeof *seen);
    descriptor = fresh_file(CAPACITY, flags);
    CHECK(mmk_channel_attach(&channel, descriptor) == 0);
    send_one(&channel, 9);
    CHECK(receive_one(&channel) == 9);
}

static void claim_to_write(void)
{
    mmk_channel_message message;
    CHECK(reserve_now(&channel, 1, &message) == 0);
    mmk_channel_abandon(&channel, &message);
}

/* Nothing is there to be taken then. */
static void claim_to_read(void)
{
    mmk_channel_message message;
    CHECK(mmk_channel_take(&channel, &message) == 0);
    mmk_channel_give_back(&channel, &message);
}

static void kill_senders(void)
{
    unsigned step = 0;
    for (bool goes_on = true; goes_on; step++) {
        begin(0);
        goes_on = die_at(step, claim_to_write, send_again);
        check_after_sender();
        mmk_channel_close(&channel);
        CHECK(step < MOST_STEPS);
    }
    printf("  %u instructions\n", step);
}

static void kill_readers(uint32_t flags)
{
    unsigned step = 0;
    for (bool goes_on = true; goes_on; step++) {
        begin(flags);
        send_one(&channel, 1);
        send_one(&channel, 2);
        goes_on = die_at(step, claim_to_read, take_and_finish);
        check_after_reader(flags & MMK_CHANNEL_AT_MOST_ONCE);
        mmk_channel_close(&channel);
        CHECK(step < MOST_STEPS);
    }
    printf("  %u instructions\n", step);
}

TEST(a_sender_killed_at_any_instruction_loses_nothing_that_was_committed)
{
    kill_senders();
}

TEST(what_a_reader_killed_at_any_instruction_had_is_delivered_again)
{
    kill_readers(0);
}

TEST(what_a_reader_killed_at_any_instruction_had_is_gone_at_most_once)
{
    kill_readers(MMK_CHANNEL_AT_MOST_ONCE);
}

int main(void)
{
    if (UNDER_SANITIZER) {
        printf("skipped: a sanitizer's instructions are many times as many\n");
        return 0;
    }
    alarm(110);
    seen = mmap(NULL, sizeof *seen, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(seen != MAP_FAILED);
    RUN(a_sender_killed_at_any_instruction_loses_nothing_that_was_committed);
    RUN(what_a_reader_killed_at_any_instruction_had_is_delivered_again);
    RUN(what_a_reader_killed_at_any_instruction_had_is_gone_at_most_once);
    return 0;
}
