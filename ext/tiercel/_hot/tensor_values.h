/* tensor_values.h - the values of one tensor, row by row, as the cells that every other body has.
 *
 * A tensor's values stand in the body as its client's arrays were (little-endian, as most machines are), or, where they
 * came as JSON, as an array of cells. Everything is checked when it is read (tensors.h), but for the range of
 * numbers that stand for truths and categories: such a number stays one, which no feature of that kind takes.
 *
 * Owns  : nothing; a column points into the body or at the cells, which live as long as the request (TensorRequest).
 * Bounds: a walk of as many steps as the column has rows stays inside what was checked.
 */
#ifndef TIERCEL_TENSOR_VALUES_H
#define TIERCEL_TENSOR_VALUES_H

#include "payload.h"

/* Elsewhere binary tensors are the general path's. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
enum { READS_BINARY = 0 };
#else
enum { READS_BINARY = 1 };
#endif

/* The datatypes of the protocol that are read here, and cells. FP16 is the general path's. */
typedef enum {
    TENSOR_NONE,
    TENSOR_BOOL,
    TENSOR_INT8,
    TENSOR_INT16,
    TENSOR_INT32,
    TENSOR_INT64,
    TENSOR_UINT8,
    TENSOR_UINT16,
    TENSOR_UINT32,
    TENSOR_UINT64,
    TENSOR_FP32,
    TENSOR_FP64,
    TENSOR_BYTES,
    TENSOR_CELLS,
} TensorFormat;

/* What the numbers of a whole vector say of a feature that is no number (oip_model.py). */
typedef enum {
    MEANS_NUMBER,
    MEANS_TRUTH, /* 0 or 1 */
    MEANS_CODE,  /* of a category */
} TensorMeaning;

static inline uint32_t little_endian_32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

static inline void put_number_cell(const Column *column, double number, Cell *room) {
    room->type = CELL_FLOAT;
    room->as.number = number;
    if (number != number) {
        room->type = CELL_NULL;
    } else if (column->meaning == MEANS_TRUTH) {
        if (number != 0 && number != 1) return;
        room->type = CELL_BOOL;
        room->as.integer = number == 1;
    } else if (column->meaning == MEANS_CODE) {
        if (!(number >= 0 && number < column->n_codes) || number != (double)(int32_t)number) return;
        room->type = CELL_CODE;
        room->as.integer = (int32_t)number;
    }
}

#define INTEGER_CELL(c_type) \
    do { \
        c_type integer; \
        memcpy(&integer, p, sizeof integer); \
        room->type = CELL_INT; \
        room->as.integer = (int64_t)integer; \
    } while (0)

/* The next row's value, maybe in `room`. */
static inline const Cell *next_tensor_value(Column *column, Cell *room) {
    const uint8_t *p = column->next;
    double number;
    float narrow;
    column->next = p + column->stride;
    switch (column->format) {
    case TENSOR_CELLS:
        if (column->meaning == MEANS_NUMBER || ((const Cell *)p)->type != CELL_FLOAT) return (const Cell *)p;
        put_number_cell(column, ((const Cell *)p)->as.number, room);
        break;
    case TENSOR_FP32:
        memcpy(&narrow, p, 4);
        put_number_cell(column, (double)narrow, room);
        break;
    case TENSOR_FP64:
        memcpy(&number, p, 8);
        put_number_cell(column, number, room);
        break;
    case TENSOR_BYTES:
        room->type = CELL_TEXT;
        room->size = little_endian_32(p);
        room->as.text = p + 4;
        column->next = p + 4 + room->size;
        break;
    case TENSOR_BOOL:
        room->type = CELL_BOOL;
        room->as.integer = *p;
        break;
    case TENSOR_INT8: INTEGER_CELL(int8_t); break;
    case TENSOR_INT16: INTEGER_CELL(int16_t); break;
    case TENSOR_INT32: INTEGER_CELL(int32_t); break;
    case TENSOR_INT64: INTEGER_CELL(int64_t); break;
    case TENSOR_UINT8: INTEGER_CELL(uint8_t); break;
    case TENSOR_UINT16: INTEGER_CELL(uint16_t); break;
    case TENSOR_UINT32: INTEGER_CELL(uint32_t); break;
    default: /* TENSOR_UINT64 */
        INTEGER_CELL(uint64_t);
        if (room->as.integer < 0) { /* as json_number has it */
            room->type = CELL_FLOAT;
            room->as.number = (double)(uint64_t)room->as.integer;
        }
    }
    return room;
}

#undef INTEGER_CELL

/* Whether fill_fp32() does for a column and a feature of the kind what a walk and to_feature() would. */
static inline bool is_plain_fp32(const Column *column, int kind) {
    return column->format == TENSOR_FP32 && column->meaning == MEANS_NUMBER && (kind == KIND_FLOAT || kind == KIND_NUMBER);
}

/* Every row's value at `out` and every `step` values from there, and how many are missing; false: one is infinite. */
static inline bool fill_fp32(const Column *column, int64_t n_rows, float *out, int64_t step, int32_t *n_missing) {
    const uint8_t *p = column->items;
    int32_t missing = 0;
    for (int64_t i = 0; i < n_rows; i++, p += column->stride, out += step) {
        float value;
        memcpy(&value, p, 4);
        if (isinf(value)) return false;
        missing += isnan(value) != 0;
        *out = isnan(value) ? NAN : value; /* one NaN, whatever the client's was */
    }
    *n_missing += missing;
    return true;
}

#endif
