/* Touching secrets, and leaving nothing of them behind. */
#include <mmkit/secret.h>

#include <string.h>

enum {
    /* What may have been below the caller: some frames, and a signal frame, with up to 3 KiB of vectors. */
    STACK = 6144,
};

void mmk_secret_erase(void *bytes, size_t length)
{
    explicit_bzero(bytes, length);
}

bool mmk_secret_equal(const void *one, const void *other, size_t length)
{
    /* Byte by byte, so that no register ever has more of it; volatile, so that no compiler thinks otherwise. */
    const volatile unsigned char *a = one, *b = other;
    unsigned difference = 0;
    for (size_t i = 0; i < length; i++)
        difference |= (unsigned)a[i] ^ b[i];
    return difference == 0;
}

static __attribute__((noinline)) void clear_stack(void)
{
    char below[STACK];
    explicit_bzero(below, sizeof below);
}

#if defined(__x86_64__)

static bool has_avx, has_avx512;

__attribute__((constructor)) static void look_at_the_processor(void)
{
    __builtin_cpu_init();
    has_avx = __builtin_cpu_supports("avx");
    has_avx512 = __builtin_cpu_supports("avx512f");
}

void mmk_secret_copy(void *to, const void *from, size_t length)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length)::"memory");
}

static inline void clear_vectors(void)
{
    if (has_avx)
        __asm__ volatile("vzeroall" ::: "memory");
    else
        __asm__ volatile("pxor %%xmm0, %%xmm0\n\tpxor %%xmm1, %%xmm1\n\tpxor %%xmm2, %%xmm2\n\tpxor %%xmm3, %%xmm3\n\t"
                         "pxor %%xmm4, %%xmm4\n\tpxor %%xmm5, %%xmm5\n\tpxor %%xmm6, %%xmm6\n\tpxor %%xmm7, %%xmm7\n\t"
                         "pxor %%xmm8, %%xmm8\n\tpxor %%xmm9, %%xmm9\n\tpxor %%xmm10, %%xmm10\n\t"
                         "pxor %%xmm11, %%xmm11\n\tpxor %%xmm12, %%xmm12\n\tpxor %%xmm13, %%xmm13\n\t"
                         "pxor %%xmm14, %%xmm14\n\tpxor %%xmm15, %%xmm15" ::
                             : "memory");
    /* vzeroall knows the first sixteen only, and libc's copies use the others. */
    if (has_avx512)
        __asm__ volatile("vpxorq %%zmm16, %%zmm16, %%zmm16\n\tvpxorq %%zmm17, %%zmm17, %%zmm17\n\t"
                         "vpxorq %%zmm18, %%zmm18, %%zmm18\n\tvpxorq %%zmm19, %%zmm19, %%zmm19\n\t"
                         "vpxorq %%zmm20, %%zmm20, %%zmm20\n\tvpxorq %%zmm21, %%zmm21, %%zmm21\n\t"
                         "vpxorq %%zmm22, %%zmm22, %%zmm22\n\tvpxorq %%zmm23, %%zmm23, %%zmm23\n\t"
                         "vpxorq %%zmm24, %%zmm24, %%zmm24\n\tvpxorq %%zmm25, %%zmm25, %%zmm25\n\t"
                         "vpxorq %%zmm26, %%zmm26, %%zmm26\n\tvpxorq %%zmm27, %%zmm27, %%zmm27\n\t"
                         "vpxorq %%zmm28, %%zmm28, %%zmm28\n\tvpxorq %%zmm29, %%zmm29, %%zmm29\n\t"
                         "vpxorq %%zmm30, %%zmm30, %%zmm30\n\tvpxorq %%zmm31, %%zmm31, %%zmm31" ::
                             : "memory");
}

static inline void clear_scratch(void)
{
    __asm__ volatile("xorl %%eax, %%eax\n\txorl %%ecx, %%ecx\n\txorl %%edx, %%edx\n\txorl %%esi, %%esi\n\t"
                     "xorl %%edi, %%edi\n\txorl %%r8d, %%r8d\n\txorl %%r9d, %%r9d\n\txorl %%r10d, %%r10d\n\t"
                     "xorl %%r11d, %%r11d" ::
                         : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc");
}

#else

void mmk_secret_copy(void *to, const void *from, size_t length)
{
    __asm__ volatile("1: subs x11, %2, #8\n\tb.lo 2f\n\tldr x9, [%1], #8\n\tstr x9, [%0], #8\n\tmov %2, x11\n\tb 1b\n"
                     "2: cbz %2, 3f\n\tldrb w9, [%1], #1\n\tstrb w9, [%0], #1\n\tsub %2, %2, #1\n\tb 2b\n"
                     "3: mov x9, xzr"
                     : "+r"(to), "+r"(from), "+r"(length)::"x9", "x11", "cc", "memory");
}

/* Of v8 to v15 the lower halves belong to the caller. */
static inline void clear_vectors(void)
{
    __asm__ volatile("movi v0.2d, #0\n\tmovi v1.2d, #0\n\tmovi v2.2d, #0\n\tmovi v3.2d, #0\n\tmovi v4.2d, #0\n\t"
                     "movi v5.2d, #0\n\tmovi v6.2d, #0\n\tmovi v7.2d, #0\n\tmovi v16.2d, #0\n\tmovi v17.2d, #0\n\t"
                     "movi v18.2d, #0\n\tmovi v19.2d, #0\n\tmovi v20.2d, #0\n\tmovi v21.2d, #0\n\t"
                     "movi v22.2d, #0\n\tmovi v23.2d, #0\n\tmovi v24.2d, #0\n\tmovi v25.2d, #0\n\t"
                     "movi v26.2d, #0\n\tmovi v27.2d, #0\n\tmovi v28.2d, #0\n\tmovi v29.2d, #0\n\t"
                     "movi v30.2d, #0\n\tmovi v31.2d, #0" ::
                         : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21",
                           "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
}

static inline void clear_scratch(void)
{
    __asm__ volatile("mov x0, xzr\n\tmov x1, xzr\n\tmov x2, xzr\n\tmov x3, xzr\n\tmov x4, xzr\n\tmov x5, xzr\n\t"
                     "mov x6, xzr\n\tmov x7, xzr\n\tmov x8, xzr\n\tmov x9, xzr\n\tmov x10, xzr\n\tmov x11, xzr\n\t"
                     "mov x12, xzr\n\tmov x13, xzr\n\tmov x14, xzr\n\tmov x15, xzr" ::
                         : "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",
                           "x14", "x15");
}

#endif

/* The vector registers belong to the callee: System V ABI, 3.2.3; AAPCS64, 6.1.2. Registers first: a signal that comes
 * while the stack is cleared would put them there again. What clears the stack brings only zeros back. */
__attribute__((noinline)) void mmk_secret_scrub(void)
{
    clear_vectors();
    clear_scratch();
    clear_stack();
}
