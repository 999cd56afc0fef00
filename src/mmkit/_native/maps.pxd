"""core/include/mmkit/maps.h, maps_query.h"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.types cimport pid_t

cdef extern from "mmkit/maps.h" nogil:
    enum:
        MMK_FIELDS_MAX

    int MMK_PATH_DELETED
    int MMK_PATH_ESCAPED
    int MMK_FIELD_BYTES
    int MMK_FIELD_NUMBER
    int MMK_FIELD_TEXT

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

    ctypedef struct mmk_area_field:
        char *name
        int unit
        uint64_t *values

    ctypedef struct mmk_maps_parser:
        mmk_area_columns areas
        mmk_path_columns paths
        mmk_area_field *fields
        size_t area_count
        size_t path_count
        size_t field_count
        size_t kept
        unsigned facts
        size_t malformed
        size_t torn
        uint64_t previous_end

    int mmk_maps_slurp(int fd, char *buffer, size_t capacity, size_t *length)
    int mmk_maps_parse(mmk_maps_parser *parser, char *text, size_t *length, bint is_end)

cdef extern from "mmkit/maps_query.h" nogil:
    enum:
        MMK_MAPS_PATH_MAX

    int MMK_QUERY_HOLDING
    int MMK_QUERY_CODE_FROM

    ctypedef struct mmk_own_map:
        int fd

    int mmk_maps_query(int fd, uint64_t address, int which, mmk_area *area, char *path, size_t *path_length,
                       unsigned *facts)
    int mmk_own_map_open(mmk_own_map *own)
    int mmk_own_map_check(const mmk_own_map *own)
    bint mmk_is_single_threaded()
    int mmk_thread_stack_address(pid_t thread, uint64_t *address)
