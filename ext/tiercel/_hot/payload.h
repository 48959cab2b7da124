/* payload.h - JSON and msgpack request bodies, read in place against the names a plan knows.
 *
 * A reader here accepts only what is certainly right and returns NULL (or false) for everything else: the general path
 * then reads the untouched body and either answers it or says what is wrong with it. So no function here explains.
 *
 * Owns  : nothing; cells and columns point into the body. Tables are built once (payload.pyx) and then only read.
 * Bounds: no byte at or past `end` is read; depth is fixed (object, object, list); nothing is allocated.
 */
#ifndef TIERCEL_PAYLOAD_H
#define TIERCEL_PAYLOAD_H

#include <limits.h>
#include <locale.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __APPLE__
#include <xlocale.h>
#endif

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
} BodySchema;

#define MAX_NUMBER_BYTES 128

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

/* ---- text ---- */

/* RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. */
static inline bool is_utf8(const uint8_t *p, uint32_t size) {
    const uint8_t *end = p + size;
    while (p < end) {
        uint8_t lead = *p++;
        uint8_t low = 0x80, high = 0xBF;
        int more;
        if (lead < 0x80) continue;
        if (lead < 0xC2 || lead > 0xF4) return false;
        more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
        if (end - p < more) return false;
        if (lead == 0xE0) low = 0xA0;
        if (lead == 0xED) high = 0x9F;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;
        if (*p < low || *p > high) return false;
        for (p++, more--; more > 0; p++, more--)
            if (*p < 0x80 || *p > 0xBF) return false;
    }
    return true;
}

/* ---- JSON ---- */

static inline const uint8_t *skip_space(const uint8_t *p, const uint8_t *end) {
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')) p++;
    return p;
}

/* A string without escapes, from its opening quote; returns past the closing one. */
static inline const uint8_t *json_text(const uint8_t *p, const uint8_t *end, const uint8_t **text, uint32_t *size) {
    uint8_t any = 0;
    if (p >= end || *p != '"') return NULL;
    *text = ++p;
    for (; p < end && *p != '"'; p++) {
        if (*p < 0x20 || *p == '\\') return NULL;
        any |= *p;
    }
    if (p >= end || p - *text > INT32_MAX) return NULL;
    *size = (uint32_t)(p - *text);
    if (any >= 0x80 && !is_utf8(*text, *size)) return NULL;
    return p + 1;
}

static inline locale_t c_locale(void) {
    static locale_t made = (locale_t)0; /* made at import, under the GIL; see payload.pyx */
    if (made == (locale_t)0) made = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    return made;
}

/* Correctly rounded; the text is a JSON number. False when it is long or does not fit a double. */
static bool slow_double(const uint8_t *text, int64_t size, double *out) {
    char copy[MAX_NUMBER_BYTES + 1];
    if (size > MAX_NUMBER_BYTES || c_locale() == (locale_t)0) return false;
    memcpy(copy, text, (size_t)size);
    copy[size] = 0;
    *out = strtod_l(copy, NULL, c_locale());
    return isfinite(*out);
}

static inline bool is_digit(const uint8_t *p, const uint8_t *end) { return p < end && (uint8_t)(*p - '0') < 10; }

static const uint8_t *json_number(const uint8_t *p, const uint8_t *end, Cell *cell) {
    static const double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const uint8_t *start = p;
    const bool negative = *p == '-';
    uint64_t digits = 0;
    int64_t n_digits = 0, exponent = 0; /* significant digits; those past 19 are counted, not kept */
    double number;
    p += negative;
    if (!is_digit(p, end)) return NULL;
    if (*p == '0') {
        p++;
    } else {
        for (; is_digit(p, end); p++, n_digits++)
            if (n_digits < 19) digits = digits * 10 + (*p - '0');
    }
    if (!(p < end && (*p == '.' || *p == 'e' || *p == 'E'))) {
        if (n_digits > 19 || digits > (uint64_t)INT64_MAX) return NULL;
        if (is_digit(p, end)) return NULL; /* 01 */
        cell->type = CELL_INT;
        cell->as.integer = negative ? -(int64_t)digits : (int64_t)digits;
        return p;
    }
    if (*p == '.') {
        p++;
        if (!is_digit(p, end)) return NULL;
        for (; is_digit(p, end); p++) {
            if (n_digits < 19) {
                digits = digits * 10 + (*p - '0');
                exponent--;
            }
            n_digits += digits != 0;
        }
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        bool down = false;
        int64_t written = 0;
        p++;
        if (p < end && (*p == '+' || *p == '-')) down = *p++ == '-';
        if (!is_digit(p, end)) return NULL;
        for (; is_digit(p, end); p++)
            if (written < 100000) written = written * 10 + (*p - '0');
        exponent += down ? -written : written;
    }
    /* Both operands are exact doubles, so the one division or product rounds once, correctly (Clinger's fast path). */
    if (n_digits <= 19 && digits <= (UINT64_C(1) << 53) && exponent >= -22 && exponent <= 22) {
        number = (double)digits;
        number = exponent < 0 ? number / POWERS[-exponent] : number * POWERS[exponent];
        if (negative) number = -number;
    } else if (!slow_double(start, p - start, &number)) {
        return NULL;
    }
    cell->type = CELL_FLOAT;
    cell->as.number = number;
    return p;
}

static inline const uint8_t *json_cell(const uint8_t *p, const uint8_t *end, Cell *cell) {
    if (p >= end) return NULL;
    switch (*p) {
    case '"':
        cell->type = CELL_TEXT;
        return json_text(p, end, &cell->as.text, &cell->size);
    case 'n':
        cell->type = CELL_NULL;
        return end - p >= 4 && memcmp(p, "null", 4) == 0 ? p + 4 : NULL;
    case 't':
        cell->type = CELL_BOOL;
        cell->as.integer = 1;
        return end - p >= 4 && memcmp(p, "true", 4) == 0 ? p + 4 : NULL;
    case 'f':
        cell->type = CELL_BOOL;
        cell->as.integer = 0;
        return end - p >= 5 && memcmp(p, "false", 5) == 0 ? p + 5 : NULL;
    default:
        return *p == '-' || (*p >= '0' && *p <= '9') ? json_number(p, end, cell) : NULL;
    }
}

/* A list of scalars from its '[': its length and its first item. */
static const uint8_t *json_list(const uint8_t *p, const uint8_t *end, int64_t most, Column *column, int64_t *n_items) {
    Cell cell;
    column->items = p = skip_space(p + 1, end);
    for (*n_items = 1; *n_items <= most; ++*n_items) {
        p = json_cell(p, end, &cell);
        if (p == NULL) return NULL;
        p = skip_space(p, end);
        if (p >= end) return NULL;
        if (*p == ']') return p + 1;
        if (*p != ',') return NULL;
        p = skip_space(p + 1, end);
    }
    return NULL;
}

/* ---- msgpack ---- */

static inline uint64_t big_endian(const uint8_t *p, int n_bytes) {
    uint64_t value = 0;
    for (int i = 0; i < n_bytes; i++) value = (value << 8) | p[i];
    return value;
}

/* A string; returns past it. */
static inline const uint8_t *msgpack_text(const uint8_t *p, const uint8_t *end, const uint8_t **text, uint32_t *size) {
    int width;
    uint64_t length;
    if (p >= end) return NULL;
    if ((*p & 0xE0) == 0xA0) {
        length = *p++ & 0x1F;
    } else {
        if (*p < 0xD9 || *p > 0xDB) return NULL;
        width = 1 << (*p - 0xD9);
        if (end - ++p < width) return NULL;
        length = big_endian(p, width);
        p += width;
    }
    if (length > (uint64_t)(end - p) || length > INT32_MAX || !is_utf8(p, (uint32_t)length)) return NULL;
    *text = p;
    *size = (uint32_t)length;
    return p + length;
}

static inline const uint8_t *msgpack_cell(const uint8_t *p, const uint8_t *end, Cell *cell) {
    uint64_t bits;
    uint8_t tag;
    int width;
    if (p >= end) return NULL;
    tag = *p;
    if (tag < 0x80 || tag >= 0xE0) {
        cell->type = CELL_INT;
        cell->as.integer = (int8_t)tag;
        return p + 1;
    }
    if (tag < 0xC0 || (tag >= 0xD9 && tag <= 0xDB)) {
        cell->type = CELL_TEXT;
        return msgpack_text(p, end, &cell->as.text, &cell->size);
    }
    p++;
    if (tag == 0xC0) {
        cell->type = CELL_NULL;
        return p;
    }
    if (tag == 0xC2 || tag == 0xC3) {
        cell->type = CELL_BOOL;
        cell->as.integer = tag == 0xC3;
        return p;
    }
    if (tag == 0xCA || tag == 0xCB) {
        width = tag == 0xCA ? 4 : 8;
        if (end - p < width) return NULL;
        bits = big_endian(p, width);
        cell->type = CELL_FLOAT;
        if (tag == 0xCA) {
            uint32_t half = (uint32_t)bits;
            float narrow;
            memcpy(&narrow, &half, 4);
            cell->as.number = narrow;
        } else {
            memcpy(&cell->as.number, &bits, 8);
        }
        return isfinite(cell->as.number) ? p + width : NULL;
    }
    if (tag < 0xCC || tag > 0xD3) return NULL;
    width = 1 << ((tag - 0xCC) & 3);
    if (end - p < width) return NULL;
    bits = big_endian(p, width);
    cell->type = CELL_INT;
    if (tag <= 0xCF) {
        if (bits > (uint64_t)INT64_MAX) return NULL;
        cell->as.integer = (int64_t)bits;
    } else {
        int shift = 64 - 8 * width;
        cell->as.integer = (int64_t)(bits << shift) >> shift;
    }
    return p + width;
}

/* The count of a map or array: `fix` is the tag of its short form, `wide` that of its 16-bit form. */
static inline const uint8_t *msgpack_count(const uint8_t *p, const uint8_t *end, uint8_t fix, uint8_t wide, int64_t *count) {
    int width;
    if (p >= end) return NULL;
    if ((*p & 0xF0) == fix) {
        *count = *p & 0x0F;
        return p + 1;
    }
    if (*p != wide && *p != wide + 1) return NULL;
    width = *p == wide ? 2 : 4;
    if (end - ++p < width) return NULL;
    *count = (int64_t)big_endian(p, width);
    return p + width;
}

static const uint8_t *msgpack_list(const uint8_t *p, const uint8_t *end, int64_t most, Column *column, int64_t *n_items) {
    Cell cell;
    p = msgpack_count(p, end, 0x90, 0xDC, n_items);
    if (p == NULL || *n_items < 1 || *n_items > most) return NULL;
    column->items = p;
    for (int64_t i = 0; i < *n_items && p != NULL; i++) p = msgpack_cell(p, end, &cell);
    return p;
}

/* ---- both formats: a body of `entities`, `features` and `now` ---- */

/* What stands under one known name. */
static inline const uint8_t *read_column(
    const uint8_t *p, const uint8_t *end, int kind, const NameTable *names, const uint8_t *name, uint32_t name_size,
    int64_t max_rows, Body *body
) {
    int32_t field = find_name(names, name, name_size);
    Column *column;
    int64_t n_items;
    if (field < 0 || body->given[field] || p >= end) return NULL;
    body->given[field] = 1;
    column = &body->columns[field];
    column->items = NULL;
    if (kind == BODY_JSON) {
        if (*p != '[') return json_cell(p, end, &column->cell);
        p = json_list(p, end, max_rows, column, &n_items);
    } else {
        if ((*p & 0xF0) != 0x90 && *p != 0xDC && *p != 0xDD) return msgpack_cell(p, end, &column->cell);
        p = msgpack_list(p, end, max_rows, column, &n_items);
    }
    if (p == NULL || (body->n_rows >= 0 && body->n_rows != n_items)) return NULL;
    body->n_rows = n_items;
    return p;
}

/* An object of columns. */
static const uint8_t *read_columns(
    const uint8_t *p, const uint8_t *end, int kind, const NameTable *names, int64_t max_rows, Body *body, int32_t *n_names
) {
    const uint8_t *name;
    uint32_t size;
    int64_t count;
    *n_names = 0;
    if (kind == BODY_MSGPACK) {
        p = msgpack_count(p, end, 0x80, 0xDE, &count);
        if (p == NULL) return NULL;
        for (; *n_names < count; ++*n_names) {
            p = msgpack_text(p, end, &name, &size);
            if (p == NULL) return NULL;
            p = read_column(p, end, kind, names, name, size, max_rows, body);
            if (p == NULL) return NULL;
        }
        return p;
    }
    if (p >= end || *p != '{') return NULL;
    p = skip_space(p + 1, end);
    if (p < end && *p == '}') return p + 1;
    for (;;) {
        p = json_text(p, end, &name, &size);
        if (p == NULL) return NULL;
        p = skip_space(p, end);
        if (p >= end || *p != ':') return NULL;
        p = read_column(skip_space(p + 1, end), end, kind, names, name, size, max_rows, body);
        if (p == NULL) return NULL;
        ++*n_names;
        p = skip_space(p, end);
        if (p >= end) return NULL;
        if (*p == '}') return p + 1;
        if (*p != ',') return NULL;
        p = skip_space(p + 1, end);
    }
}

/* The value of one top-level field; `seen` has a bit for each of the three. */
static const uint8_t *read_part(
    const uint8_t *p, const uint8_t *end, int kind, const BodySchema *schema, const uint8_t *name, uint32_t size,
    Body *body, int *seen
) {
    const int part = size == 8 && memcmp(name, "entities", 8) == 0   ? 1
                     : size == 8 && memcmp(name, "features", 8) == 0 ? 2
                     : size == 3 && memcmp(name, "now", 3) == 0      ? 4
                                                                     : 0;
    Cell cell;
    if (part == 0 || (*seen & part)) return NULL;
    *seen |= part;
    if (part == 1) return read_columns(p, end, kind, &schema->entities, schema->max_rows, body, &body->n_entities);
    if (part == 2) return read_columns(p, end, kind, &schema->features, schema->max_rows, body, &body->n_features);
    p = kind == BODY_JSON ? json_cell(p, end, &cell) : msgpack_cell(p, end, &cell);
    if (p == NULL || cell.type != CELL_INT || cell.as.integer < 0 || cell.as.integer >> 62) return NULL;
    body->now_us = cell.as.integer;
    return p;
}

/* Read a whole body. `given` is zeroed and `columns` has room by the caller; false: hand the body on. */
static inline bool read_body(const uint8_t *p, int64_t n_bytes, int kind, const BodySchema *schema, Body *body) {
    const uint8_t *end = p + n_bytes;
    const uint8_t *name;
    uint32_t size;
    int64_t count;
    int seen = 0;
    body->n_rows = body->now_us = -1;
    body->n_entities = body->n_features = 0;
    if (kind == BODY_MSGPACK) {
        p = msgpack_count(p, end, 0x80, 0xDE, &count);
        for (; p != NULL && count > 0; count--) {
            p = msgpack_text(p, end, &name, &size);
            if (p != NULL) p = read_part(p, end, kind, schema, name, size, body, &seen);
        }
        return p == end && p != NULL && body->n_entities + body->n_features > 0;
    }
    p = skip_space(p, end);
    if (p >= end || *p != '{') return false;
    do {
        p = json_text(skip_space(p + 1, end), end, &name, &size);
        if (p == NULL) return false;
        p = skip_space(p, end);
        if (p >= end || *p != ':') return false;
        p = read_part(skip_space(p + 1, end), end, kind, schema, name, size, body, &seen);
        if (p == NULL) return false;
        p = skip_space(p, end);
        if (p >= end) return false;
    } while (*p == ',');
    return *p == '}' && skip_space(p + 1, end) == end && body->n_entities + body->n_features > 0;
}

/* ---- columns to keys and features ---- */

static inline void rewind_column(Column *column) { column->next = column->items; }

/* The next row's value: the scalar again, or the next item of a list that read_body accepted. */
static inline const Cell *next_cell(Column *column, const uint8_t *end, int kind, Cell *room) {
    if (column->items == NULL) return &column->cell;
    if (kind == BODY_MSGPACK) {
        column->next = msgpack_cell(column->next, end, room);
    } else {
        /* Past the item stands a comma or the closing bracket. */
        column->next = skip_space(json_cell(skip_space(column->next, end), end, room), end) + 1;
    }
    return room;
}

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
