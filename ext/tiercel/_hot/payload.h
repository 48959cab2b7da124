/* payload.h - what a request body holds: cells and columns by the names a plan knows, and keys and features of them.
 *
 * Reading is in body_text.h. What is not certainly right is false or -1 here: the general path then reads the untouched
 * body and either answers it or says what is wrong with it. So no function here explains.
 *
 * Owns  : nothing; cells and columns point into the body. Tables are built once (payload.pyx) and then only read.
 */
#ifndef TIERCEL_PAYLOAD_H
#define TIERCEL_PAYLOAD_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "decimal.h"

/* What a feature's value may be; the categories of one are its `NameTable`. */
typedef enum {
    KIND_FLOAT,  /* int or float */
    KIND_INT,    /* int, or a float that is one */
    KIND_BOOL,
    KIND_STRING, /* a known category */
    KIND_NUMBER, /* models without a service: int, float or bool */
} Kind;

enum BodyKind { BODY_JSON = 0, BODY_MSGPACK = 1 };

enum CellType { CELL_NULL, CELL_BOOL, CELL_INT, CELL_FLOAT, CELL_TEXT };

/* One value. `text` points at `size` bytes of valid UTF-8 in the body. */
typedef struct {
    int32_t type;
    uint32_t size;
    union {
        int64_t integer;
        double number;
        const uint8_t *text;
    } as;
} Cell;

/* What was sent under one name: a scalar in `cell`, or a list whose first item starts at `items`. */
typedef struct {
    Cell cell;
    const uint8_t *items; /* NULL: a scalar */
    const uint8_t *next;  /* where a walk over the list stands */
} Column;

typedef struct {
    const uint8_t *text; /* NULL: an empty place */
    uint32_t size;
    int32_t value;
} Name;

/* Open addressing, at most half full, so every search ends at an empty place. */
typedef struct {
    Name *places;
    uint32_t mask;
} NameTable;

typedef struct {
    Column *columns; /* by field number; meaningful where `given` */
    uint8_t *given;
    int64_t n_rows; /* -1: no list was sent */
    int64_t now_us; /* -1: not sent */
    int32_t n_entities, n_features;
} Body;

typedef struct {
    NameTable entities, features; /* name -> field number */
    int64_t max_rows;
    const Power *powers; /* of ten, for numbers of many digits */
} BodySchema;

/* ---- names ---- */

static inline uint64_t hash_name(const uint8_t *text, uint32_t size) {
    uint64_t hash = size * UINT64_C(0x9E3779B97F4A7C15), word;
    uint32_t at = 0;
    for (; size - at >= 8; at += 8) {
        memcpy(&word, text + at, 8);
        hash = (hash ^ word) * UINT64_C(0xD6E8FEB86659FD93);
        hash ^= hash >> 32;
    }
    for (word = 0; at < size; at++) word = (word << 8) | text[at];
    hash = (hash ^ word) * UINT64_C(0xD6E8FEB86659FD93);
    return hash ^ (hash >> 32);
}

/* The value of a name, or -1. */
static inline int32_t find_name(const NameTable *table, const uint8_t *text, uint32_t size) {
    uint32_t at = (uint32_t)hash_name(text, size) & table->mask;
    for (; table->places[at].text != NULL; at = (at + 1) & table->mask) {
        const Name *name = &table->places[at];
        if (name->size == size && memcmp(name->text, text, size) == 0) return name->value;
    }
    return -1;
}

/* The table has an empty place for it (payload.pyx sizes it so). */
static inline void put_name(NameTable *table, const uint8_t *text, uint32_t size, int32_t value) {
    uint32_t at = (uint32_t)hash_name(text, size) & table->mask;
    while (table->places[at].text != NULL) at = (at + 1) & table->mask;
    table->places[at] = (Name){text, size, value};
}

/* ---- columns to keys and features ---- */

static inline void rewind_column(Column *column) { column->next = column->items; }

/* One part of an entity key, as features/keys.py encodes it; returns the new length, or -1 to hand on. */
static inline int32_t put_key_part(uint8_t *key, int32_t length, int32_t room, const Cell *cell, bool is_text, bool prefixed) {
    if (!is_text) {
        if (cell->type != CELL_INT || length + 8 > room) return -1;
        uint64_t bits = (uint64_t)cell->as.integer ^ (UINT64_C(1) << 63);
        for (int i = 0; i < 8; i++) key[length + i] = (uint8_t)(bits >> (56 - 8 * i));
        return length + 8;
    }
    if (cell->type != CELL_TEXT || cell->size > (uint32_t)room) return -1;
    if (length + (int32_t)cell->size + (prefixed ? 2 : 0) > room) return -1;
    if (prefixed) {
        key[length++] = (uint8_t)(cell->size >> 8);
        key[length++] = (uint8_t)cell->size;
    }
    memcpy(key + length, cell->as.text, cell->size);
    return length + (int32_t)cell->size;
}

/* A feature's value as float32 (null is NaN); false to hand on. */
static inline bool to_feature(const Cell *cell, int kind, const NameTable *categories, float *out) {
    double number;
    switch (cell->type) {
    case CELL_NULL:
        *out = NAN;
        return true;
    case CELL_TEXT: {
        int32_t code = kind == KIND_STRING ? find_name(categories, cell->as.text, cell->size) : -1;
        *out = (float)code;
        return code >= 0;
    }
    case CELL_BOOL:
        *out = (float)cell->as.integer;
        return kind == KIND_BOOL || kind == KIND_NUMBER;
    case CELL_INT:
        *out = (float)(double)cell->as.integer;
        return kind == KIND_FLOAT || kind == KIND_INT || kind == KIND_NUMBER;
    default:
        number = cell->as.number;
        /* Halfway between the largest float32 and 2**128: below it a double rounds to a finite float32. */
        if (!(fabs(number) < 3.4028235677973366e38)) return false;
        *out = (float)number;
        if (kind == KIND_FLOAT || kind == KIND_NUMBER) return true;
        return kind == KIND_INT && fabs(number) < 9223372036854775808.0 && number == (double)(int64_t)number;
    }
}

#endif
