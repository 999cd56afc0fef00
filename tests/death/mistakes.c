/* A program that makes one mistake with malloc, named by its argument. It knows nothing of mmkit. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile char *bytes;

static void past_the_end_within_16(void)
{
    bytes = malloc(20);
    bytes[20] = 1;
    fputs("alive\n", stderr);
    free((char *)bytes);
}

static void past_the_end(void)
{
    bytes = malloc(32);
    bytes[32] = 1;
}

static void read_past_an_array(void)
{
    bytes = calloc(100, 16);
    exit(bytes[1600]);
}

static void use_after_free(void)
{
    bytes = malloc(100);
    free((char *)bytes);
    exit(bytes[60]);
}

static void use_after_realloc(void)
{
    bytes = malloc(100);
    if (!realloc((char *)bytes, 101))
        exit(1);
    bytes[0] = 1;
}

static void double_free(void)
{
    bytes = malloc(100);
    free((char *)bytes);
    free((char *)bytes);
}

static void realloc_after_free(void)
{
    bytes = malloc(100);
    free((char *)bytes);
    exit(realloc((char *)bytes, 200) == NULL);
}

static void free_inside(void)
{
    bytes = malloc(100);
    free((char *)bytes + 16);
}

static void free_of_the_stack(void)
{
    char here[64];
    bytes = here + 16;
    free((char *)bytes);
}

static void *write_past_the_end(void *unused)
{
    past_the_end();
    return unused;
}

static void past_the_end_in_a_thread(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, write_past_the_end, NULL);
    pthread_join(thread, NULL);
}

static void use_after_free_in_a_child(void)
{
    int status;
    if (fork() == 0)
        use_after_free();
    wait(&status);
    exit(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : 0);
}

static void use_after_many_frees(void)
{
    bytes = malloc(100);
    free((char *)bytes);
    for (int i = 0; i < 10000; i++)
        free(malloc(100));
    exit(bytes[60]);
}

static void null_pointer(void)
{
    bytes = NULL;
    bytes[0] = 1;
}

#define MISTAKE(name) {#name, name}

static const struct {
    const char *name;
    void (*make)(void);
} mistakes[] = {
    MISTAKE(past_the_end_within_16),
    MISTAKE(past_the_end),
    MISTAKE(read_past_an_array),
    MISTAKE(use_after_free),
    MISTAKE(use_after_realloc),
    MISTAKE(double_free),
    MISTAKE(realloc_after_free),
    MISTAKE(free_inside),
    MISTAKE(free_of_the_stack),
    MISTAKE(past_the_end_in_a_thread),
    MISTAKE(use_after_free_in_a_child),
    MISTAKE(use_after_many_frees),
    MISTAKE(null_pointer),
};

int main(int count, char **arguments)
{
    for (size_t i = 0; count == 2 && i < sizeof mistakes / sizeof *mistakes; i++)
        if (strcmp(mistakes[i].name, arguments[1]) == 0)
            mistakes[i].make();
    return 0;
}
