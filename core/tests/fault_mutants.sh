#!/bin/sh
# Break the handling of faults in each of these ways and see its tests notice.
#     fault_mutants.sh BUILD_DIR [PART_OF_A_NAME]        (where libmmkit_internals.a is)
set -eu
patience=60
telling='not so'
. "$(dirname "$0")/mutants.sh"

# The broken object stands in front of the archive, whose own is left out.
build_test() {
    [ -z "${2:-}" ] || compile_broken -c "$work/$2" -o "$work/broken.o"
    compile_broken "$work/tests/$1.c" ${2:+"$work/broken.o"} "$built/libmmkit_internals.a" -o "$work/test"
}

see_pass test_fault_hooks test_fork test_guarded test_readers test_registry test_signals test_signals_in_front \
    test_snapshot test_snapshot_races

mutant "a change does not wait for the handlers" src/registry.c '/^void registry_end_removal/,/^}/s/readers_wait();//' \
    test_fault_hooks test_registry
mutant "the tables of old are used again at once" src/ranges.c 's/readers_wait();//' test_registry test_readers
mutant "a reader does not look twice" src/readers.c \
    's/if (atomic_load(&readers.current) == counter)/if (1)/' test_readers
mutant "a reader leaves before it has read" src/readers.c \
    '/^unsigned readers_enter/,/^}/{s/readers_leave(counter)/atomic_fetch_sub(\&readers.inside[counter], 1)/;s/return/return atomic_fetch_sub(\&readers.inside[counter], 1),/};/^void readers_leave/,/^}/s/atomic_fetch_sub/if (0) &/' \
    test_readers test_fault_hooks
mutant "a child keeps the readers that it has not" src/registry.c 's/readers_forget();//' test_fork test_fault_hooks
mutant "no second try" src/fault.c '/^static bool may_have_been_mended/,/^}/s/return changed.*/return false;/' \
    test_fault_hooks
mutant "a second try without an end" src/fault.c 's/return changed && fault_self.tries++ < TRIES/return true/' \
    test_fault_hooks test_guarded
mutant "a removal is counted when it begins only" src/registry.c \
    '/^static void end_removal/,/^}/s/atomic_fetch_add(&removals, 1);//' test_fault_hooks test_readers test_registry
mutant "a hook's answer is not asked" src/fault.c 's/bool mended = hook.*/bool mended = hook != NULL;/' test_fault_hooks
mutant "a mended fault is passed on" src/fault.c 's/(is_mended_by_hook(address, write) || /(/' test_fault_hooks
mutant "a signal that was sent is taken for a fault" src/fault.c \
    '/^bool fault_settle/,/^}/s/if (!fault_is_synchronous(info))/if (0)/' test_signals test_signals_in_front test_guarded
mutant "what is sent during an access is lost" src/fault.c \
    '/^static bool put_off_if_touching/,/^}/s/fault_self.was_sent = true;//' test_signals test_guarded
mutant "writes are told as reads" src/fault.c '/^static bool was_write/,/^}/s/return .*/return false;/' test_fault_hooks
mutant "the handler takes any program counter for its own" src/fault.c 's/if (!is_in_leaf(context))/if (0)/' \
    test_signals test_signals_in_front test_fault_hooks
mutant "handlers are asked from the oldest on" src/signals.c \
    's/for (; level >= 0; level--) {/for (int last = level, l = level = 0; l <= last; level = ++l) {/' test_signals test_signals_in_front
mutant "the handler in front is asked again by who passes on" src/signals.c \
    '/^static int level_for/,/^}/{s/int next = highest\[which\] + 1;/int next = front[which] < 0 ? 0 : front[which];/}' \
    test_signals_in_front test_signals
mutant "who installs the same handler again is asked twice" src/signals.c \
    's/take_out_below(which, level, &found);//' test_signals_in_front test_signals
mutant "the interpreter's handler that returns ends it" src/signals.c \
    's/if (!synchronous || !is_interpreters(a))/if (1)/' test_signals test_signals_in_front
mutant "a fault is ignored where the process ignores the signal" src/signals.c \
    's/if (code_of(a) == (uintptr_t)SIG_IGN \&\& !synchronous)/if (code_of(a) == (uintptr_t)SIG_IGN)/' \
    test_signals test_signals_in_front
mutant "C code that calls sigaction after us stays in front" src/signals.c \
    '/^bool signals_come_first/,/^}/s/come_first_for_both();/if (!atomic_load(\&installed)) come_first_for_both();/' \
    test_signals_in_front test_signals
mutant "a thread that blocks the signals is not looked at" src/signals.c \
    's/return sigismember(&blocked, SIGSEGV).*/return false;/' test_signals test_guarded
mutant "errno is not put back" src/signals.c 's/^    errno = saved;//' test_signals test_signals_in_front

# snapshot.h stands on a hook.
snapshot_mutant() {
    mutant "snapshot: $1" "$2" "$3" test_snapshot test_snapshot_races
}

snapshot_mutant "a handler interrupts who keeps a page" src/snapshot.c \
    '/^static mmk_fault_answer keep_before_write/,/^}/s/block_signals(&before);/sigprocmask(SIG_BLOCK, NULL, \&before);/'
snapshot_mutant "who meets a page that is being kept opens it" src/snapshot.c \
    '/^static mmk_fault_answer let_write/,/^}/s/(void)wait_while_busy(snapshot, page);/(void)mprotect_pages(snapshot, page, page + 1, 3);/'
snapshot_mutant "a change of protection opens pages that nobody has kept" src/snapshot.c 's/open ? prot : late/prot/'
snapshot_mutant "a change of protection closes a page opened meanwhile" src/snapshot.c \
    's/if (wait_while_busy(snapshot, at) & STATE)/if (0)/'
snapshot_mutant "a change of protection does not wait for a page being opened" src/snapshot.c \
    's/return (wait_while_busy(snapshot, page) & STATE) == OPEN;/return (word_of(snapshot, page) \& STATE) == OPEN;/'
snapshot_mutant "a page that faults for another reason is tried for ever" src/snapshot.c \
    '/^static mmk_fault_answer let_write/,/^}/s/return MMK_FAULT_PASS_ON;/return MMK_FAULT_RETRY;/'
snapshot_mutant "who comes a moment late is passed on" src/snapshot.c 's/fault_count_mending();//'
snapshot_mutant "a page is read without a second look" src/snapshot.c \
    's/if (!is_kept(atomic_fetch_add(&snapshot->pages\[page\], 0)))/if (1)/'
snapshot_mutant "a child waits for threads that it has not" src/region.c 's/snapshot_after_fork(snapshot);/;/'
snapshot_mutant "what the region forbids is allowed" src/snapshot.c \
    '/^static mmk_fault_answer keep_before_write/,/^}/s/& PROT_WRITE)/| PROT_WRITE)/'
snapshot_mutant "release does not wait for who populates" src/snapshot.c \
    '/^void snapshot_keep/,/^}/{s/readers_enter();/0;/;s/readers_leave(reading);/(void)reading;/}'
snapshot_mutant "a write opens its page while others are not protected yet" src/snapshot.c \
    '/^static mmk_fault_answer let_write/,/^}/s/if (atomic_load(&snapshot->beginning))/if (0)/'
snapshot_mutant "populating opens pages while others are not protected yet" src/snapshot.c \
    '/^static bool keep_all/,/^}/s/if (atomic_load(&snapshot->beginning))/if (0)/'
snapshot_mutant "a handler interrupts who takes a snapshot" src/snapshot.c \
    '/^static int take/,/^}/s/block_signals(&before);/sigprocmask(SIG_BLOCK, NULL, \&before);/'
snapshot_mutant "released pages stay protected" src/snapshot.c 's/snapshot->ending = true;//'
snapshot_mutant "at the limit nothing in front is kept" src/snapshot.c 's/while (first > 0 && keep_alike/while (0 \&\& keep_alike/'
snapshot_mutant "at the limit nothing behind is kept" src/snapshot.c 's/while (end < count && keep_alike/while (0 \&\& keep_alike/'
snapshot_mutant "force discards what a snapshot needs" src/region.c \
    '/^int region_begin_destroying/,/^}/s/if (atomic_load(&region->snapshot))/if (0)/'
snapshot_mutant "a region with a snapshot is closed" src/region.c 's/region->views || atomic_load(&region->snapshot)/region->views/'

exit $escaped
