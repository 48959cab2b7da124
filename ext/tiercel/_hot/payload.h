/* payload.h - what a request body holds: cells and columns by the names a plan knows, and keys and features of them.
 *
 * Reading is in body_text.h and tensors.h. What is not certainly right is false or -1 here: the general path then reads
 * the untouched body and either answers it or says what is wrong with it. So no function here explains.
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

/* What a body asks to be told beside its scores. */
enum Explain { EXPLAIN_NOT = 0, EXPLAIN_REASONS = 1, EXPLAIN_FULL = 2 };

enum BodyKind { BODY_JSON = 0, BODY_MSGPACK = 1, BODY_TENSORS = 2 };

/* CELL_CODE is the number of a category in place of its text; only tensors have it. */
enum CellType { CELL_NULL, CELL_BOOL, CELL_INT, CELL_FLOAT, CELL_TEXT, CELL_ESCAPED, CELL_CODE };

/* One value. `text` points at `size` bytes of valid UTF-8 in the body; those of CELL_ESCAPED hold JSON escapes, all of
 * them valid and surrogates in pairs (json_text of body_text.h checks), and are unescaped where they are used. */
typedef struct {
    int32_t type;
    uint32_t size;
    union {
        int64_t integer;
        double number;
        const uint8_t *text;
    } as;
} Cell;

/* Longest deadline, as in serving/deadline.py: what is longer is refused there. */
#define MAX_BUDGET_US 3600000000.0

/* What was sent under one name: a scalar in `cell`, or a list whose first item starts at `items`. */
typedef struct {
    Cell cell;
    const uint8_t *items; /* NULL: a scalar */
    const uint8_t *next;  /* where a walk over the list stands */
    /* Of BODY_TENSORS, whose items are of one size: */
    int32_t format;  /* TensorFormat */
    int32_t stride;  /* bytes from one row's item to the next */
    int32_t meaning; /* TensorMeaning */
    int32_t n_codes; /* of MEANS_CODE */
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
    int64_t budget_us; /* of deadline_ms; -1: not sent */
    int32_t explain;   /* Explain */
    int32_t n_entities, n_features;
} Body;

/* One feature that a request may bring. */
typedef struct {
    int32_t index;        /* place in the vector, -1: checked and left out */
    int kind;             /* Kind */
    NameTable categories; /* of KIND_STRING */
    int32_t n_categories;
} FieldSpec;

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

/* ---- escaped text ---- */

/* A known name longer than this is found only where it is sent without escapes. */
enum { MAX_ESCAPED_NAME = 256 };

static inline uint32_t hex_digit(uint8_t c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; }

static inline uint32_t hex4(const uint8_t *p) {
    return hex_digit(p[0]) << 12 | hex_digit(p[1]) << 8 | hex_digit(p[2]) << 4 | hex_digit(p[3]);
}

/* The UTF-8 of a CELL_ESCAPED; returns its length, or -1 where it is longer than `room`. */
static inline int32_t unescape(const Cell *cell, uint8_t *out, int32_t room) {
    const uint8_t *p = cell->as.text, *end = p + cell->size;
    int32_t n = 0;
    while (p < end) {
        uint32_t c = *p++;
        if (c != '\\') {
            if (n >= room) return -1;
            out[n++] = (uint8_t)c;
            continue;
        }
        c = *p++;
        switch (c) {
        case 'b': c = '\b'; break;
        case 'f': c = '\f'; break;
        case 'n': c = '\n'; break;
        case 'r': c = '\r'; break;
        case 't': c = '\t'; break;
        case 'u':
            c = hex4(p);
            p += 4;
            if (c >= 0xD800 && c < 0xDC00) {
                c = 0x10000 + ((c - 0xD800) << 10) + (hex4(p + 2) - 0xDC00);
                p += 6;
            }
            break;
        default: break; /* the character itself: a quote, a slash or a backslash */
        }
        const int more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
        if (room - n < 1 + more) return -1;
        out[n++] = (uint8_t)(more == 0 ? c : (0xFF00 >> (more + 1) & 0xFF) | c >> 6 * more);
        for (int i = more - 1; i >= 0; i--) out[n++] = (uint8_t)(0x80 | (c >> 6 * i & 0x3F));
    }
    return n;
}

/* Make an escaped cell a plain one of the same text in `room`, of MAX_ESCAPED_NAME bytes; false: longer than that. */
static inline bool to_plain(Cell *cell, uint8_t *room) {
    const int32_t size = unescape(cell, room, MAX_ESCAPED_NAME);
    if (size < 0) return false;
    *cell = (Cell){.type = CELL_TEXT, .size = (uint32_t)size, .as.text = room};
    return true;
}

/* ---- columns to keys and features ---- */

static inline void rewind_column(Column *column) { column->next = column->items; }

/* One part of an entity key, as features/keys.py encodes it; returns the new length, or -1 to hand on. */
static inline int32_t put_key_part(
    uint8_t *key, int32_t length, int32_t room, const Cell *cell, bool is_text, bool prefixed
) {
    if (!is_text) {
        if (cell->type != CELL_INT || length + 8 > room) return -1;
        uint64_t bits = (uint64_t)cell->as.integer ^ (UINT64_C(1) << 63);
        for (int i = 0; i < 8; i++) key[length + i] = (uint8_t)(bits >> (56 - 8 * i));
        return length + 8;
    }
    if (cell->type == CELL_ESCAPED) {
        const int32_t start = length + (prefixed ? 2 : 0);
        const int32_t size = start > room ? -1 : unescape(cell, key + start, room - start);
        if (size < 0) return -1;
        if (prefixed) {
            key[length] = (uint8_t)(size >> 8);
            key[length + 1] = (uint8_t)size;
        }
        return start + size;
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

static inline bool to_category(const Cell *cell, int kind, const NameTable *categories, float *out) {
    const int32_t code = kind == KIND_STRING ? find_name(categories, cell->as.text, cell->size) : -1;
    *out = (float)code;
    return code >= 0;
}

/* A feature's value as float32 (null is NaN); false to hand on.
 *
 * A number is rounded twice: its decimal text to the nearest float64 (decimal.h, ties to even), that to the nearest
 * float32. Rounding the text once could differ in the last bit where the float64 falls on the middle of two float32;
 * twice is what float32(float(text)) gives, which is how the general path and NumPy make training rows. */
static inline bool to_feature(const Cell *cell, int kind, const NameTable *categories, float *out) {
    double number;
    switch (cell->type) {
    case CELL_NULL:
        *out = NAN;
        return true;
    case CELL_TEXT: return to_category(cell, kind, categories, out);
    case CELL_CODE:
        *out = (float)cell->as.integer;
        return kind == KIND_STRING;
    case CELL_BOOL:
        *out = (float)cell->as.integer;
        return kind == KIND_BOOL || kind == KIND_NUMBER;
    case CELL_INT:
        *out = (float)(double)cell->as.integer;
        return kind == KIND_FLOAT || kind == KIND_INT || kind == KIND_NUMBER;
    case CELL_ESCAPED: {
        uint8_t room[MAX_ESCAPED_NAME];
        Cell plain = *cell;
        return to_plain(&plain, room) && to_category(&plain, kind, categories, out);
    }
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
