/* decimal.h - float64 to the shortest decimal text that reads back as it.
 *
 * R. Giulietti, "The Schubfach way to render doubles" (2021), written from its figures; the text is that of Python's
 * repr(float), which json.dumps writes too. No locale, no allocation, no GIL.
 *
 * Owns  : nothing. The table of powers is made once, from exact integers (decimal.pyx), and lent as `Powers`.
 * Bounds: put_double() writes at most DECIMAL_BYTES.
 */
#ifndef TIERCEL_DECIMAL_H
#define TIERCEL_DECIMAL_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define DECIMAL_BYTES 32 /* "-2.2250738585072014e-308" is 24; digits are written eight at a time */

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

#endif
