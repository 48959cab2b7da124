/* json_text.h - the words of JSON (RFC 8259): text, numbers and the rest, as cells.
 *
 * A reader here accepts only what is certainly right and returns NULL (or false) for everything else.
 *
 * Owns  : nothing; cells point into the body.
 * Bounds: no byte at or past `end` is read; nothing is allocated.
 */
#ifndef TIERCEL_JSON_TEXT_H
#define TIERCEL_JSON_TEXT_H

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

static inline bool is_hex4(const uint8_t *p) {
    for (int i = 0; i < 4; i++)
        if (!((p[i] >= '0' && p[i] <= '9') || ((p[i] | 0x20) >= 'a' && (p[i] | 0x20) <= 'f'))) return false;
    return true;
}

/* An escape from its backslash; returns past it (past both of a surrogate pair). A lone surrogate is no text. */
static inline const uint8_t *json_escape(const uint8_t *p, const uint8_t *end) {
    uint32_t unit;
    if (end - p < 2) return NULL;
    if (p[1] != 'u') return memchr("\"\\/bfnrt", p[1], 8) != NULL ? p + 2 : NULL;
    if (end - p < 6 || !is_hex4(p + 2)) return NULL;
    unit = hex4(p + 2);
    if (unit < 0xD800 || unit > 0xDFFF) return p + 6;
    if (unit > 0xDBFF || end - p < 12 || p[6] != '\\' || p[7] != 'u' || !is_hex4(p + 8)) return NULL;
    unit = hex4(p + 8);
    return unit >= 0xDC00 && unit <= 0xDFFF ? p + 12 : NULL;
}

/* A string from its opening quote, CELL_TEXT or CELL_ESCAPED; returns past the closing quote. */
static inline const uint8_t *json_text(const uint8_t *p, const uint8_t *end, Cell *cell) {
    const uint8_t *text;
    uint8_t any = 0;
    if (p >= end || *p != '"') return NULL;
    cell->type = CELL_TEXT;
    cell->as.text = text = ++p;
    while (p < end && *p != '"') {
        if (*p < 0x20) return NULL;
        if (*p == '\\') {
            cell->type = CELL_ESCAPED;
            p = json_escape(p, end);
            if (p == NULL) return NULL;
            continue;
        }
        any |= *p++;
    }
    if (p >= end || p - text > INT32_MAX) return NULL;
    cell->size = (uint32_t)(p - text);
    if (any >= 0x80 && !is_utf8(text, cell->size)) return NULL;
    return p + 1;
}

/* As json_text, unescaped into `room` where that is needed: a member's name. */
static inline const uint8_t *json_name(const uint8_t *p, const uint8_t *end, uint8_t *room, Cell *name) {
    p = json_text(p, end, name);
    if (p == NULL || name->type == CELL_TEXT) return p;
    return to_plain(name, room) ? p : NULL;
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
        return json_text(p, end, cell);
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

#endif
