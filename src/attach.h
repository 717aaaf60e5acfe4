/* The Python face of inject.h, for the table of functions in _pagemap.c. */
#ifndef PAGEMAP_ATTACH_H
#define PAGEMAP_ATTACH_H

#include "pagemap_module.h"

/* inject_userfaultfd(pid, flags, owner) -> stopped_ns */
PyObject *pagemap_inject_userfaultfd(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
