/* decimal.h - float64 to the shortest decimal text that reads back as it, and decimal text to the nearest float64.
 *
 * To text: R. Giulietti, "The Schubfach way to render doubles" (2021), written from its figures; the text is that of
 * Python's repr(float), which json.dumps writes too.
 * From text: D. Lemire, "Number parsing at a gigabyte per second" (2021), with both ends of the interval that a cut
 * power leaves instead of the paper's case analysis; what the two ends do not settle is compared in exact integers. The
 * result is float(text), to the bit. No locale, no allocation, no GIL.
 *
 * Owns  : nothing. The table of powers is made once, from exact integers (decimal.pyx), and lent as `Powers`.
 * Bounds: put_double() writes at most DECIMAL_BYTES.
 */
#ifndef TIERCEL_DECIMAL_H
#define TIERCEL_DECIMAL_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define DECIMAL_BYTES 32 /* "-2.2250738585072014e-308" is 24 */

enum { LEAST_POWER = -342, MOST_POWER = 324, N_POWERS = MOST_POWER - LEAST_POWER + 1, MOST_EXACT_POWER = 55 };

/* 128 bits of a power of ten, the highest of them set, rounded down: exact from 10**0 to 10**55. */
typedef struct {
    uint64_t high, low;
} Power;

/* The power 10**k is at [k - LEAST_POWER]. */
typedef const Power *Powers;

static inline Power power_of_ten(Powers powers, int k) { return powers[k - LEAST_POWER]; }

static inline int floor_log2_of_power(int k) { return (k * 1741647) >> 19; } /* floor(log2(10**k)), |k| <= 1233 */

/* a * b: the high half is returned, the low one stored. */
static inline uint64_t multiply_wide(uint64_t a, uint64_t b, uint64_t *low) {
#ifdef __SIZEOF_INT128__
    __extension__ typedef unsigned __int128 wide;
    const wide product = (wide)a * b;
    *low = (uint64_t)product;
    return (uint64_t)(product >> 64);
#else
    const uint64_t a1 = a >> 32, a0 = (uint32_t)a, b1 = b >> 32, b0 = (uint32_t)b;
    const uint64_t low_part = a0 * b0, middle = a1 * b0 + (low_part >> 32), other = a0 * b1 + (uint32_t)middle;
    *low = (other << 32) | (uint32_t)low_part;
    return a1 * b1 + (middle >> 32) + (other >> 32);
#endif
}

/* ---- to text ---- */

/* Highest 64 bits of g * c, the lowest of them set when anything is cut off ("round to odd"). */
static inline uint64_t scaled_to_odd(Power g, uint64_t c) {
    uint64_t low, middle, rest;
    const uint64_t carried = multiply_wide(g.low, c, &rest);
    uint64_t high = multiply_wide(g.high, c, &low);
    middle = low + carried;
    high += middle < low;
    return high | (middle > 1);
}

/* The shortest decimal in the rounding interval of the positive finite double of these bits, the closest of these:
 * digits * 10**exponent. */
static inline uint64_t shortest_digits(Powers powers, uint64_t bits, int *exponent) {
    const uint64_t fraction = bits & ((UINT64_C(1) << 52) - 1);
    const int biased = (int)(bits >> 52);
    const uint64_t c = biased ? fraction | (UINT64_C(1) << 52) : fraction;
    const int q = (biased ? biased : 1) - 1075;
    const bool is_even = (c & 1) == 0, is_closer_below = fraction == 0 && biased > 1;
    /* floor(log10(2**q)), or floor(log10(3/4 * 2**q)) where the interval is narrower below. */
    const int k = (q * 1262611 - (is_closer_below ? 524031 : 0)) >> 22;
    const int h = q + floor_log2_of_power(-k) + 1;
    Power g = power_of_ten(powers, -k);
    uint64_t below, value, above, lower, upper, s;
    bool under, over;
    if (-k < 0 || -k > MOST_EXACT_POWER) g.high += ++g.low == 0; /* the paper rounds up */
    below = scaled_to_odd(g, (4 * c - 2 + is_closer_below) << h);
    value = scaled_to_odd(g, (4 * c) << h);
    above = scaled_to_odd(g, (4 * c + 2) << h);
    lower = below + !is_even;
    upper = above - !is_even;
    s = value / 4;
    if (s >= 10) {
        const uint64_t tens = s / 10;
        under = lower <= 40 * tens;
        over = 40 * tens + 40 <= upper;
        if (under != over) {
            *exponent = k + 1;
            return tens + over;
        }
    }
    *exponent = k;
    under = lower <= 4 * s;
    over = 4 * s + 4 <= upper;
    if (under != over) return s + over;
    return s + (value > 4 * s + 2 || (value == 4 * s + 2 && (s & 1)));
}

static const char DIGIT_PAIRS[201] =
    "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849"
    "5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";

static inline void put_eight_digits(char *at, uint32_t value) {
    const uint32_t high = value / 10000, low = value % 10000;
    memcpy(at, DIGIT_PAIRS + 2 * (high / 100), 2);
    memcpy(at + 2, DIGIT_PAIRS + 2 * (high % 100), 2);
    memcpy(at + 4, DIGIT_PAIRS + 2 * (low / 100), 2);
    memcpy(at + 6, DIGIT_PAIRS + 2 * (low % 100), 2);
}

/* As repr(value) at `at`, which has room for DECIMAL_BYTES; returns past it. The value is finite. */
static inline char *put_double(Powers powers, char *at, double value) {
    char text[24]; /* 24 digits, the number at their end */
    const char *digits;
    uint64_t bits, number;
    int exponent, n_digits, point;
    memcpy(&bits, &value, 8);
    if (bits >> 63) *at++ = '-';
    bits &= ~(UINT64_C(1) << 63);
    if (bits == 0) {
        memcpy(at, "0.0", 3);
        return at + 3;
    }
    number = shortest_digits(powers, bits, &exponent);
    put_eight_digits(text, (uint32_t)(number / UINT64_C(10000000000000000)));
    put_eight_digits(text + 8, (uint32_t)(number / 100000000 % 100000000));
    put_eight_digits(text + 16, (uint32_t)(number % 100000000));
    for (digits = text + (number >= 100000000 ? 7 : 16); *digits == '0'; digits++) {}
    n_digits = (int)(text + 24 - digits);
    point = n_digits + exponent; /* the number is 0.DIGITS * 10**point */
    while (digits[n_digits - 1] == '0') n_digits--;
    if (point > 16 || point < -3) {
        *at++ = *digits;
        if (n_digits > 1) {
            *at++ = '.';
            memcpy(at, digits + 1, (size_t)n_digits - 1);
            at += n_digits - 1;
        }
        *at++ = 'e';
        *at++ = --point < 0 ? '-' : '+';
        if (point < 0) point = -point;
        if (point >= 100) *at++ = (char)('0' + point / 100);
        memcpy(at, DIGIT_PAIRS + 2 * (point % 100), 2);
        return at + 2;
    }
    if (point <= 0) {
        memcpy(at, "0.000", 5);
        at += 2 - point;
        memcpy(at, digits, (size_t)n_digits);
        return at + n_digits;
    }
    if (point >= n_digits) {
        memcpy(at, digits, (size_t)n_digits);
        memset(at + n_digits, '0', (size_t)(point - n_digits));
        memcpy(at + point, ".0", 2);
        return at + point + 2;
    }
    memcpy(at, digits, (size_t)point);
    at[point] = '.';
    memcpy(at + point + 1, digits + point, (size_t)(n_digits - point));
    return at + n_digits + 1;
}

/* ---- from text ---- */

/* An unsigned integer of up to 3200 bits, lowest limb first. No comparison below needs more than 2800. */
enum { N_LIMBS = 100, MOST_DIGITS = 800 };

typedef struct {
    int n;
    uint32_t limbs[N_LIMBS];
} Whole;

static inline void multiply_add(Whole *a, uint32_t factor, uint32_t carry) {
    for (int i = 0; i < a->n; i++) {
        const uint64_t product = (uint64_t)a->limbs[i] * factor + carry;
        a->limbs[i] = (uint32_t)product;
        carry = (uint32_t)(product >> 32);
    }
    if (carry && a->n < N_LIMBS) a->limbs[a->n++] = carry;
}

static inline void multiply_by_power_of_five(Whole *a, int64_t power) {
    for (; power >= 13; power -= 13) multiply_add(a, UINT32_C(1220703125), 0);
    for (; power > 0; power--) multiply_add(a, 5, 0);
}

static inline void shift_left(Whole *a, int64_t bits) {
    int words = (int)(bits / 32);
    for (bits %= 32; bits > 0; bits--) multiply_add(a, 2, 0);
    if (words > N_LIMBS - a->n) words = N_LIMBS - a->n;
    memmove(a->limbs + words, a->limbs, (size_t)a->n * 4);
    memset(a->limbs, 0, (size_t)words * 4);
    a->n += words;
}

static inline int compare_wholes(const Whole *a, const Whole *b) {
    if (a->n != b->n) return a->n < b->n ? -1 : 1;
    for (int i = a->n - 1; i >= 0; i--)
        if (a->limbs[i] != b->limbs[i]) return a->limbs[i] < b->limbs[i] ? -1 : 1;
    return 0;
}

/* Whether a decimal is below (-1), at (0) or above (1) h * 2**e, which it is near. The decimal is the digits of `text`
 * (with at most one point among them) times 10**written. Digits past the 800th count as "some more". */
static int compare_exactly(const uint8_t *text, const uint8_t *end, int64_t written, uint64_t h, int64_t e) {
    Whole decimal = {0}, binary = {2, {(uint32_t)h, (uint32_t)(h >> 32)}};
    bool after_point = false, is_cut = false;
    int n_digits = 0, order;
    if (binary.limbs[1] == 0) binary.n = 1;
    for (; text < end; text++) {
        if (*text == '.') {
            after_point = true;
        } else if (n_digits < MOST_DIGITS) {
            multiply_add(&decimal, 10, (uint32_t)(*text - '0'));
            n_digits += decimal.n > 0;
            written -= after_point;
        } else {
            is_cut |= *text != '0';
            written += !after_point;
        }
    }
    if (written >= 0) {
        multiply_by_power_of_five(&decimal, written);
    } else {
        multiply_by_power_of_five(&binary, -written);
    }
    if (written > e) {
        shift_left(&decimal, written - e);
    } else {
        shift_left(&binary, e - written);
    }
    order = compare_wholes(&decimal, &binary);
    return order == 0 && is_cut ? 1 : order;
}

/* The double below or at `digits` * 10**exponent: `bits`, which is `mantissa` * 2**unit; `up` is whether the one above
 * is nearer. False: `up` is not certain. */
typedef struct {
    uint64_t bits, mantissa;
    int64_t unit;
    bool up, certain;
} Nearest;

static inline Nearest nearest_double(Powers powers, uint64_t digits, int exponent) {
    const bool is_exact = exponent >= 0 && exponent <= MOST_EXACT_POWER;
    const Power power = power_of_ten(powers, exponent);
    const int zeros = __builtin_clzll(digits);
    const uint64_t w = digits << zeros;
    Nearest found;
    uint64_t low, middle, carried, rest = 0, half = 1;
    uint64_t high = multiply_wide(power.high, w, &middle);
    int top, shift;
    carried = multiply_wide(power.low, w, &low);
    middle += carried;
    high += middle < carried;
    top = 63 + (int)(high >> 63) + floor_log2_of_power(exponent) - zeros; /* floor(log2) of the product */
    shift = 10 + (int)(high >> 63) + (top < -1022 ? -1022 - top : 0);
    found.unit = top < -1022 ? -1074 : top - 52;
    found.mantissa = shift < 64 ? high >> shift : 0;
    if (shift <= 64) {
        half <<= shift - 1;
        rest = shift < 64 ? high & (2 * half - 1) : high;
    }
    found.up = rest > half || (rest == half && (!is_exact || (middle | low) != 0 || (found.mantissa & 1)));
    /* The cut power hides less than one w above `low`: only a carry into `high` could change the decision. */
    found.certain = is_exact || !(low + w < low && middle == UINT64_MAX);
    found.bits = (top < -1022 ? 0 : (uint64_t)(top + 1022) << 52) + found.mantissa;
    if (top > 1023) {
        found.bits = UINT64_C(0x7FF) << 52;
        found.up = false;
        found.certain = true;
    }
    return found;
}

/* The double nearest to a positive decimal; infinity when it is too large. `digits` are its first 19 significant ones,
 * to be taken times 10**exponent; `is_cut`: more follow. `text`, `end` and `written` are as for compare_exactly. */
static inline double nearest_to_decimal(
    Powers powers, uint64_t digits, int64_t exponent, bool is_cut, const uint8_t *text, const uint8_t *end,
    int64_t written
) {
    Nearest found;
    double number;
    if (digits == 0 || exponent < LEAST_POWER) return 0.0; /* below half of the least double, whatever follows */
    if (exponent > 308) return INFINITY;
    found = nearest_double(powers, digits, (int)exponent);
    if (is_cut) {
        const Nearest after = nearest_double(powers, digits + 1, (int)exponent);
        found.certain &= after.certain && after.bits + after.up == found.bits + found.up;
    }
    if (!found.certain) {
        const int order = compare_exactly(text, end, written, 2 * found.mantissa + 1, found.unit - 1);
        found.up = order > 0 || (order == 0 && (found.mantissa & 1));
    }
    found.bits += found.up;
    memcpy(&number, &found.bits, 8);
    return number;
}

/* What a JSON number says. */
typedef struct {
    uint64_t digits;  /* the first 19 significant ones */
    int64_t n_digits; /* all significant ones, zeros at the end included */
    bool is_negative, is_whole; /* whole: written without a point or exponent */
    double number;    /* of one that is not whole: the nearest double, maybe infinite */
} Decimal;

static inline bool is_digit(const uint8_t *p, const uint8_t *end) { return p < end && (uint8_t)(*p - '0') < 10; }

/* A number as RFC 8259 spells it; returns past it, or NULL. With `as_double`, `number` is set for a whole one too. */
static inline const uint8_t *read_decimal(
    Powers powers, const uint8_t *p, const uint8_t *end, bool as_double, Decimal *out
) {
    static const double EXACT[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                   1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const uint8_t *text, *text_end;
    uint64_t digits = 0;
    int64_t n_digits = 0, exponent = 0, written = 0;
    double number;
    out->is_negative = p < end && *p == '-';
    p += out->is_negative;
    if (!is_digit(p, end)) return NULL;
    text = p;
    if (*p == '0') {
        p++;
        if (is_digit(p, end)) return NULL; /* 01 */
    } else {
        for (; is_digit(p, end); p++, n_digits++) {
            if (n_digits < 19) {
                digits = digits * 10 + (*p - '0');
            } else {
                exponent++;
            }
        }
    }
    out->is_whole = !(p < end && (*p == '.' || (*p | 0x20) == 'e'));
    if (out->is_whole) {
        out->digits = digits;
        out->n_digits = n_digits;
        if (!as_double) return p;
        text_end = p;
    } else {
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
        text_end = p;
        if (p < end && (*p | 0x20) == 'e') {
            bool down = false;
            p++;
            if (p < end && (*p == '+' || *p == '-')) down = *p++ == '-';
            if (!is_digit(p, end)) return NULL;
            /* A body has less than 10**15 bytes, so no run of digits outweighs an exponent past that. */
            for (; is_digit(p, end); p++)
                if (written < INT64_C(1000000000000000)) written = written * 10 + (*p - '0');
            if (down) written = -written;
            exponent += written;
        }
        out->digits = digits;
        out->n_digits = n_digits;
    }
    /* Both operands are exact doubles, so the one division or product rounds once, correctly (Clinger's fast path). */
    if (n_digits <= 19 && digits <= (UINT64_C(1) << 53) && exponent >= -22 && exponent <= 22) {
        number = (double)digits;
        number = exponent < 0 ? number / EXACT[-exponent] : number * EXACT[exponent];
    } else {
        number = nearest_to_decimal(powers, digits, exponent, n_digits > 19, text, text_end, written);
    }
    out->number = out->is_negative ? -number : number;
    return p;
}

#endif
