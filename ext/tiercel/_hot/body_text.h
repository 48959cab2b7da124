/* body_text.h - JSON and msgpack request bodies, read in place against the names a plan knows.
 *
 * A reader here accepts only what is certainly right and returns NULL (or false) for everything else, which hands the
 * body on to the general path.
 *
 * Owns  : nothing; cells and columns point into the body.
 * Bounds: no byte at or past `end` is read; depth is fixed (object, object, list); nothing is allocated.
 */
#ifndef TIERCEL_BODY_TEXT_H
#define TIERCEL_BODY_TEXT_H

#include "json_text.h"
#include "tensor_values.h"

/* ---- JSON ---- */

/* A list of scalars from its '[': its length and its first item. */
static const uint8_t *json_list(
    Powers powers, const uint8_t *p, const uint8_t *end, int64_t most, Column *column, int64_t *n_items
) {
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
static inline const uint8_t *msgpack_text(const uint8_t *p, const uint8_t *end, Cell *cell) {
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
    cell->type = CELL_TEXT;
    cell->as.text = p;
    cell->size = (uint32_t)length;
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
        return msgpack_text(p, end, cell);
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
static inline const uint8_t *msgpack_count(
    const uint8_t *p, const uint8_t *end, uint8_t fix, uint8_t wide, int64_t *count
) {
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

static const uint8_t *msgpack_list(
    const uint8_t *p, const uint8_t *end, int64_t most, Column *column, int64_t *n_items
) {
    Cell cell;
    p = msgpack_count(p, end, 0x90, 0xDC, n_items);
    if (p == NULL || *n_items < 1 || *n_items > most) return NULL;
    column->items = p;
    for (int64_t i = 0; i < *n_items && p != NULL; i++) p = msgpack_cell(p, end, &cell);
    return p;
}

/* ---- a time as ISO 8601 text ---- */

/* `n` digits, or -1. */
static inline int32_t fixed_digits(const uint8_t *p, int n) {
    int32_t value = 0;
    for (int i = 0; i < n; i++) {
        if (p[i] < '0' || p[i] > '9') return -1;
        value = 10 * value + (p[i] - '0');
    }
    return value;
}

/* Days from 1970-01-01 to a day of the Gregorian calendar; years begin in March here, so that leap days end them. */
static inline int64_t days_to(int32_t year, int32_t month, int32_t day) {
    const int32_t y = month > 2 ? year : year - 1, m = (month + 9) % 12;
    return 365 * (int64_t)y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719468;
}

/* YYYY-MM-DDTHH:MM:SS[.digits][Z|+HH:MM|-HH:MM] as microseconds since 1970, or -1: it is something else, or earlier.
 * Without an offset it is UTC, and digits past the sixth are dropped, as request.py has it; the rest of what ISO 8601
 * and datetime.fromisoformat know (weeks, 24:00, times without seconds ...) is handed on. */
static inline int64_t iso_us(const uint8_t *p, uint32_t size) {
    static const uint8_t MONTH_DAYS[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const uint8_t *end = p + size;
    int32_t year, month, day, hour, minute, second, us = 0, offset = 0;
    int64_t total;
    if (size < 19 || p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':' || p[16] != ':') return -1;
    year = fixed_digits(p, 4);
    month = fixed_digits(p + 5, 2);
    day = fixed_digits(p + 8, 2);
    hour = fixed_digits(p + 11, 2);
    minute = fixed_digits(p + 14, 2);
    second = fixed_digits(p + 17, 2);
    if (year < 1 || month < 1 || month > 12 || day < 1 || hour < 0 || hour > 23) return -1;
    if (minute < 0 || minute > 59 || second < 0 || second > 59) return -1;
    if (day > MONTH_DAYS[month - 1]) {
        const bool is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        if (month != 2 || day != 29 || !is_leap) return -1;
    }
    p += 19;
    if (p < end && *p == '.') {
        int n = 0;
        for (p++; p < end && *p >= '0' && *p <= '9'; p++)
            if (n < 6) us = 10 * us + (*p - '0'), n++;
        if (n == 0) return -1;
        for (; n < 6; n++) us *= 10;
    }
    if (end - p == 1 && *p == 'Z') {
        p++;
    } else if (end - p == 6 && (*p == '+' || *p == '-') && p[3] == ':') {
        hour = hour * 60 + minute;
        minute = fixed_digits(p + 4, 2);
        offset = fixed_digits(p + 1, 2);
        if (offset < 0 || offset > 23 || minute < 0 || minute > 59) return -1;
        offset = offset * 60 + minute;
        minute = hour - (*p == '+' ? offset : -offset);
        hour = 0;
        p += 6;
    }
    if (p != end) return -1;
    total = ((days_to(year, month, day) * 1440 + hour * 60 + minute) * 60 + second) * 1000000 + us;
    return total < 0 ? -1 : total;
}

/* ---- both formats: a body of `entities`, `features`, `now`, `deadline_ms` and `explain` ---- */

/* What stands under one known name. */
static inline const uint8_t *read_column(
    Powers powers, const uint8_t *p, const uint8_t *end, int kind, const NameTable *names, const Cell *name,
    int64_t max_rows, Body *body
) {
    int32_t field = find_name(names, name->as.text, name->size);
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
    Powers powers, const uint8_t *p, const uint8_t *end, int kind, const NameTable *names, int64_t max_rows, Body *body,
    int32_t *n_names
) {
    uint8_t room[MAX_ESCAPED_NAME];
    Cell name;
    int64_t count;
    *n_names = 0;
    if (kind == BODY_MSGPACK) {
        p = msgpack_count(p, end, 0x80, 0xDE, &count);
        if (p == NULL) return NULL;
        for (; *n_names < count; ++*n_names) {
            p = msgpack_text(p, end, &name);
            if (p == NULL) return NULL;
            p = read_column(powers, p, end, kind, names, &name, max_rows, body);
            if (p == NULL) return NULL;
        }
        return p;
    }
    if (p >= end || *p != '{') return NULL;
    p = skip_space(p + 1, end);
    if (p < end && *p == '}') return p + 1;
    for (;;) {
        p = json_name(p, end, room, &name);
        if (p == NULL) return NULL;
        p = skip_space(p, end);
        if (p >= end || *p != ':') return NULL;
        p = read_column(powers, skip_space(p + 1, end), end, kind, names, &name, max_rows, body);
        if (p == NULL) return NULL;
        ++*n_names;
        p = skip_space(p, end);
        if (p >= end) return NULL;
        if (*p == '}') return p + 1;
        if (*p != ',') return NULL;
        p = skip_space(p + 1, end);
    }
}

/* Microseconds of a deadline in milliseconds, or -1 to hand on. */
static inline int64_t budget_of_ms(const Cell *cell) {
    const double us = 1e3 * (cell->type == CELL_INT ? (double)cell->as.integer : cell->type == CELL_FLOAT ? cell->as.number : -1);
    return us >= 1 && us <= MAX_BUDGET_US ? (int64_t)us : -1;
}

/* How much of an explanation is asked for, or EXPLAIN_NOT to hand on. */
static inline int32_t explain_of(const Cell *cell) {
    if (cell->type != CELL_TEXT) return EXPLAIN_NOT;
    if (cell->size == 7 && memcmp(cell->as.text, "reasons", 7) == 0) return EXPLAIN_REASONS;
    return cell->size == 4 && memcmp(cell->as.text, "full", 4) == 0 ? EXPLAIN_FULL : EXPLAIN_NOT;
}

/* The value of one top-level field; `seen` has a bit for each of the five. */
static const uint8_t *read_part(
    const uint8_t *p, const uint8_t *end, int kind, const BodySchema *schema, const Cell *named, Body *body, int *seen
) {
    const uint8_t *name = named->as.text;
    const uint32_t size = named->size;
    const int part = size == 8 && memcmp(name, "entities", 8) == 0   ? 1
                     : size == 8 && memcmp(name, "features", 8) == 0 ? 2
                     : size == 3 && memcmp(name, "now", 3) == 0      ? 4
                     : size == 11 && memcmp(name, "deadline_ms", 11) == 0 ? 8
                     : size == 7 && memcmp(name, "explain", 7) == 0  ? 16
                                                                     : 0;
    Cell cell;
    if (part == 0 || (*seen & part)) return NULL;
    *seen |= part;
    if (part < 4)
        return read_columns(
            schema->powers, p, end, kind, part == 1 ? &schema->entities : &schema->features, schema->max_rows, body,
            part == 1 ? &body->n_entities : &body->n_features
        );
    p = kind == BODY_JSON ? json_cell(schema->powers, p, end, &cell) : msgpack_cell(p, end, &cell);
    if (p == NULL) return NULL;
    if (part == 8) {
        body->budget_us = budget_of_ms(&cell);
        return body->budget_us < 0 ? NULL : p;
    }
    if (part == 16) {
        body->explain = explain_of(&cell);
        return body->explain == EXPLAIN_NOT ? NULL : p;
    }
    if (cell.type == CELL_TEXT) {
        body->now_us = iso_us(cell.as.text, cell.size);
        return body->now_us < 0 ? NULL : p;
    }
    if (cell.type != CELL_INT || cell.as.integer < 0 || cell.as.integer >> 62) return NULL;
    body->now_us = cell.as.integer;
    return p;
}

/* Read a whole body. `given` is zeroed and `columns` has room by the caller; false: hand the body on. */
static inline bool read_body(const uint8_t *p, int64_t n_bytes, int kind, const BodySchema *schema, Body *body) {
    const uint8_t *end = p + n_bytes;
    uint8_t room[MAX_ESCAPED_NAME];
    Cell name;
    int64_t count;
    int seen = 0;
    body->n_rows = body->now_us = body->budget_us = -1;
    body->n_entities = body->n_features = 0;
    body->explain = EXPLAIN_NOT;
    if (kind == BODY_MSGPACK) {
        p = msgpack_count(p, end, 0x80, 0xDE, &count);
        for (; p != NULL && count > 0; count--) {
            p = msgpack_text(p, end, &name);
            if (p != NULL) p = read_part(p, end, kind, schema, &name, body, &seen);
        }
        return p == end && p != NULL && body->n_entities + body->n_features > 0;
    }
    p = skip_space(p, end);
    if (p >= end || *p != '{') return false;
    do {
        p = json_name(skip_space(p + 1, end), end, room, &name);
        if (p == NULL) return false;
        p = skip_space(p, end);
        if (p >= end || *p != ':') return false;
        p = read_part(skip_space(p + 1, end), end, kind, schema, &name, body, &seen);
        if (p == NULL) return false;
        p = skip_space(p, end);
        if (p >= end) return false;
    } while (*p == ',');
    return *p == '}' && skip_space(p + 1, end) == end && body->n_entities + body->n_features > 0;
}

/* The next item of a list that read_body (or read_tensors of tensors.h) accepted. */
static inline const Cell *next_item_of(Powers powers, Column *column, const uint8_t *end, int kind, Cell *room) {
    if (kind == BODY_TENSORS) return next_tensor_value(column, room);
    if (kind == BODY_MSGPACK) {
        column->next = msgpack_cell(column->next, end, room);
    } else {
        /* Past the item stands a comma or the closing bracket. */
        column->next = skip_space(json_cell(powers, skip_space(column->next, end), end, room), end) + 1;
    }
    return room;
}

#endif
