#include <mmkit/guarded.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guarded_internal.h"
#include "signals.h"

#if defined(__aarch64__)
#define CLOCK_IN_VDSO "__kernel_clock_gettime"
#else
#define CLOCK_IN_VDSO "__vdso_clock_gettime"
#endif

__thread volatile fault_thread fault_self;

static mmk_fault_reason reason_of(int signal, int code)
{
    if (code == SI_KERNEL)
        return MMK_FAULT_NOT_AN_ADDRESS;
    if (signal == SIGBUS)
        return code == BUS_MCEERR_AR ? MMK_FAULT_POISONED
               : code == BUS_ADRERR  ? MMK_FAULT_NOT_BACKED
                                     : MMK_FAULT_UNKNOWN;
    switch (code) {
    case SEGV_MAPERR:
        return MMK_FAULT_UNMAPPED;
    case SEGV_ACCERR:
        return MMK_FAULT_PROTECTION;
    case SEGV_PKUERR:
        return MMK_FAULT_PROTECTION_KEY;
    default:
        return MMK_FAULT_UNKNOWN;
    }
}

static bool is_canonical(const void *start, size_t length)
{
    /* 48 bits of address, of which the rest repeats the last. With five levels of page table there are 57, but only
     * for who asks mmap(2) for an address up there. */
    intptr_t first = (intptr_t)start >> 47, last = ((intptr_t)start + (intptr_t)length - 1) >> 47;
    return first == last && (first == 0 || first == -1);
}

static bool meets_page(const void *start, size_t length, uintptr_t page)
{
    return (uintptr_t)start - page < mmk_page_size() || page - (uintptr_t)start < length;
}

int guarded_describe(mmk_fault *fault, leaf_result result, const void *to, const void *from, size_t length)
{
    uintptr_t page = mmk_round_down(result.value, mmk_page_size());
    bool source = meets_page(from, length, page), target = meets_page(to, length, page);
    fault->reason = reason_of((int)(result.fault >> 8 & 0xff), (int)(result.fault >> 32));
    if (fault->reason == MMK_FAULT_NOT_AN_ADDRESS) {
        /* The kernel tells neither the address nor what was done to it. */
        fault->write = is_canonical(from, length) && !is_canonical(to, length);
        fault->address = (uintptr_t)(fault->write ? to : from);
        return -EFAULT;
    }
    /* Emulators do not tell whether it was a write. */
    fault->write = source == target ? result.fault >> 1 & 1 : target;
    /* The access may have met the page anywhere: all of it is not there. */
    uintptr_t start = (uintptr_t)(fault->write ? to : from);
    fault->address = start > page ? start : page;
    return -EFAULT;
}

int (*touch_look_at_clock)(clockid_t clock, struct timespec *now) = clock_gettime;

__attribute__((constructor)) static void shorten_the_way_to_the_clock(void)
{
    void *kernel = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
    void *found = kernel ? dlsym(kernel, CLOCK_IN_VDSO) : NULL;
    if (found)
        memcpy(&touch_look_at_clock, &found, sizeof found);
}

bool touch_make_ready(const struct timespec *tick)
{
    if (signals_come_first())
        return false;
    fault_self.checked.tv_nsec = tick->tv_nsec;
    fault_self.checked.tv_sec = tick->tv_sec;
    return true;
}

void touch_unblock(sigset_t *before)
{
    sigset_t ours;
    sigemptyset(&ours);
    sigaddset(&ours, SIGSEGV);
    sigaddset(&ours, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &ours, before);
    /* What was pending came at once. */
    fault_self.is_message = fault_self.was_sent;
}

void touch_block(const sigset_t *before)
{
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

/* What was sent to the process is for any of its threads; but only its first may say that somebody else sent it. */
static bool send_to_process(siginfo_t *info)
{
    if (info->si_code == SI_USER && info->si_pid == getpid())
        return kill(getpid(), info->si_signo) == 0;
    return info->si_code != SI_TKILL && syscall(SYS_rt_sigqueueinfo, getpid(), info->si_signo, info) == 0;
}

static void send_again(volatile siginfo_t *sent)
{
    siginfo_t info;
    memcpy(&info, (const void *)sent, sizeof info);
    sent->si_signo = 0;
    if (info.si_signo && !send_to_process(&info))
        syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), info.si_signo, &info);
}

/* What was sent during an access goes back into the queue, from where it comes at once, or stays pending if the
 * thread blocks it. */
void touch_send_again(void)
{
    if (fault_self.touching)
        return;
    fault_self.was_sent = fault_self.is_message = false;
    send_again(&fault_self.segv);
    send_again(&fault_self.bus);
}

int mmk_guarded_copy(void *to, const void *from, size_t length, mmk_fault *fault)
{
    return guarded_copy(to, from, length, fault);
}

/* The scan reads blocks: the byte may stand in front of the fault in the same block.
 * returns its index, or -ENOENT */
static ssize_t scan_before(const char *from, uintptr_t end, unsigned char byte)
{
    size_t length = end - (uintptr_t)from, start = length > GUARDED_SCAN_BLOCK ? length - GUARDED_SCAN_BLOCK : 0;
    leaf_result result = guarded_scan(from + start, length - start, byte);
    return !result.fault && result.value < length - start ? (ssize_t)(start + result.value) : -ENOENT;
}

ssize_t mmk_guarded_scan(const void *from, size_t length, unsigned char byte, mmk_fault *fault)
{
    touch t;
    touch_begin(&t);
    leaf_result result = guarded_scan(from, length, byte);
    ssize_t index = result.value < length ? (ssize_t)result.value : -ENOENT;
    if (result.fault) {
        (void)guarded_describe(fault, result, from, from, length);
        fault->write = false;
        index = scan_before(from, fault->address, byte);
        index = index < 0 ? -EFAULT : index;
    }
    touch_end(&t);
    return index;
}
