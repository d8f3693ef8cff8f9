/* Counts what CPython allocates: blocks and bytes, of its `mem` and `obj` domains. Resizing a block is no new block.
   Loaded by the application of the benchmark with ctypes; every function is called with the GIL held. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static PyMemAllocatorEx originals[2];
static const PyMemAllocatorDomain domains[2] = {PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
static unsigned long long blocks, bytes, large;
static int counting;

/* What is larger than this comes from the C library, everything else from CPython's own pools. */
#define LARGE 512

static void count_one(size_t size) {
    blocks++;
    bytes += size;
    if (size > LARGE)
        large += size;
}

static void *counted_malloc(void *context, size_t size) {
    PyMemAllocatorEx *original = context;
    count_one(size);
    return original->malloc(original->ctx, size);
}

static void *counted_calloc(void *context, size_t number, size_t size) {
    PyMemAllocatorEx *original = context;
    count_one(number * size);
    return original->calloc(original->ctx, number, size);
}

static void *counted_realloc(void *context, void *block, size_t size) {
    PyMemAllocatorEx *original = context;
    if (block == NULL)
        count_one(size);
    return original->realloc(original->ctx, block, size);
}

static void passed_free(void *context, void *block) {
    PyMemAllocatorEx *original = context;
    original->free(original->ctx, block);
}

void count_allocations(void) {
    if (counting)
        return;
    counting = 1;
    for (int number = 0; number < 2; number++) {
        PyMem_GetAllocator(domains[number], &originals[number]);
        PyMemAllocatorEx counted = {&originals[number], counted_malloc, counted_calloc, counted_realloc, passed_free};
        PyMem_SetAllocator(domains[number], &counted);
    }
}

unsigned long long allocated_blocks(void) { return blocks; }

unsigned long long allocated_bytes(void) { return bytes; }

unsigned long long allocated_in_large_blocks(void) { return large; }
