/* The interpreter, libFuzzer's entry, and a main() that replays files where there is no libFuzzer. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

PyMODINIT_FUNC PyInit__pagemap(void);

/* What the interpreter allocates for good is no leak: LeakSanitizer looks away meanwhile. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/lsan_interface.h>
#define FOR_GOOD(call) (__lsan_disable(), (call), __lsan_enable())
#endif
#endif
#ifndef FOR_GOOD
#define FOR_GOOD(call) (call)
#endif

static PyObject *module;

void
fuzz_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "%s:%d: not so: %s\n", file, line, condition);
    if (PyErr_Occurred()) {
        PyErr_Print();
    }
    abort();
}

uint64_t
take(input *in, size_t bytes)
{
    uint64_t value = 0;
    size_t n = bytes < in->left ? bytes : in->left;

    memcpy(&value, in->at, n);
    in->at += n;
    in->left -= n;
    return value;
}

void
must_be_refusal(void)
{
    MUST(PyErr_Occurred() != NULL);
    MUST(PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_ValueError) ||
         PyErr_ExceptionMatches(PyExc_OSError) || PyErr_ExceptionMatches(PyExc_BufferError) ||
         PyErr_ExceptionMatches(PyExc_MemoryError));
    PyErr_Clear();
}

static void
start(void)
{
    PyConfig config;

    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.install_signal_handlers = 0;
    MUST(PyImport_AppendInittab("_pagemap", PyInit__pagemap) == 0);
    MUST(!PyStatus_Exception(Py_InitializeFromConfig(&config)));
    PyConfig_Clear(&config);
    module = PyImport_ImportModule("_pagemap");
    MUST(module != NULL);
    fuzz_prepare();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (module == NULL) {
        FOR_GOOD(start());
    }
    fuzz_one(module, data, size);
    MUST(PyErr_Occurred() == NULL);
    return 0;
}

#ifdef FUZZ_REPLAY
int
main(int argc, char **argv)
{
    static uint8_t data[1 << 20];

    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        size_t size;

        MUST(file != NULL);
        size = fread(data, 1, sizeof(data), file);
        fclose(file);
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("%d inputs\n", argc - 1);
    return 0;
}
#endif
