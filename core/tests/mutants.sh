# Breaking the code on purpose, to see the tests notice. To be read by a script whose name says what it breaks, and
# which was called with BUILD_DIR [PART_OF_A_NAME]: what to link with, and which mutants to try.
#
# pre: $telling is a pattern of the lines in which a test says what is wrong, $patience how many seconds it may take.
#      build_test TEST [FILE] compiles a test by compile_broken, FILE (under src/ or tests/) being what is broken.
core=$(cd "$(dirname "$0")/.." && pwd)
built=$(cd "$1" && pwd)
only=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
escaped=0

copy_code() {
    rm -rf "$work/src" "$work/tests"
    cp -r "$core/src" "$core/tests" "$work"
}

# Compile what was copied: compile_broken OPTION...
compile_broken() {
    ${CC:-cc} -std=gnu11 -D_GNU_SOURCE -O1 -w -I"$core/include" -I"$work/src" -I"$work/tests" "$@" -lpthread
}

# Its status is left in $status, what it said in $work/said: run_test TEST [FILE]
run_test() {
    build_test "$@"
    status=0
    timeout "$patience" "$work/test" >"$work/said" 2>&1 &
    wait $! || status=$?
    # What it forked is in the group that timeout(1) made, and may wait for the dead for ever.
    kill -s KILL -- -$! 2>/dev/null || :
}

# What a test that died said is wrong; or else which of its parts it began last.
first_complaint() {
    grep -hE -m1 "$telling" "$work/said" || tail -n 1 "$work/said"
}

# The tests are to notice nothing in the code as it is: see_pass TEST...
see_pass() {
    copy_code
    for test; do
        run_test "$test"
        [ $status = 0 ] || { echo "$test fails on the code as it is" >&2; cat "$work/said" >&2; exit 1; }
    done
}

# Change a copy of the code; one of the tests must notice: mutant NAME FILE SED TEST...
mutant() {
    case $1 in *"$only"*) ;; *) return 0 ;; esac
    name=$1 file=$2
    copy_code
    sed -i "$3" "$work/$file"
    if cmp -s "$work/$file" "$core/$file"; then
        echo "mutant '$name' changes nothing: the code has moved on" >&2
        exit 1
    fi
    shift 3
    for test; do
        run_test "$test" "$file"
        [ $status = 0 ] || break
    done
    case $status in
    0)
        echo "NOT NOTICED: $name"
        escaped=1
        ;;
    124) echo "noticed: $name: it runs for ever" ;;
    *) echo "noticed: $name: $(first_complaint | sed 's/.*: not so/not so/' | cut -c1-110)" ;;
    esac
}
