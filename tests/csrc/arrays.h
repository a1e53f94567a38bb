/* Arrays of exactly the size that elman.h promises to be enough, each in a block of its own, so that AddressSanitizer
 * and valgrind see a read or write one element too far. Without them, guards on both sides see a write. Only one thread
 * may use this file.
 */
#ifndef CHECK_ARRAYS_H
#define CHECK_ARRAYS_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WATCHED_END 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define WATCHED_END 1
#endif

#ifdef WATCHED_END
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
#endif

enum { POISON = 0xff }; /* a float or double of these bytes is NaN */

typedef struct {
    unsigned char *block, *start;
    size_t size, guard;  /* bytes of the array, of the guard behind it */
    int frozen;          /* nobody may write into it any more */
    uint64_t hash;
} array_record;

static array_record *array_records;
static size_t array_count, array_capacity;
static int arrays_stay_uninitialised; /* so that valgrind sees the reading of what was never written */

static uint64_t hash_of(const unsigned char *bytes, size_t n)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < n; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

/* n elements of `size` bytes, all POISON. Every second array starts at an address that is a multiple of nothing but
 * its element. */
static void *new_array(ptrdiff_t n, size_t size)
{
    if (array_count == array_capacity) {
        array_capacity = 2 * array_capacity + 64;
        array_records = realloc(array_records, array_capacity * sizeof *array_records);
        if (!array_records) abort();
    }
    array_record *record = &array_records[array_count++];
    const size_t front = size * (array_count % 2 ? 4 : 1);
#ifdef WATCHED_END
    record->guard = 0;
#else
    record->guard = arrays_stay_uninitialised ? 0 : 16 * size;
#endif
    record->size = (size_t)n * size;
    record->block = malloc(front + record->size + record->guard);
    if (!record->block) abort();
    record->start = record->block + front;
    record->frozen = 0;
    memset(record->block, POISON, front);
    memset(record->start + record->size, POISON, record->guard);
    if (!arrays_stay_uninitialised) memset(record->start, POISON, record->size);
    return record->start;
}

/* The array is an input from now on. */
static void freeze(const void *array)
{
    size_t i = array_count;
    while (i-- > 0 && array_records[i].start != array) continue;
    array_records[i].frozen = 1;
    array_records[i].hash = hash_of(array_records[i].start, array_records[i].size);
}

static int all_poison(const unsigned char *bytes, size_t n)
{
    size_t i = 0;
    while (i < n && bytes[i] == POISON) i++;
    return i == n;
}

/* Frees the arrays made since array_count was `mark`. Returns how many of them had been written outside, or at all
 * though frozen. */
static int release_arrays(size_t mark)
{
    int broken = 0;
    while (array_count > mark) {
        const array_record *record = &array_records[--array_count];
        ASAN_UNPOISON_MEMORY_REGION(record->start, record->size);
        broken += !all_poison(record->block, (size_t)(record->start - record->block)) ||
                  !all_poison(record->start + record->size, record->guard) ||
                  (record->frozen && record->hash != hash_of(record->start, record->size));
        free(record->block);
    }
    if (mark == 0) {
        free(array_records);
        array_records = NULL;
        array_capacity = 0;
    }
    return broken;
}

#endif
