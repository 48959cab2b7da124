/* body_text.h - JSON and msgpack request bodies, read in place against the names a plan knows.
 *
 * A reader here accepts only what is certainly right and returns NULL (or false) for everything else, which hands the body
 * on to the general path.
 *
 * Owns  : nothing; cells and columns point into the body.
 * Bounds: no byte at or past `end` is read; depth is fixed (object, object, list); nothing is allocated.
 */
#ifndef TIERCEL_BODY_TEXT_H
#define TIERCEL_BODY_TEXT_H

#include "payload.h"

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

static inline const uint8_t *json_number(Powers powers, const uint8_t *p, const uint8_t *end, Cell *cell) {
    Decimal read;
    const uint8_t *start = p;
    p = read_decimal(powers, p, end, false, &read);
    if (p == NULL) return NULL;
    if (read.is_whole) {
        if (read.n_digits <= 19 && read.digits <= (uint64_t)INT64_MAX) {
            cell->type = CELL_INT;
            cell->as.integer = read.is_negative ? -(int64_t)read.digits : (int64_t)read.digits;
            return p;
        }
        if (read.n_digits <= 19 && read.is_negative && read.digits == UINT64_C(1) << 63) {
            cell->type = CELL_INT;
            cell->as.integer = INT64_MIN;
            return p;
        }
        /* A whole number past 64 bits is nearly always a mistake, but a float feature takes it, rounded once. No other
         * kind does, and none takes a float that large either. */
        read_decimal(powers, start, end, true, &read);
    }
    cell->type = CELL_FLOAT;
    cell->as.number = read.number;
    return isfinite(read.number) ? p : NULL;
}

static inline const uint8_t *json_cell(Powers powers, const uint8_t *p, const uint8_t *end, Cell *cell) {
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
        return *p == '-' || (*p >= '0' && *p <= '9') ? json_number(powers, p, end, cell) : NULL;
    }
}

/* A list of scalars from its '[': its length and its first item. */
static const uint8_t *json_list(Powers powers, const uint8_t *p, const uint8_t *end, int64_t most, Column *column, int64_t *n_items) {
    Cell cell;
    column->items = p = skip_space(p + 1, end);
    for (*n_items = 1; *n_items <= most; ++*n_items) {
        p = json_cell(powers, p, end, &cell);
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
        cell->as.integer = (int64_t)bits;
        if (bits > (uint64_t)INT64_MAX) { /* as json_number */
            cell->type = CELL_FLOAT;
            cell->as.number = (double)bits;
        }
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
    Powers powers, const uint8_t *p, const uint8_t *end, int kind, const NameTable *names, const uint8_t *name, uint32_t name_size,
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
        if (*p != '[') return json_cell(powers, p, end, &column->cell);
        p = json_list(powers, p, end, max_rows, column, &n_items);
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
    Powers powers, const uint8_t *p, const uint8_t *end, int kind, const NameTable *names, int64_t max_rows, Body *body, int32_t *n_names
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
            p = read_column(powers, p, end, kind, names, name, size, max_rows, body);
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
        p = read_column(powers, skip_space(p + 1, end), end, kind, names, name, size, max_rows, body);
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
    if (part == 1) return read_columns(schema->powers, p, end, kind, &schema->entities, schema->max_rows, body, &body->n_entities);
    if (part == 2) return read_columns(schema->powers, p, end, kind, &schema->features, schema->max_rows, body, &body->n_features);
    p = kind == BODY_JSON ? json_cell(schema->powers, p, end, &cell) : msgpack_cell(p, end, &cell);
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

/* The next item of a list that read_body accepted. */
static inline const Cell *next_item_of(Powers powers, Column *column, const uint8_t *end, int kind, Cell *room) {
    if (kind == BODY_MSGPACK) {
        column->next = msgpack_cell(column->next, end, room);
    } else {
        /* Past the item stands a comma or the closing bracket. */
        column->next = skip_space(json_cell(powers, skip_space(column->next, end), end, room), end) + 1;
    }
    return room;
}

#endif
