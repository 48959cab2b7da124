/* pages.h - looking a key up in the pages of a sealed LMDB file.
 *
 * The file is LMDB's, data version 1, and nobody writes it any more, so what mdb_get does for a read - a transaction, a
 * cursor, a comparison through a pointer - is not needed to find a row: this follows the same pages to the same node. It
 * does less where keys are an entity's integer (nine bytes: the group, then the value, highest byte first): such keys are
 * compared as numbers, and the first look into a leaf is where the key would stand if those of the page were evenly spread
 * between the page's neighbours. Ids that are dense are found there at once; the others by ever longer steps from there.
 *
 * Layout (lmdb 0.9, mdb.c: MDB_page, MDB_node, MDB_meta): a page begins with its number (8 bytes), 2 unused, flags, where
 * its list of offsets ends and where its nodes begin (2 bytes each); then the offsets, 2 bytes each, in key order. A node
 * is 2 + 2 + 2 bytes of data size (leaf) or page number (branch) and flags, 2 bytes of key size, the key, and in leaves the
 * data or, of large rows, the number of the overflow page that it begins on. A branch's first key is not looked at.
 *
 * Every number that is read is checked against the page and the file, so nothing outside the file is ever read. In a
 * damaged file a search may still end without a row, or with another one: bases are hashed before they are opened.
 */
#ifndef TIERCEL_PAGES_H
#define TIERCEL_PAGES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TC_FOUND = 0, TC_ABSENT = 1, TC_DAMAGED = 2 };
enum { TC_PAGE_HEAD = 16, TC_NODE_HEAD = 8, TC_PAGE_BRANCH = 1, TC_PAGE_LEAF = 2, TC_PAGE_OVERFLOW = 4, TC_BIG_DATA = 1 };
enum { TC_INT_KEY = 9 };

typedef struct {
    const uint8_t* map;         /* NULL: pages are LMDB's own business here */
    uint64_t n_bytes, root;
    uint32_t page_bytes;
    int32_t depth;              /* levels of pages; 0: no rows */
} tc_pages;

/* Whether this machine has the layout above: the one of 64-bit little-endian ones. */
static inline int tc_pages_fit(void) {
    const uint16_t one = 1;
    uint8_t first;
    memcpy(&first, &one, 1);
    return first == 1 && sizeof(size_t) == 8;
}

static inline uint16_t tc_u16(const uint8_t* at) { uint16_t x; memcpy(&x, at, 2); return x; }
static inline uint64_t tc_u64(const uint8_t* at) { uint64_t x; memcpy(&x, at, 8); return x; }
static inline uint64_t tc_big_u64(const uint8_t* at) { return __builtin_bswap64(tc_u64(at)); }

/* One page: how many nodes, and each of them. */
typedef struct { const uint8_t* at; uint32_t n, bytes; } tc_page;

/* NULL when it does not lie in the page. */
static inline const uint8_t* tc_node_of(const tc_page* page, uint32_t i) {
    uint32_t offset = tc_u16(page->at + TC_PAGE_HEAD + 2 * i);
    if (offset + TC_NODE_HEAD > page->bytes) return NULL;
    const uint8_t* node = page->at + offset;
    return offset + TC_NODE_HEAD + tc_u16(node + 6) <= page->bytes ? node : NULL;
}

static inline int tc_open_page(const tc_pages* p, uint64_t number, int flags, tc_page* page) {
    if (number >= p->n_bytes / p->page_bytes) return 0;
    page->at = p->map + number * p->page_bytes;
    page->bytes = p->page_bytes;
    uint32_t lower = tc_u16(page->at + 12);
    if ((tc_u16(page->at + 10) & (TC_PAGE_BRANCH | TC_PAGE_LEAF | TC_PAGE_OVERFLOW)) != flags) return 0;
    if (lower < TC_PAGE_HEAD + 2 || lower > p->page_bytes) return 0;
    page->n = (lower - TC_PAGE_HEAD) / 2;
    return 1;
}

/* A key as it is looked for: of nine bytes also as a number. */
typedef struct { const uint8_t* bytes; size_t n; uint64_t number; } tc_key;

/* As memcmp, a longer key after its beginning. */
static inline int tc_compare_key(const tc_key* key, const uint8_t* node) {
    size_t n = tc_u16(node + 6);
    const uint8_t* other = node + TC_NODE_HEAD;
    if (n == TC_INT_KEY && key->n == TC_INT_KEY) {
        if (key->bytes[0] != other[0]) return key->bytes[0] < other[0] ? -1 : 1;
        uint64_t number = tc_big_u64(other + 1);
        return key->number < number ? -1 : key->number > number;
    }
    int order = memcmp(key->bytes, other, key->n < n ? key->n : n);
    if (order != 0) return order;
    return key->n < n ? -1 : key->n > n;
}

/* The numbers of one group that a page's keys lie between; none: low == high. */
typedef struct { uint64_t low, high; } tc_span;

/* The child of a branch to go on with; its neighbours' keys narrow the span. TC_DAMAGED or TC_FOUND. */
static inline int tc_choose_child(const tc_page* page, const tc_key* key, uint64_t* child, tc_span* span) {
    uint32_t first = 1, last = page->n;         /* the answer is one before the first greater key */
    const uint8_t* node;
    while (first < last) {
        uint32_t middle = (first + last) / 2;
        if ((node = tc_node_of(page, middle)) == NULL) return TC_DAMAGED;
        int order = tc_compare_key(key, node);
        int is_mine = tc_u16(node + 6) == TC_INT_KEY && key->n == TC_INT_KEY && node[TC_NODE_HEAD] == key->bytes[0];
        if (order < 0) {
            last = middle;
            if (is_mine) span->high = tc_big_u64(node + TC_NODE_HEAD + 1);
        } else {
            first = middle + 1;
            if (is_mine) span->low = tc_big_u64(node + TC_NODE_HEAD + 1);
        }
    }
    if ((node = tc_node_of(page, first - 1)) == NULL) return TC_DAMAGED;
    *child = (uint64_t)tc_u16(node) | (uint64_t)tc_u16(node + 2) << 16 | (uint64_t)tc_u16(node + 4) << 32;
    return TC_FOUND;
}

/* The node of a key in a leaf. */
static inline int tc_find_node(const tc_page* page, const tc_key* key, const tc_span* span, const uint8_t** found) {
    uint32_t first = 0, last = page->n, step = 1;
    uint32_t at = page->n / 2;
    if (key->n == TC_INT_KEY && key->number >= span->low && key->number < span->high) {
        double part = (double)(key->number - span->low) / (double)(span->high - span->low);
        at = (uint32_t)(part * (double)page->n);
        if (at >= page->n) at = page->n - 1;
    } else {
        step = page->n;
    }
    while (first < last) {
        const uint8_t* node = tc_node_of(page, at);
        if (node == NULL) return TC_DAMAGED;
        int order = tc_compare_key(key, node);
        if (order == 0) {
            *found = node;
            return TC_FOUND;
        }
        if (order < 0) last = at;
        else first = at + 1;
        if (last - first <= 2 * step) at = first + (last - first) / 2;
        else at = order < 0 ? last - step : first + step - 1;
        step *= 2;
    }
    return TC_ABSENT;
}

/* The row under a key: *row lies in the map, *n_bytes long. */
static inline int tc_find_row(const tc_pages* p, const uint8_t* bytes, size_t n, const uint8_t** row, size_t* n_bytes) {
    tc_key key = {bytes, n, n == TC_INT_KEY ? tc_big_u64(bytes + 1) : 0};
    tc_span span = {0, 0};
    tc_page page;
    uint64_t number = p->root;
    const uint8_t* node;
    int outcome;
    if (p->depth == 0) return TC_ABSENT;
    for (int32_t level = 1; level < p->depth; level++) {
        if (!tc_open_page(p, number, TC_PAGE_BRANCH, &page)) return TC_DAMAGED;
        if (tc_choose_child(&page, &key, &number, &span) != TC_FOUND) return TC_DAMAGED;
    }
    /* PERF: a leaf is rarely in a cache, and its list of offsets goes on in the second line. */
    __builtin_prefetch((const char*)((uintptr_t)p->map + number * p->page_bytes + 64));
    if (!tc_open_page(p, number, TC_PAGE_LEAF, &page)) return TC_DAMAGED;
    if ((outcome = tc_find_node(&page, &key, &span, &node)) != TC_FOUND) return outcome;
    size_t size = (size_t)tc_u16(node) | (size_t)tc_u16(node + 2) << 16;
    const uint8_t* data = node + TC_NODE_HEAD + n;
    uint16_t flags = tc_u16(node + 4);
    if (flags == TC_BIG_DATA && (size_t)(data - page.at) + 8 <= page.bytes) {
        uint64_t begin = tc_u64(data), n_pages = p->n_bytes / p->page_bytes;
        if (begin >= n_pages || TC_PAGE_HEAD + size > (n_pages - begin) * p->page_bytes) return TC_DAMAGED;
        data = p->map + begin * p->page_bytes + TC_PAGE_HEAD;
    } else if (flags != 0 || (size_t)(data - page.at) + size > page.bytes) {
        return TC_DAMAGED;
    }
    *row = data;
    *n_bytes = size;
    return TC_FOUND;
}

#endif
