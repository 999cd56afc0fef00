"""A map as a program of many kinds of areas has it."""

PROGRAM_TEXT = b"""\
400000-401000 r--p 00000000 fe:00 7                                      /bin/program
401000-402000 r-xp 00001000 fe:00 7                                      /bin/program
402000-403000 r--p 00002000 fe:00 7                                      /bin/program
403000-404000 rw-p 00003000 fe:00 7                                      /bin/program
404000-408000 rw-p 00000000 00:00 0
408000-409000 ---p 00000000 00:00 0
500000-600000 rw-p 00000000 00:00 0                                      [heap]
7f0000000000-7f0000001000 rw-p 00000000 00:00 0                          [anon:arena]
7f0000001000-7f0000002000 rw-s 00000000 00:01 9                          [anon_shmem:shared arena]
7f0000002000-7f0000003000 r--p 00000000 fe:00 8                          /opt/plugin
7f0000003000-7f0000004000 rw-p 00000000 00:00 0
7f0000004000-7f0000005000 r-xp 00001000 fe:00 8                          /opt/plugin
7f0000005000-7f0000006000 r--p 00000000 fe:00 9                          /opt/lib.so.1.2
7f0000006000-7f0000007000 r--p 00000000 fe:00 10                         /opt/lib.so.txt
7f0000007000-7f0000008000 rw-s 00000000 00:05 11                         /dev/dri/card0
7f0000008000-7f0000009000 rw-s 00000000 00:0e 12                         anon_inode:[perf_event]
7f0000009000-7f000000a000 rw-s 00000000 00:0e 13                         /secretmem (deleted)
7f000000a000-7f000000b000 rw-s 00000000 00:01 14                         /SYSV0000beef (deleted)
7f000000b000-7f000000c000 rw-s 00000000 00:01 15                         /SYSV0000beef
7f000000c000-7f000000d000 rw-p 00000000 00:06 4                          /dev/zero
7f000000d000-7f000000e000 rw-p 00000000 00:22 4                          /dev/hugepages/pool
7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0                          [stack:77]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""
