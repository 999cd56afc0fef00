# Breaking the code on purpose, to see the tests notice. To be read by a script whose name says what it breaks.
#
# pre: $core is the core's directory, $only part of the names of the mutants to try (empty: all), $telling a pattern of
#      the lines in which a test says what is wrong.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
escaped=0

copy_code() {
    rm -rf "$work/src" "$work/tests"
    cp -r "$core/src" "$core/tests" "$work"
}
copy_code

# A copy of the sources and the tests, changed: break_code NAME FILE SED, the file under src/ or tests/.
# returns 1 where the mutant is not asked for.
break_code() {
    case $1 in *"$only"*) ;; *) return 1 ;; esac
    copy_code
    sed -i "$3" "$work/$2"
    if cmp -s "$work/$2" "$core/$2"; then
        echo "mutant '$1' changes nothing: the code has moved on" >&2
        exit 1
    fi
}

# Compile what was copied: compile_broken OPTION...
compile_broken() {
    ${CC:-cc} -std=gnu11 -D_GNU_SOURCE -O1 -w -I"$core/include" -I"$work/src" -I"$work/tests" "$@" -lpthread
}

# Run a test, an allowed time long. Its status is left in $status, what it said in $work/said.
run_test() {
    status=0
    timeout "$2" "$1" >"$work/said" 2>&1 || status=$?
}

# What became of a mutant, by the test's $status: judge NAME
judge() {
    case $status in
    0)
        echo "NOT NOTICED: $1"
        escaped=1
        ;;
    124) echo "noticed: $1: it runs for ever" ;;
    *) echo "noticed: $1: $(grep -hE "$telling" "$work/said" | tail -1 | sed 's/.*: not so/not so/' | cut -c1-110)" ;;
    esac
}
