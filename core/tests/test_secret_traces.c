/* What those who touch a secret leave in registers and on the stack: seen by a signal handler, as a core file would. */
#include <mmkit/secret.h>

#include <signal.h>
#include <sys/random.h>
#include <ucontext.h>

#include "support.h"

enum { LENGTH = 64, PIECE = 8, STACK = 5000 };

static unsigned char *needle; /* on the heap, which is not looked at */
static mmk_secret secret;
static char *stack_top;
static volatile int found_in_registers, found_on_stack;

/* Does any piece of 8 bytes at a multiple of 8 of the secret stand there? */
static int count_pieces(const char *bytes, size_t length)
{
    int count = 0;
    for (size_t at = 0; at + PIECE <= length; at++)
        for (size_t piece = 0; piece < LENGTH; piece += PIECE)
            count += memcmp(bytes + at, needle + piece, PIECE) == 0;
    return count;
}

#if defined(__x86_64__)

/* The kernel puts what the processor saves of its vectors behind the legacy part, and its size into that. */
static void look_at_registers(const ucontext_t *context)
{
    const char *vectors = (const char *)context->uc_mcontext.fpregs;
    uint32_t magic, size;
    memcpy(&magic, vectors + 464, 4);
    memcpy(&size, vectors + 468, 4);
    found_in_registers = count_pieces((const char *)context->uc_mcontext.gregs, sizeof context->uc_mcontext.gregs) +
                         count_pieces(vectors, magic == 0x46505853 ? size : 512);
}

#else

static void look_at_registers(const ucontext_t *context)
{
    found_in_registers = count_pieces((const char *)&context->uc_mcontext, sizeof context->uc_mcontext);
}

#endif

/* On a stack of its own, so that the thread's is as it was. */
static void look(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    look_at_registers(context);
    found_on_stack = count_pieces(stack_top - STACK, STACK);
}

/* By one instruction, which changes no register. */
static inline void interrupt_here(void)
{
#if defined(__x86_64__)
    __asm__ volatile("int3" ::: "memory");
#else
    raise(SIGTRAP);
#endif
    CHECK(found_in_registers >= 0 && found_on_stack >= 0);
}

static void begin(void)
{
    static char other_stack[1 << 18];
    mmk_secret_refusal refusal;
    needle = malloc(LENGTH);
    CHECK(getrandom(needle, LENGTH, 0) == LENGTH);
    CHECK(mmk_secret_take(&secret, LENGTH, MMK_SECRET_LOCKED, false, &refusal) == 0);
    CHECK(mmk_secret_open(&secret, true) == 0);
    memcpy(secret.bytes, needle, LENGTH);
    mmk_secret_scrub();
    CHECK(sigaltstack(&(stack_t){.ss_sp = other_stack, .ss_size = sizeof other_stack}, NULL) == 0);
    struct sigaction action = {.sa_sigaction = look, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    CHECK(sigaction(SIGTRAP, &action, NULL) == 0);
}

/* As libc's copies do, in whichever vectors there are; and a frame that was left with the secret in it. */
static __attribute__((noinline)) void leave_traces(void)
{
    volatile char frame[1024] __attribute__((unused));
    for (int i = 0; i < LENGTH; i++)
        frame[i] = secret.bytes[i];
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        __asm__ volatile(
            "vmovdqu64 (%0), %%zmm1\n\tvmovdqu64 (%0), %%zmm17\n\tvmovdqu64 (%0), %%zmm31" ::"r"(secret.bytes)
            : "memory");
    else
        __asm__ volatile("movdqu (%0), %%xmm1\n\tmovdqu 16(%0), %%xmm15" ::"r"(secret.bytes) : "memory");
    __asm__ volatile("mov (%0), %%r10\n\tmov 8(%0), %%rsi" ::"r"(secret.bytes) : "r10", "rsi", "memory");
#else
    __asm__ volatile("ldr q1, [%0]\n\tldr q17, [%0, #16]" ::"r"(secret.bytes) : "v1", "v17", "memory");
#endif
}

TEST(what_was_left_is_seen_by_the_next_signal)
{
    leave_traces();
    interrupt_here();
    CHECK(found_in_registers > 0 && found_on_stack > 0);
}

TEST(after_scrubbing_nothing_is_left)
{
    leave_traces();
    mmk_secret_scrub();
    interrupt_here();
    CHECK(found_in_registers == 0 && found_on_stack == 0);
}

#if defined(__x86_64__)

static volatile int steps_in_depth, steps_with_traces;

/* After each instruction. Deep down, where the stack is cleared, a signal's own frame would be out of reach. */
static void look_at_step(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    const ucontext_t *now = context;
    if ((char *)now->uc_mcontext.gregs[REG_RSP] > stack_top - STACK)
        return;
    look_at_registers(now);
    steps_in_depth++;
    steps_with_traces += found_in_registers > 0;
}

TEST(a_signal_while_the_stack_is_cleared_finds_nothing_in_registers)
{
    struct sigaction before, step = {.sa_sigaction = look_at_step, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    CHECK(sigaction(SIGTRAP, &step, &before) == 0);
    leave_traces();
    /* The trap flag; below what the compiler may have under the stack pointer. */
    __asm__ volatile("subq $128, %%rsp\n\tpushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\taddq $128, %%rsp" ::
                         : "cc", "memory");
    mmk_secret_scrub();
    __asm__ volatile("subq $128, %%rsp\n\tpushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq\n\taddq $128, %%rsp" ::
                         : "cc", "memory");
    CHECK(sigaction(SIGTRAP, &before, NULL) == 0);
    CHECK(steps_in_depth > 0 && steps_with_traces == 0);
}

#endif

TEST(copying_comparing_and_erasing_leave_nothing)
{
    static mmk_secret other;
    mmk_secret_refusal refusal;
    CHECK(mmk_secret_take(&other, LENGTH, MMK_SECRET_LOCKED, false, &refusal) == 0);
    CHECK(mmk_secret_open(&other, true) == 0);
    mmk_secret_scrub();
    mmk_secret_copy(other.bytes, secret.bytes, LENGTH);
    interrupt_here();
    CHECK(found_in_registers == 0 && found_on_stack == 0);
    CHECK(mmk_secret_equal(other.bytes, secret.bytes, LENGTH));
    interrupt_here();
    CHECK(found_in_registers == 0 && found_on_stack == 0);
    mmk_secret_erase(other.bytes, LENGTH);
    CHECK(mmk_secret_shut(&other, true) == 0 && mmk_secret_give(&other) == 0);
    interrupt_here();
    CHECK(found_in_registers == 0 && found_on_stack == 0);
}

TEST(opening_shutting_and_wiping_leave_nothing)
{
    CHECK(mmk_secret_shut(&secret, true) == 0);
    CHECK(mmk_secret_open(&secret, false) == 0 && mmk_secret_shut(&secret, false) == 0);
    interrupt_here();
    CHECK(found_in_registers == 0 && found_on_stack == 0);
    CHECK(mmk_secret_give(&secret) == 0);
    interrupt_here();
    CHECK(found_in_registers == 0 && found_on_stack == 0);
}

int main(void)
{
    /* Everything below this frame is the stack that is looked at. */
    stack_top = __builtin_frame_address(0);
    begin();
    RUN(what_was_left_is_seen_by_the_next_signal);
    RUN(after_scrubbing_nothing_is_left);
#if defined(__x86_64__)
    RUN(a_signal_while_the_stack_is_cleared_finds_nothing_in_registers);
#endif
    RUN(copying_comparing_and_erasing_leave_nothing);
    RUN(opening_shutting_and_wiping_leave_nothing);
    free(needle);
    return 0;
}
