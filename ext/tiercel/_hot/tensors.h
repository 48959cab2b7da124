/* tensors.h - infer requests of the Open Inference Protocol, read in place against what a plan takes.
 *
 * A body is JSON, then the values of the tensors that say so (http/tensors.py and oip_model.py say what is right). As in
 * body_text.h only what is certainly right is accepted; false hands the body on to the general path, which answers it or
 * says what is wrong with it.
 *
 * Owns  : nothing but the cells of values that came as JSON, which free_tensors() frees. Columns point at these and into
 *         the body.
 * Bounds: no byte at or past an end is read; depth is fixed. Memory is taken for as many values as shape says only where
 *         the rest of the JSON has as many bytes. A count is a product of two numbers that are bounded first.
 */
#ifndef TIERCEL_TENSORS_H
#define TIERCEL_TENSORS_H

#include <stdlib.h>

#include "json_text.h"
#include "tensor_values.h"

enum { FEW_CELLS = 64 }; /* so many values of JSON need no memory of their own */

typedef struct TensorCells {
    struct TensorCells *next;
    Cell cells[];
} TensorCells;

/* One request, and what it says besides its tensors. */
typedef struct {
    Cell id;               /* CELL_TEXT, or CELL_NULL: none came */
    int64_t timeout_us;    /* -1: none */
    int64_t header_length; /* given by the caller: of the JSON, -1: all is JSON, 0: nothing is */
    int64_t n_rows;        /* left by read_tensors() */
    int64_t json_bytes;    /* left by whoever writes the reply: of its JSON, -1: all is JSON */
    bool is_binary;        /* how the scores are wanted */
    int32_t n_few;
    TensorCells *cells;    /* owned */
    Cell few[FEW_CELLS];
} TensorRequest;

/* What a plan takes. */
typedef struct {
    const BodySchema *names; /* an input's name -> field number */
    const FieldSpec *fields;
    const uint8_t *key_is_text;
    int32_t n_features; /* fields before those of the join keys */
    int32_t n_vector;   /* values of a row of "features"; 0: not taken here. Field i is then value i. */
} TensorSchema;

typedef struct {
    const TensorSchema *schema;
    Powers powers;
    int64_t max_rows;
    const uint8_t *end;            /* of the JSON */
    const uint8_t *rest, *rest_end; /* binary values nobody has taken yet */
    Body *body;
    TensorRequest *request;
    bool has_vector;
    int32_t default_binary, output_binary; /* -1: not said */
} TensorReading;

/* One input, as far as it is read. */
typedef struct {
    Cell name;
    int32_t format, rank;
    int64_t dims[2];
    int64_t binary_bytes; /* -1: not said */
    const uint8_t *data;  /* a list of JSON that waits for datatype and shape */
    const uint8_t *data_end;
    const Cell *cells;
} Input;

static inline void begin_tensors(TensorRequest *request) {
    request->id.type = CELL_NULL;
    request->timeout_us = -1;
    request->is_binary = false;
    request->n_few = 0;
    request->cells = NULL;
}

static inline void free_tensors(TensorRequest *request) {
    while (request->cells != NULL) {
        TensorCells *next = request->cells->next;
        free(request->cells);
        request->cells = next;
    }
}

static inline uint32_t id_size(const TensorRequest *request) {
    return request->id.type == CELL_TEXT ? request->id.size : 0;
}

static inline const char *id_text(const TensorRequest *request) { return (const char *)request->id.as.text; }

static Cell *take_cells(TensorRequest *request, int64_t count) {
    TensorCells *taken;
    if (count <= FEW_CELLS - request->n_few) {
        request->n_few += (int32_t)count;
        return request->few + request->n_few - count;
    }
    taken = malloc(sizeof(TensorCells) + (size_t)count * sizeof(Cell));
    if (taken == NULL) return NULL;
    taken->next = request->cells;
    request->cells = taken;
    return taken->cells;
}

/* ---- JSON ---- */

static inline bool is_text(const Cell *cell, const char *text, uint32_t size) {
    return cell->type == CELL_TEXT && cell->size == size && memcmp(cell->as.text, text, size) == 0;
}

#define IS(cell, literal) is_text(cell, literal, sizeof literal - 1)

/* A member's name and colon, from before the name; returns where the value begins. */
static inline const uint8_t *json_member(const uint8_t *p, const uint8_t *end, uint8_t *room, Cell *name) {
    p = json_name(skip_space(p, end), end, room, name);
    if (p == NULL) return NULL;
    p = skip_space(p, end);
    return p < end && *p == ':' ? skip_space(p + 1, end) : NULL;
}

/* The opening bracket: returns the first item, or with `is_empty` past the closing bracket. */
static inline const uint8_t *json_open(
    const uint8_t *p, const uint8_t *end, uint8_t opening, uint8_t closing, bool *is_empty
) {
    if (p >= end || *p != opening) return NULL;
    p = skip_space(p + 1, end);
    *is_empty = p < end && *p == closing;
    return *is_empty ? p + 1 : p;
}

/* What follows a value: returns the next item, or with `is_last` past the closing bracket. */
static inline const uint8_t *json_follow(const uint8_t *p, const uint8_t *end, uint8_t closing, bool *is_last) {
    if (p == NULL) return NULL;
    p = skip_space(p, end);
    if (p >= end || (*p != ',' && *p != closing)) return NULL;
    *is_last = *p == closing;
    return *is_last ? p + 1 : skip_space(p + 1, end);
}

/* Past a list, well-formed or not: it is read for good once its datatype and shape are known, and must end there then. */
static inline const uint8_t *skip_list(const uint8_t *p, const uint8_t *end) {
    int64_t depth = 0;
    bool in_text = false;
    for (; p < end; p++) {
        if (in_text) {
            if (*p == '"') in_text = false;
            if (*p == '\\' && ++p == end) return NULL;
        } else if (*p == '"') {
            in_text = true;
        } else if (*p == '[') {
            depth++;
        } else if (*p == ']' && --depth <= 0) {
            return p + 1;
        }
    }
    return NULL;
}

static inline bool fits_integer(const Cell *cell, int64_t least, int64_t most) {
    return cell->type == CELL_INT && least <= cell->as.integer && cell->as.integer <= most;
}

/* Whether a JSON value is one of the datatype; numbers of a float datatype become what the array would hold. */
static inline bool to_datatype(Cell *cell, int32_t format) {
    switch (format) {
    case TENSOR_BYTES: return cell->type == CELL_TEXT || cell->type == CELL_ESCAPED;
    case TENSOR_BOOL: return cell->type == CELL_BOOL;
    case TENSOR_INT8: return fits_integer(cell, INT8_MIN, INT8_MAX);
    case TENSOR_INT16: return fits_integer(cell, INT16_MIN, INT16_MAX);
    case TENSOR_INT32: return fits_integer(cell, INT32_MIN, INT32_MAX);
    case TENSOR_INT64: return cell->type == CELL_INT;
    case TENSOR_UINT8: return fits_integer(cell, 0, UINT8_MAX);
    case TENSOR_UINT16: return fits_integer(cell, 0, UINT16_MAX);
    case TENSOR_UINT32: return fits_integer(cell, 0, UINT32_MAX);
    case TENSOR_UINT64: return fits_integer(cell, 0, INT64_MAX); /* larger ones are the general path's */
    default: break;
    }
    if (cell->type == CELL_NULL) return true;
    if (cell->type == CELL_INT) {
        cell->type = CELL_FLOAT;
        cell->as.number = (double)cell->as.integer;
    }
    if (cell->type != CELL_FLOAT) return false;
    if (format == TENSOR_FP32) {
        if (!(fabs(cell->as.number) < 3.4028235677973366e38)) return false; /* to infinity */
        cell->as.number = (double)(float)cell->as.number;
    }
    return true;
}

/* `count` values from the first one, up to the bracket that closes their list. */
static inline const uint8_t *read_row(
    const TensorReading *reading, const uint8_t *p, int32_t format, int64_t count, Cell *cells
) {
    bool is_last = false;
    for (int64_t i = 0; i < count; i++) {
        if (is_last) return NULL;
        p = json_cell(reading->powers, p, reading->end, &cells[i]);
        if (p == NULL || !to_datatype(&cells[i], format)) return NULL;
        p = json_follow(p, reading->end, ']', &is_last);
        if (p == NULL) return NULL;
    }
    return is_last ? p : NULL;
}

/* The list under "data", flat or nested like the shape; datatype and shape are known. */
static const uint8_t *read_data(const TensorReading *reading, const uint8_t *p, Input *input) {
    const uint8_t *end = reading->end;
    const int64_t n_rows = input->dims[0], n_columns = input->dims[1];
    bool is_empty, is_last = false;
    Cell *cells;
    p = json_open(p, end, '[', ']', &is_empty);
    if (p == NULL || is_empty || p >= end || n_rows * n_columns > end - p) return NULL;
    cells = take_cells(reading->request, n_rows * n_columns);
    if (cells == NULL) return NULL;
    input->cells = cells;
    if (input->rank == 1 || *p != '[') return read_row(reading, p, input->format, n_rows * n_columns, cells);
    for (int64_t row = 0; row < n_rows; row++) {
        if (is_last) return NULL;
        p = json_open(p, end, '[', ']', &is_empty);
        if (p == NULL || is_empty) return NULL;
        p = read_row(reading, p, input->format, n_columns, cells + row * n_columns);
        p = json_follow(p, end, ']', &is_last);
        if (p == NULL) return NULL;
    }
    return is_last ? p : NULL;
}

/* One or two dimensions: rows that a request may have, and one value in each or a whole vector. */
static inline const uint8_t *read_shape(const TensorReading *reading, const uint8_t *p, Input *input) {
    const uint8_t *end = reading->end;
    const int64_t most_columns = reading->schema->n_vector > 1 ? reading->schema->n_vector : 1;
    bool is_last = false;
    Cell cell;
    p = json_open(p, end, '[', ']', &is_last);
    if (p == NULL || is_last) return NULL;
    input->dims[1] = 1;
    for (input->rank = 0; !is_last; input->rank++) {
        if (input->rank == 2) return NULL;
        p = json_cell(reading->powers, p, end, &cell);
        if (p == NULL || !fits_integer(&cell, 1, input->rank == 0 ? reading->max_rows : most_columns)) return NULL;
        input->dims[input->rank] = cell.as.integer;
        p = json_follow(p, end, ']', &is_last);
        if (p == NULL) return NULL;
    }
    return p;
}

static inline int32_t format_of(const Cell *cell) {
    static const struct {
        char name[8];
        uint32_t size;
    } NAMES[] = {
        [TENSOR_BOOL] = {"BOOL", 4},     [TENSOR_INT8] = {"INT8", 4},     [TENSOR_INT16] = {"INT16", 5},
        [TENSOR_INT32] = {"INT32", 5},   [TENSOR_INT64] = {"INT64", 5},   [TENSOR_UINT8] = {"UINT8", 5},
        [TENSOR_UINT16] = {"UINT16", 6}, [TENSOR_UINT32] = {"UINT32", 6}, [TENSOR_UINT64] = {"UINT64", 6},
        [TENSOR_FP32] = {"FP32", 4},     [TENSOR_FP64] = {"FP64", 4},     [TENSOR_BYTES] = {"BYTES", 5},
    };
    for (int32_t i = TENSOR_BOOL; i <= TENSOR_BYTES; i++)
        if (is_text(cell, NAMES[i].name, NAMES[i].size)) return i;
    return TENSOR_NONE;
}

/* {"binary_data_size": n} of an input, {"binary_data": b} of an output, or null: with one known name each, whose value
 * is a cell of the type, or null too. */
static const uint8_t *read_parameter(
    const TensorReading *reading, const uint8_t *p, const char *known, uint32_t known_size, Cell *value
) {
    const uint8_t *end = reading->end;
    uint8_t room[MAX_ESCAPED_NAME];
    bool is_last;
    Cell name;
    value->type = CELL_NULL;
    if (p < end && *p == 'n') return json_cell(reading->powers, p, end, value);
    p = json_open(p, end, '{', '}', &is_last);
    if (p == NULL || is_last) return p;
    p = json_member(p, end, room, &name);
    if (p == NULL || !is_text(&name, known, known_size)) return NULL;
    p = json_follow(json_cell(reading->powers, p, end, value), end, '}', &is_last);
    return p != NULL && is_last ? p : NULL; /* the same name again would be an error, and no other is known */
}

/* ---- tensors to columns ---- */

static const uint8_t WIDTHS[] = {
    [TENSOR_BOOL] = 1,   [TENSOR_INT8] = 1,   [TENSOR_INT16] = 2,  [TENSOR_INT32] = 4, [TENSOR_INT64] = 8, [TENSOR_UINT8] = 1,
    [TENSOR_UINT16] = 2, [TENSOR_UINT32] = 4, [TENSOR_UINT64] = 8, [TENSOR_FP32] = 4,  [TENSOR_FP64] = 8,  [TENSOR_BYTES] = 0,
};

/* Whether `count` binary values take up all of p .. end. */
static inline bool is_filled(const uint8_t *p, const uint8_t *end, int32_t format, int64_t count) {
    if (format == TENSOR_BYTES) {
        for (; count > 0; count--) {
            uint32_t size;
            if (end - p < 4) return false;
            size = little_endian_32(p);
            p += 4;
            if (size > (uint64_t)(end - p) || size > INT32_MAX || !is_utf8(p, size)) return false;
            p += size;
        }
        return p == end;
    }
    if (end - p != count * WIDTHS[format]) return false;
    if (format == TENSOR_BOOL)
        for (; p < end; p++)
            if (*p > 1) return false;
    return true;
}

static inline bool is_number(int32_t format) { return format >= TENSOR_INT8 && format <= TENSOR_FP64; }

static inline bool is_integer(int32_t format) { return format >= TENSOR_INT8 && format <= TENSOR_UINT64; }

/* Whether a feature of the kind comes as the datatype (oip_model.py: _ACCEPTED). */
static inline bool is_accepted(int kind, int32_t format) {
    switch (kind) {
    case KIND_FLOAT: return is_number(format);
    case KIND_INT: return is_integer(format);
    case KIND_BOOL: return format == TENSOR_BOOL;
    case KIND_STRING: return format == TENSOR_BYTES;
    default: return is_number(format) || format == TENSOR_BOOL;
    }
}

/* The columns of a whole vector: every feature's, one value apart. */
static bool put_vector(TensorReading *reading, int32_t format, int32_t width, int64_t n_rows, const uint8_t *values) {
    const TensorSchema *schema = reading->schema;
    if (reading->body->n_rows >= 0) return false;
    for (int32_t i = 0; i < schema->n_vector; i++) {
        const FieldSpec *field = &schema->fields[i];
        Column *column = &reading->body->columns[i];
        reading->body->given[i] = 1;
        column->items = values + (int64_t)i * width;
        column->format = format;
        column->stride = schema->n_vector * width;
        column->meaning = field->kind == KIND_BOOL ? MEANS_TRUTH : field->kind == KIND_STRING ? MEANS_CODE : MEANS_NUMBER;
        column->n_codes = field->n_categories;
    }
    reading->has_vector = true;
    reading->body->n_rows = n_rows;
    return true;
}

/* A whole input: its values, checked, become columns. */
static bool put_input(TensorReading *reading, Input *input) {
    const TensorSchema *schema = reading->schema;
    const Cell *name = &input->name;
    Body *body = reading->body;
    const int64_t count = input->dims[0] * input->dims[1];
    const uint8_t *values;
    int32_t field, format = input->format, width = WIDTHS[format];
    Column *column;
    if (input->binary_bytes >= 0) {
        if (!READS_BINARY || input->cells != NULL || input->binary_bytes > reading->rest_end - reading->rest) return false;
        values = reading->rest;
        reading->rest += input->binary_bytes;
        if (!is_filled(values, reading->rest, format, count)) return false;
    } else {
        if (input->cells == NULL) return false;
        values = (const uint8_t *)input->cells;
        format = TENSOR_CELLS;
        width = sizeof(Cell);
    }
    field = find_name(&schema->names->entities, name->as.text, name->size);
    if (field < 0) field = find_name(&schema->names->features, name->as.text, name->size);
    if (field < 0)
        return IS(name, "features") && input->rank == 2 && schema->n_vector > 0 && input->dims[1] == schema->n_vector &&
               (input->format == TENSOR_FP32 || input->format == TENSOR_FP64) &&
               put_vector(reading, format, width, input->dims[0], values);
    if (input->dims[1] != 1 || reading->has_vector || body->given[field]) return false;
    if (field >= schema->n_features) {
        const bool takes_text = schema->key_is_text[field - schema->n_features];
        if (takes_text ? input->format != TENSOR_BYTES : !is_integer(input->format)) return false;
    } else if (!is_accepted(schema->fields[field].kind, input->format)) {
        return false;
    }
    if (body->n_rows >= 0 && body->n_rows != input->dims[0]) return false;
    body->n_rows = input->dims[0];
    body->given[field] = 1;
    column = &body->columns[field];
    column->items = values;
    column->format = format;
    column->stride = width;
    column->meaning = MEANS_NUMBER;
    return true;
}

/* ---- the parts of a request ---- */

enum { SEEN_NAME = 1, SEEN_SHAPE = 2, SEEN_DATATYPE = 4, SEEN_PARAMETERS = 8, SEEN_DATA = 16, NEEDED = 7 };

static const uint8_t *read_input(TensorReading *reading, const uint8_t *p) {
    const uint8_t *end = reading->end;
    uint8_t room[MAX_ESCAPED_NAME], named[MAX_ESCAPED_NAME];
    Input input = {.format = TENSOR_NONE, .binary_bytes = -1};
    bool is_last;
    int seen = 0;
    Cell name, cell;
    p = json_open(p, end, '{', '}', &is_last);
    if (p == NULL || is_last) return NULL;
    while (!is_last) {
        int part;
        p = json_member(p, end, room, &name);
        if (p == NULL) return NULL;
        part = IS(&name, "name")         ? SEEN_NAME
               : IS(&name, "shape")      ? SEEN_SHAPE
               : IS(&name, "datatype")   ? SEEN_DATATYPE
               : IS(&name, "parameters") ? SEEN_PARAMETERS
               : IS(&name, "data")       ? SEEN_DATA
                                         : 0;
        if (part == 0 || (seen & part)) return NULL;
        seen |= part;
        switch (part) {
        case SEEN_NAME: p = json_name(p, end, named, &input.name); break;
        case SEEN_SHAPE: p = read_shape(reading, p, &input); break;
        case SEEN_DATATYPE:
            p = json_text(p, end, &cell);
            if (p == NULL || (input.format = format_of(&cell)) == TENSOR_NONE) return NULL;
            break;
        case SEEN_PARAMETERS:
            p = read_parameter(reading, p, "binary_data_size", 16, &cell);
            if (p == NULL || (cell.type != CELL_NULL && !fits_integer(&cell, 0, INT64_MAX))) return NULL;
            if (cell.type == CELL_INT) input.binary_bytes = cell.as.integer;
            break;
        default:
            if (p < end && *p == 'n') {
                p = json_cell(reading->powers, p, end, &cell);
            } else if ((seen & (SEEN_SHAPE | SEEN_DATATYPE)) == (SEEN_SHAPE | SEEN_DATATYPE)) {
                p = read_data(reading, p, &input);
            } else {
                input.data = p;
                p = input.data_end = skip_list(p, end);
            }
        }
        p = json_follow(p, end, '}', &is_last);
        if (p == NULL) return NULL;
    }
    if ((seen & NEEDED) != NEEDED || input.name.size == 0) return NULL;
    if (input.data != NULL && read_data(reading, input.data, &input) != input.data_end) return NULL;
    return put_input(reading, &input) ? p : NULL;
}

static const uint8_t *read_inputs(TensorReading *reading, const uint8_t *p) {
    bool is_last;
    p = json_open(p, reading->end, '[', ']', &is_last);
    if (p == NULL || is_last) return NULL;
    while (!is_last) {
        p = json_follow(read_input(reading, p), reading->end, ']', &is_last);
        if (p == NULL) return NULL;
    }
    return p;
}

/* Null, an empty list, or the one output there is. */
static const uint8_t *read_outputs(TensorReading *reading, const uint8_t *p) {
    const uint8_t *end = reading->end;
    uint8_t room[MAX_ESCAPED_NAME];
    bool is_last, has_name = false, has_parameters = false;
    Cell name, cell;
    if (p < end && *p == 'n') return json_cell(reading->powers, p, end, &cell);
    p = json_open(p, end, '[', ']', &is_last);
    if (p == NULL || is_last) return p;
    p = json_open(p, end, '{', '}', &is_last);
    if (p == NULL || is_last) return NULL;
    while (!is_last) {
        p = json_member(p, end, room, &name);
        if (p == NULL) return NULL;
        if (IS(&name, "name") && !has_name) {
            has_name = true;
            p = json_text(p, end, &cell);
            if (p == NULL || !IS(&cell, "score")) return NULL;
        } else if (IS(&name, "parameters") && !has_parameters) {
            has_parameters = true;
            p = read_parameter(reading, p, "binary_data", 11, &cell);
            if (p == NULL || (cell.type != CELL_NULL && cell.type != CELL_BOOL)) return NULL;
            if (cell.type == CELL_BOOL) reading->output_binary = cell.as.integer != 0;
        } else {
            return NULL;
        }
        p = json_follow(p, end, '}', &is_last);
        if (p == NULL) return NULL;
    }
    p = json_follow(p, end, ']', &is_last);
    return p != NULL && is_last && has_name ? p : NULL;
}

/* The request's own parameters: Triton's that are known here. */
static const uint8_t *read_parameters(TensorReading *reading, const uint8_t *p) {
    const uint8_t *end = reading->end;
    uint8_t room[MAX_ESCAPED_NAME];
    bool is_last;
    int seen = 0;
    Cell name, cell;
    if (p < end && *p == 'n') return json_cell(reading->powers, p, end, &cell);
    p = json_open(p, end, '{', '}', &is_last);
    if (p == NULL) return NULL;
    while (!is_last) {
        int part;
        p = json_member(p, end, room, &name);
        if (p == NULL) return NULL;
        part = IS(&name, "timeout") ? 1 : IS(&name, "priority") ? 2 : IS(&name, "binary_data_output") ? 4 : 0;
        if (part == 0 || (seen & part)) return NULL;
        seen |= part;
        p = json_cell(reading->powers, p, end, &cell);
        if (p == NULL) return NULL;
        if (part == 1 && !fits_integer(&cell, 0, 0)) { /* zero asks for nothing */
            double us = cell.type == CELL_INT ? (double)cell.as.integer : -1;
            if (cell.type == CELL_FLOAT) us = cell.as.number;
            if (!(us >= 1 && us <= MAX_BUDGET_US)) return NULL;
            reading->request->timeout_us = (int64_t)us;
        }
        if (part == 2 && !fits_integer(&cell, 0, INT64_MAX)) return NULL;
        if (part == 4 && cell.type != CELL_BOOL && cell.type != CELL_NULL) return NULL;
        if (part == 4 && cell.type == CELL_BOOL) reading->default_binary = cell.as.integer != 0;
        p = json_follow(p, end, '}', &is_last);
        if (p == NULL) return NULL;
    }
    return p;
}

static bool read_request(TensorReading *reading, const uint8_t *p) {
    const uint8_t *end = reading->end;
    uint8_t room[MAX_ESCAPED_NAME];
    bool is_last;
    int seen = 0;
    Cell name;
    p = json_open(skip_space(p, end), end, '{', '}', &is_last);
    if (p == NULL || is_last) return false;
    while (!is_last) {
        int part;
        p = json_member(p, end, room, &name);
        if (p == NULL) return false;
        part = IS(&name, "inputs") ? 1 : IS(&name, "outputs") ? 2 : IS(&name, "id") ? 4 : 0;
        if (IS(&name, "parameters")) part = 8;
        if (part == 0 || (seen & part)) return false;
        seen |= part;
        switch (part) {
        case 1: p = read_inputs(reading, p); break;
        case 2: p = read_outputs(reading, p); break;
        case 4:
            p = json_cell(reading->powers, p, end, &reading->request->id);
            if (reading->request->id.type != CELL_TEXT && reading->request->id.type != CELL_NULL) return false;
            break;
        default: p = read_parameters(reading, p);
        }
        p = json_follow(p, end, '}', &is_last);
        if (p == NULL) return false;
    }
    return (seen & 1) && skip_space(p, end) == end && reading->rest == reading->rest_end;
}

/* Read a whole body; request->header_length is set. `given` is zeroed and `columns` has room by the caller, who calls
 * free_tensors() once the columns are done with, whatever is returned. False: hand the body on. */
static inline bool read_tensors(
    Powers powers, const uint8_t *p, int64_t n_bytes, const TensorSchema *schema, int64_t max_rows, Body *body,
    TensorRequest *request
) {
    const int64_t header_length = request->header_length;
    TensorReading reading = {
        .schema = schema, .powers = powers, .body = body, .request = request,
        .default_binary = -1, .output_binary = -1,
    };
    begin_tensors(request);
    body->n_rows = body->now_us = body->budget_us = -1;
    body->n_entities = body->n_features = 0;
    body->explain = EXPLAIN_NOT; /* a request with that parameter is handed on */
    if (max_rows > INT32_MAX) max_rows = INT32_MAX; /* a product of rows and columns cannot overflow */
    reading.max_rows = max_rows;
    if (header_length > n_bytes) return false;
    reading.rest_end = p + n_bytes;
    reading.end = reading.rest = header_length < 0 ? reading.rest_end : p + header_length;
    if (header_length == 0) { /* one row of FP32, and the reply is binary too */
        request->is_binary = true;
        request->n_rows = 1;
        return READS_BINARY && schema->n_vector > 0 && n_bytes == 4 * (int64_t)schema->n_vector &&
               put_vector(&reading, TENSOR_FP32, 4, 1, p);
    }
    if (!read_request(&reading, p)) return false;
    request->n_rows = body->n_rows;
    request->is_binary = (reading.output_binary >= 0 ? reading.output_binary : reading.default_binary) == 1;
    return true;
}

#undef IS

#endif
