"""core/include/mmkit/maps.h"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "mmkit/maps.h" nogil:
    enum:
        MMK_MAPS_PATH_MAX

    int MMK_PATH_DELETED
    int MMK_PATH_ESCAPED

    ctypedef struct mmk_area:
        uint64_t start
        uint64_t end
        uint64_t offset
        uint64_t device
        uint64_t inode
        uint8_t perms

    ctypedef struct mmk_area_columns:
        uint64_t *start
        uint64_t *end
        uint64_t *offset
        uint64_t *device
        uint64_t *inode
        uint32_t *path
        uint8_t *perms
        size_t capacity

    ctypedef struct mmk_path_columns:
        uint64_t *start
        uint32_t *length
        uint8_t *perms
        uint8_t *facts

    ctypedef struct mmk_maps_found:
        size_t areas
        size_t paths
        size_t path_bytes
        size_t escaped
        size_t malformed
        size_t torn

    int mmk_maps_slurp(int fd, char *buffer, size_t capacity, size_t *length)
    size_t mmk_maps_count_lines(const char *text, size_t length)
    void mmk_maps_parse(char *text, size_t length, const mmk_area_columns *areas,
                        const mmk_path_columns *paths, mmk_maps_found *found)
    int mmk_maps_query(int fd, uint64_t address, mmk_area *area, char *path, size_t *path_length,
                       unsigned *facts)
