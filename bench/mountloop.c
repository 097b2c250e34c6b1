/* Times single operations on files, without an interpreter in between.
 *
 *   mountloop read    DIR COUNT          open + read + close of one file of 200 bytes that nobody changes
 *   mountloop create  DIR COUNT          open O_CREAT|O_EXCL + write 200 + close, a new name each
 *   mountloop replace DIR COUNT          write 200 to a temporary file, rename it over the same name
 *   mountloop big     DIR COUNT          as create, 512 KiB in one write
 *   mountloop chunks  DIR COUNT          as create, 500,000 bytes in writes of 512
 *   mountloop visible DIR COUNT OTHER    create (even) or replace (odd) in DIR, then look in OTHER until it is seen
 *
 * One line for each operation: microseconds; for `visible` also the microseconds after close until it was seen in OTHER, 0
 * when it was there at the first look. Everything that was made is removed again. Ends with 1 on the first error.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SMALL 200
#define BIG (512 * 1024)
#define CHUNKS 500000
#define CHUNK 512
#define PATIENCE_US 10e6

static char content[BIG], seen[BIG];

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void check(int is_right, const char *what) {
    if (is_right) return;
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void put(const char *path, int flags, size_t size, size_t chunk) {
    int file = open(path, O_WRONLY | O_CREAT | flags, 0640);
    check(file >= 0, path);
    for (size_t at = 0; at < size; at += chunk) {
        size_t length = size - at < chunk ? size - at : chunk;
        check(write(file, content + at, length) == (ssize_t)length, path);
    }
    check(close(file) == 0, path);
}

static ssize_t get(const char *path, size_t size) {
    int file = open(path, O_RDONLY);
    if (file < 0) return -1;
    ssize_t length = read(file, seen, size);
    close(file);
    return length;
}

static void replace(const char *path, const char *temporary) {
    put(temporary, O_EXCL, SMALL, SMALL);
    check(rename(temporary, path) == 0, path);
}

int main(int argc, char **argv) {
    check(argc >= 4, "arguments");
    const char *operation = argv[1], *directory = argv[2];
    int count = atoi(argv[3]);
    int is_visible = !strcmp(operation, "visible"), is_read = !strcmp(operation, "read");
    int is_replace = !strcmp(operation, "replace");
    check(!is_visible || argc == 5, "arguments");
    size_t size = !strcmp(operation, "big") ? BIG : !strcmp(operation, "chunks") ? CHUNKS : SMALL;
    size_t chunk = !strcmp(operation, "chunks") ? CHUNK : size;
    double *took = calloc(count, sizeof *took), *lag = calloc(count, sizeof *lag);
    check(took && lag, "memory");
    for (size_t at = 0; at < BIG; at++) content[at] = "key: value 0123456789 abcdef\n"[at % 29];
    char same[4096], temporary[4096], path[4096], other[4096];
    snprintf(same, sizeof same, "%s/same", directory);
    snprintf(temporary, sizeof temporary, "%s/same.tmp", directory);
    if (is_read || is_replace || is_visible) put(same, O_TRUNC, SMALL, SMALL);

    for (int number = 0; number < count; number++) {
        int is_new = !is_read && !is_replace && (!is_visible || number % 2 == 0);
        if (is_new) snprintf(path, sizeof path, "%s/new-%d", directory, number);
        else snprintf(path, sizeof path, "%s", same);
        /* Each content is its own, so that an old one is not taken for the new one. */
        if (!is_read) snprintf(content, 24, "%023d", number), content[23] = '\n';
        double begin = now_us();
        if (is_read) check(get(path, 4096) == SMALL, path);
        else if (is_new) put(path, O_EXCL, size, chunk);
        else replace(path, temporary);
        double end = now_us();
        took[number] = end - begin;
        if (!is_visible) continue;
        snprintf(other, sizeof other, "%s%s", argv[4], strrchr(path, '/'));
        for (int looks = 0;; looks++) {
            int is_there = get(other, 4096) == SMALL && !memcmp(seen, content, SMALL);
            double later = now_us();
            if (is_there) { lag[number] = looks ? later - end : 0; break; }
            check(later - end < PATIENCE_US, "it was not seen within 10 s");
            usleep(50);
        }
    }
    for (int number = 0; number < count; number++) {
        if (is_visible) printf("%.1f %.1f\n", took[number], lag[number]);
        else printf("%.1f\n", took[number]);
        snprintf(path, sizeof path, "%s/new-%d", directory, number);
        unlink(path);
    }
    unlink(same);
    return 0;
}
