/*
 * What the fuzz targets share: an interpreter with the extension linked in, so that the fuzzer sees the
 * coverage of all of it. Each target is a program of its own.
 */
#ifndef PAGEMAP_FUZZ_HARNESS_H
#define PAGEMAP_FUZZ_HARNESS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

/* What the target needs once. */
void fuzz_prepare(void);

/* One input, from the target's file; `module` is the extension. No exception may be left set. */
void fuzz_one(PyObject *module, const uint8_t *data, size_t size);

/* Ends the program, for the fuzzer to keep the input. */
#define MUST(condition) ((condition) ? (void)0 : fuzz_failed(#condition, __FILE__, __LINE__))
void fuzz_failed(const char *condition, const char *file, int line);

/* Bytes taken off the front of the input; zeroes behind its end. */
typedef struct {
    const uint8_t *at;
    size_t left;
} input;

uint64_t take(input *in, size_t bytes);

/* The exception that is set is one of those that the extension may raise: it is cleared. */
void must_be_refusal(void);

#endif
