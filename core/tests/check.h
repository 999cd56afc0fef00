/* check.h: the smallest test harness that says which promise was broken.
 *
 *     TEST(a_closed_region_answers_closed) { CHECK(call() == -MMK_ECLOSED); }
 *     int main(void) { RUN(a_closed_region_answers_closed); return 0; }
 */
#ifndef MMKIT_TEST_CHECK_H
#define MMKIT_TEST_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define TEST(name) static void name(void)

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #condition);                      \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#define RUN(name)                                                                                                      \
    do {                                                                                                               \
        printf("%s\n", #name);                                                                                         \
        fflush(stdout);                                                                                                \
        name();                                                                                                        \
    } while (0)

#endif
