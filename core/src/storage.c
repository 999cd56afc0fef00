#include <mmkit/storage.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <mmkit/sys.h>

#include "region_internal.h"

static int file_size(const mmk_region *region, uint64_t *size)
{
    struct stat status;
    /* Not glibc's fstat: before 2.38 it takes the slower newfstatat. */
    if (syscall(SYS_fstat, region->fd, &status) < 0)
        return -errno;
    *size = (uint64_t)status.st_size;
    return 0;
}

int mmk_region_file_size(mmk_region *region, uint64_t *size)
{
    int error = mmk_region_enter(region);
    if (error)
        return error;
    error = file_size(region, size);
    mmk_region_leave(region);
    return error;
}

int mmk_region_add_seals(mmk_region *region, int seals)
{
    int error = mmk_region_enter(region);
    if (error)
        return error;
    if (fcntl(region->fd, F_ADD_SEALS, seals) < 0) {
        error = -errno;
    } else if (seals & F_SEAL_SHRINK) {
        region->may_shrink = false;
        region->hides_end = false;
    }
    mmk_region_leave(region);
    return error;
}

/* The kernel syncs what is there and calls it a success: pages past the end of the file are not missed. */
static int check_still_stored(const mmk_region *region, size_t offset, size_t length)
{
    uint64_t size = 0;
    size_t end = offset + length < region->asked ? offset + length : region->asked;
    int error = file_size(region, &size);
    if (error)
        return error;
    return region->file_offset + end > size ? -MMK_ESHRUNK : 0;
}

int mmk_region_flush(mmk_region *region, size_t offset, size_t length, int flags)
{
    int error = mmk_region_enter(region);
    if (error)
        return error;
    error = check_range(region, offset, length);
    if (!error)
        error = mmk_sys_msync(region->base + offset, length, flags);
    if (!error && region->may_shrink && (flags & MS_SYNC))
        error = check_still_stored(region, offset, length);
    mmk_region_leave(region);
    return error;
}

static int punch_file(const mmk_region *region, size_t offset, size_t length)
{
    /* fallocate(2) zeroes the edges itself. */
    int result = fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                           (off_t)(region->file_offset + offset), (off_t)length);
    return result < 0 ? -errno : 0;
}

static int punch_anonymous(const mmk_region *region, size_t offset, size_t length, mmk_fault *fault)
{
    size_t end = offset + length;
    size_t first_whole = mmk_round_up(offset, region->granule);
    size_t last_whole = mmk_round_down(end, region->granule);
    if (first_whole >= last_whole) {
        int error = region_check_write(region, offset, length, fault);
        return error ? error : region_zero(region, offset, length, fault);
    }

    int error = region_check_write(region, offset, first_whole - offset, fault);
    if (!error)
        error = region_check_write(region, last_whole, end - last_whole, fault);
    if (error)
        return error;
    int advice = (region->flags & MAP_TYPE) == MAP_PRIVATE ? MMK_MADV_DONTNEED : MMK_MADV_REMOVE;
    error = mmk_sys_madvise(region->base + first_whole, last_whole - first_whole, advice);
    if (!error)
        error = region_zero(region, offset, first_whole - offset, fault);
    if (!error)
        error = region_zero(region, last_whole, end - last_whole, fault);
    return error;
}

int mmk_region_punch(mmk_region *region, size_t offset, size_t length, bool force, mmk_fault *fault)
{
    int error = region_begin_destroying(region, offset, length, force);
    if (error)
        return error;
    if (!is_inside(region, offset, length))
        error = -ERANGE;
    else if (region->fd >= 0 && (region->flags & MAP_TYPE) == MAP_PRIVATE)
        error = -MMK_EUNSUPPORTED;
    else if (length)
        error = region->fd >= 0 ? punch_file(region, offset, length) : punch_anonymous(region, offset, length, fault);
    region_end_destroying(region, force);
    return error;
}
