/* tmpfs.h: a file system that is as full as a test wants it. Apart from support.h because of what sys/mount.h defines.
 */
#ifndef MMKIT_TEST_TMPFS_H
#define MMKIT_TEST_TMPFS_H

#include <sched.h>
#include <stdbool.h>
#include <sys/mount.h>

#include "check.h"

/* In a child: a tmpfs of its own on /tmp. */
static inline bool mount_tmpfs(const char *options)
{
    if (unshare(CLONE_NEWNS) < 0)
        return false;
    CHECK(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    return mount("mmkit-test", "/tmp", "tmpfs", 0, options) == 0;
}

#endif
