#!/bin/sh
# Break the channel's protocol in each of these ways and see the schedule test notice.
#     channel_mutants.sh BUILD_DIR [PART_OF_A_NAME]        (where libmmkit.so is)
set -eu
patience=300
telling='lost|again|waits|not so'
. "$(dirname "$0")/mutants.sh"

# The test includes what is broken.
build_test() {
    compile_broken "$work/tests/$1.c" -o "$work/test" -L"$built" -lmmkit -Wl,-rpath,"$built"
}

# channel_mutant NAME FILE SED
channel_mutant() {
    mutant "$1" "$2" "$3" test_channel_schedules
}

see_pass test_channel_schedules

channel_mutant "commit before the bytes are there" tests/test_channel_schedules.c \
    '/^static void write_messages/,/^}/{/fill(/d;s/send(&message, i);/send(\&message, i); fill(\&message, i);/}'
channel_mutant "commit without a fence" src/lane.c \
    '/^void mmk_lane_commit_ordered/,/^}/s/step_publish_ordered/step_publish/'
channel_mutant "park without a second look for messages" src/channel.c \
    '/^int mmk_channel_await_message/,/^}/{/if (has_news(channel))/,+1d}'
channel_mutant "announce parking without a fence" src/channel.c \
    '/^static uint32_t announce_parking/,/^}/s/!step_swap32(bell, seen, seen | 1)/(step_write32(bell, seen | 1), 0)/'
channel_mutant "ring without counting" src/channel.c '/^void channel_ring/,/^}/s/seen + 1)/seen - 1)/'
channel_mutant "wait for room without a second look" src/lane.c \
    '/^uint32_t mmk_lane_announce_wait/,/^}/s/return mmk_lane_wait_is_over(wait) ? 0 : seen/return seen/'
channel_mutant "finish without a fence" src/lane.c \
    '/^bool mmk_lane_finish/,/^}/s/step_publish_ordered/step_publish/'
channel_mutant "ring for nobody" src/channel.c '/^void mmk_channel_commit/,/^}/s/channel_ring(channel, 1);//'
channel_mutant "do not pass a wake on" src/channel.c '/^static void pass_on/,/^}/s/if (has_news(channel))/if (0)/'
channel_mutant "do not say again that others may sleep" src/channel.c \
    '/^int mmk_channel_await_message/,/^}/s/if (!error \&\&/if (0 \&\&/'
channel_mutant "take by a store where others take" src/lane.c '/^static bool make_taken/,/^}/s/if (!lane->single)/if (0)/'
channel_mutant "move the cursor by a store where others do" src/lane.c '/^static uint64_t move_cursor/,/^}/s/if (lane->single)/if (1)/'
channel_mutant "put back without counting" src/lane.c \
    '/^static void put_cursor_back/,/^}/s/((cursor + 1) \& 0xffff)/(cursor \& 0xffff)/'
channel_mutant "give back without moving the cursor" src/lane.c \
    '/^void mmk_lane_give_back/,/^}/s/put_cursor_back(.*);//'
channel_mutant "mend without moving the cursor" src/lane.c \
    '/^size_t mmk_lane_mend_reader/,/^}/s/put_cursor_back(.*);//'
channel_mutant "mend only what was found" src/lane.c '/^size_t mmk_lane_mend_reader/,/^}/s/if (redeliver)/if (redeliver \&\& mended)/'
channel_mutant "free the number before its messages" src/channel_mend.c \
    '/^static unsigned mend_reader/,/^}/{/step_publish/d;s/^    for (/    step_publish(\&channel->header->readers[reader], 0);\n    for (/}'
channel_mutant "mend while another does" src/channel_mend.c '/^static bool enter_mending/,/^}/s/^    return step_swap.*/    return true;/;s/holder \&\& !step_is_gone(holder)/0/'
channel_mutant "leave a dead mender in office" src/channel_mend.c 's/if (holder \&\& !step_is_gone(holder))/if (holder)/'
channel_mutant "leave a dead writer's reservations" src/lane.c \
    '/^size_t mmk_lane_mend_writer/,/^}/s/passed_over += step_swap.*/;/'
channel_mutant "use room that is not done" src/lane.c '/^static void reclaim/,/^}/s/== word_of(tail, DONE, 0)/>= word_of(tail, TAKEN, 0)/'
channel_mutant "commit first, then say how much is reserved" src/lane.c \
    '/^int mmk_lane_reserve/,/^}/s/step_publish(&lane->shared->head, lane->head);//'
exit $escaped
