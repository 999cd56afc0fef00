#include <mmkit/maps_query.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "maps_internal.h"

enum {
    WIPEONFORK = 18, /* MADV_WIPEONFORK */
    MARK = 63,       /* a real-time signal; it is never sent, since no O_ASYNC asks for signals */
};

/* struct procmap_query of linux/fs.h, 6.11. */
typedef struct procmap_query {
    uint64_t size;
    uint64_t query_flags;
    uint64_t query_addr;
    uint64_t vma_start;
    uint64_t vma_end;
    uint64_t vma_flags;
    uint64_t vma_page_size;
    uint64_t vma_offset;
    uint64_t inode;
    uint32_t dev_major;
    uint32_t dev_minor;
    uint32_t vma_name_size; /* room for it on the way in, its length with NUL on the way out; 0: no name */
    uint32_t build_id_size;
    uint64_t vma_name_addr;
    uint64_t build_id_addr;
} procmap_query;

_Static_assert(sizeof(procmap_query) == 104, "the kernel's struct has 104 bytes");

static const unsigned long PROCMAP_QUERY_CALL = _IOWR('f', 17, procmap_query);

int mmk_maps_query(int fd, uint64_t address, int which, mmk_area *area, char *path, size_t *path_length,
                   unsigned *facts)
{
    procmap_query query = {
        .size = sizeof query,
        .query_flags = (unsigned)which,
        .query_addr = address,
        .vma_name_addr = (uintptr_t)path,
        .vma_name_size = MMK_MAPS_PATH_MAX,
    };
    if (ioctl(fd, PROCMAP_QUERY_CALL, &query) == -1)
        return -errno;
    *area = (mmk_area){
        .start = query.vma_start,
        .end = query.vma_end,
        .offset = query.vma_offset,
        .device = makedev(query.dev_major, query.dev_minor),
        .inode = query.inode,
        .perms = (uint8_t)(query.vma_flags & 0xF),
    };
    size_t length = query.vma_name_size ? query.vma_name_size - 1 : 0;
    *facts = 0;
    *path_length = mmk_maps_strip_deleted(path, length, facts);
    return 0;
}

static int map_the_page_that_tells(mmk_own_map *own)
{
    size_t length = mmk_page_size();
    void *page = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return -errno;
    if (madvise(page, length, WIPEONFORK)) {
        int error = -errno;
        munmap(page, length);
        return error;
    }
    own->is_ours = page;
    own->fd = -1;
    return 0;
}

static bool is_the_file_opened(const mmk_own_map *own)
{
    struct stat file;
    return fstat(own->fd, &file) == 0 && file.st_dev == own->device && file.st_ino == own->inode;
}

int mmk_own_map_check(const mmk_own_map *own)
{
    return own->is_ours && *own->is_ours && is_the_file_opened(own) ? 0 : -MMK_ECLOSED;
}

int mmk_own_map_open(mmk_own_map *own)
{
    if (!own->is_ours) {
        int error = map_the_page_that_tells(own);
        if (error)
            return error;
    }
    /* What the parent had open. */
    if (own->fd >= 0 && is_the_file_opened(own) && fcntl(own->fd, F_GETSIG) == MARK)
        close(own->fd);
    *own->is_ours = 0;
    own->fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (own->fd < 0)
        return -errno;
    struct stat file;
    if (fcntl(own->fd, F_SETSIG, MARK) || fstat(own->fd, &file)) {
        int error = -errno;
        close(own->fd);
        own->fd = -1;
        return error;
    }
    own->device = file.st_dev;
    own->inode = file.st_ino;
    *own->is_ours = 1;
    return 0;
}

/* glibc 2.32, sys/single_threaded.h; it becomes 0 with the first thread. */
extern char __libc_single_threaded __attribute__((weak));

bool mmk_is_single_threaded(void)
{
    return &__libc_single_threaded && __libc_single_threaded;
}

int mmk_thread_stack_address(pid_t thread, uint64_t *address)
{
    void *head = NULL;
    size_t length;
    if (syscall(SYS_get_robust_list, thread, &head, &length))
        return -errno;
    *address = (uintptr_t)head;
    return 0;
}
