/* Areas: mapped, locked, kept out of dumps and children, and protected, in this order. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <mmkit/registry.h>
#include <mmkit/sys.h>

#include "secret_internal.h"

enum {
    MADV_DONTDUMP_ = 16, /* linux/mman.h of 6.18 */
    MADV_WIPEONFORK_ = 18,
    CAP_IPC_LOCK_ = 14, /* linux/capability.h */
    RW = PROT_READ | PROT_WRITE,
};

static int refused(mmk_secret_refusal *refusal, const char *call, size_t length, int error)
{
    *refusal = (mmk_secret_refusal){call, length};
    return error;
}

/* ---- the budget ---- */

/* A number of /proc/self/status; `missing` where it does not say. */
static uint64_t status_number(const char *text, const char *field, int base, uint64_t missing)
{
    const char *found = strstr(text, field);
    return found ? strtoull(found + strlen(field), NULL, base) : missing;
}

/* Would the kernel let us lock so much more? Asked before, since its ENOMEM has many meanings. Where /proc says nothing
 * the kernel decides alone, as it does in the end. */
static int check_budget(size_t length)
{
    struct rlimit most;
    char text[4096];
    if (getrlimit(RLIMIT_MEMLOCK, &most) < 0 || most.rlim_cur == RLIM_INFINITY)
        return 0;
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    uint64_t locked = status_number(text, "\nVmLck:", 10, 0) * 1024;
    bool is_limited = !(status_number(text, "\nCapEff:", 16, 1 << CAP_IPC_LOCK_) >> CAP_IPC_LOCK_ & 1);
    if (!is_limited || locked + length <= most.rlim_cur)
        return 0;
    return most.rlim_cur ? -ENOMEM : -EPERM;
}

/* ---- mapping ---- */

static int prepare_anonymous(secret_area *area, mmk_secret_refusal *refusal)
{
    int error = 0;
    /* Lock first, protect later: of what is PROT_NONE no page can be brought in. */
    if (area->kind == MMK_SECRET_LOCKED && (error = mmk_sys_mlock(area->base, area->length)) < 0)
        return refused(refusal, "mlock", area->length, error);
    /* All is locked and in RAM. Said again with "on fault", which changes nothing else, it spares a walk over the pages
     * each time that they become writable: a sixth of a secret's life. */
    if (area->kind == MMK_SECRET_LOCKED)
        (void)mmk_sys_mlock2(area->base, area->length, MLOCK_ONFAULT);
    error = mmk_sys_madvise(area->base, area->length, MADV_DONTDUMP_);
    if (!error)
        error = mmk_sys_madvise(area->base, area->length, MADV_WIPEONFORK_);
    if (error)
        return refused(refusal, "madvise", area->length, error);
    /* For people who read /proc/PID/maps, where the kernel can: nothing depends on it. */
    (void)mmk_sys_name_anonymous(area->base, area->length, "mmkit:secret");
    return 0;
}

/* Such pages are locked and in no dump by nature; WIPEONFORK is not for them. */
static int prepare_memfd(secret_area *area, mmk_secret_refusal *refusal)
{
    int fd = mmk_sys_memfd_secret(O_CLOEXEC);
    if (fd < 0)
        return refused(refusal, "memfd_secret", area->length, fd);
    intptr_t mapped = -1;
    int error = ftruncate(fd, (off_t)area->length) < 0 ? -errno : 0;
    if (!error)
        mapped = mmk_sys_mmap(area->base, area->length, RW, MAP_SHARED | MAP_FIXED, fd, 0);
    /* Whoever has the descriptor can map the pages: let nobody have it. */
    close(fd);
    if (error)
        return refused(refusal, "ftruncate", area->length, error);
    if (mapped < 0)
        return refused(refusal, "mmap", area->length, (int)mapped);
    error = mmk_sys_madvise(area->base, area->length, MMK_MADV_DONTFORK);
    return error ? refused(refusal, "madvise", area->length, error) : 0;
}

static int prepare(secret_area *area, mmk_secret_refusal *refusal)
{
    int error = mmk_sys_mprotect(area->base, area->length, RW);
    if (error)
        return refused(refusal, "mprotect", area->length, error);
    error = area->kind == MMK_SECRET_MEMFD ? prepare_memfd(area, refusal) : prepare_anonymous(area, refusal);
    if (error)
        return error;
    canaries_write(area->base, area->base + area->length);
    error = mmk_sys_mprotect(area->base, area->length, PROT_NONE);
    return error ? refused(refusal, "mprotect", area->length, error) : 0;
}

static int map(secret_area *area, mmk_secret_refusal *refusal)
{
    size_t page = mmk_page_size(), outer = area->length + 2 * page;
    int error = area->kind == MMK_SECRET_LOCKED ? check_budget(area->length) : 0;
    if (error)
        return refused(refusal, "mlock", area->length, error);
    intptr_t address = mmk_sys_mmap(NULL, outer, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address < 0)
        return refused(refusal, "mmap", outer, (int)address);
    area->outer = (mmk_range){(char *)address, outer};
    area->base = area->outer.base + page;
    error = mmk_registry_hold(area->outer);
    if (error) {
        (void)mmk_sys_munmap(area->outer.base, outer);
        return refused(refusal, "malloc", 0, error);
    }
    error = prepare(area, refusal);
    if (error) {
        mmk_registry_release(area->outer);
        (void)mmk_sys_munmap(area->outer.base, outer);
    }
    return error;
}

int secret_area_map(secret_area **made, int list, size_t size, mmk_secret_kind kind, mmk_secret_refusal *refusal)
{
    size_t page = mmk_page_size();
    if (size > SIZE_MAX / 4)
        return refused(refusal, "mmap", size, -ENOMEM);
    size_t length = mmk_round_up(size, page);
    uint32_t slots = list == ALONE ? 1 : (uint32_t)(length / size);
    secret_area *area = calloc(1, sizeof *area + slots * sizeof area->free[0]);
    if (!area)
        return refused(refusal, "malloc", sizeof *area, -ENOMEM);
    area->length = length;
    area->slot_size = list == ALONE ? length : size;
    area->kind = kind;
    area->list = list;
    area->prot = PROT_NONE;
    area->slots = area->free_slots = slots;
    for (uint32_t i = 0; i < slots; i++)
        area->free[i] = (uint16_t)(slots - 1 - i);
    int error = map(area, refusal);
    if (error) {
        free(area);
        return error;
    }
    *made = area;
    return 0;
}

void secret_area_unmap(secret_area *area)
{
    mmk_registry_release(area->outer);
    /* Whole mappings go: nothing is split, so nothing can fail. */
    (void)mmk_sys_munmap(area->outer.base, area->outer.length);
    free(area);
}

void secret_area_abandon(secret_area *area)
{
    if (area->readers + area->writers == 0) {
        secret_area_unmap(area);
        return;
    }
    /* Somebody has a pointer into it, and reads zeros there; but where DONTFORK left a hole nothing may move in. */
    if (area->kind == MMK_SECRET_MEMFD)
        (void)mmk_sys_mmap(area->base, area->length, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
}
