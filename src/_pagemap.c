/* The extension module: its state, its functions, its constants. What they do is in their own files. */
#include "pagemap_module.h"

#include "attach.h"

#define FASTCALL(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef module_methods[] = {
    {"pagemap_scan", FASTCALL(pagemap_scan), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("pagemap_scan(fd, start, end, /, vec=None, *, flags=0, max_pages=0, category_inverted=0,\n"
               "             category_mask=0, category_anyof_mask=0, return_mask=0) -> (n, walk_end)\n\n"
               "One PAGEMAP_SCAN ioctl (Linux 6.7; Documentation/admin-guide/mm/pagemap.rst).\n\n"
               "fd: an open /proc/PID/pagemap. start, end: addresses in bytes, end exclusive. vec: any\n"
               "writable contiguous buffer of 24-byte items (REGION_DTYPE), or None for no output.\n"
               "n: regions written to vec. walk_end: the kernel's word, stale once a walk has found more\n"
               "than 512 regions: fewer regions than vec holds (and fewer pages than max_pages) mean that\n"
               "the range is done; after a full vec go on at max(walk_end, vec[n - 1].end).\n\n"
               "Raises OSError with the kernel's errno. Raises ValueError for a WP_MATCHING scan without a\n"
               "vec or without WRITTEN in category_mask: released kernels crash or hang on these.")},
    {"scan_small", FASTCALL(pagemap_scan_small), METH_FASTCALL,
     PyDoc_STR("scan_small(fd, start, end, masks) -> bytearray of regions: all of a range of SMALL_PAGES at "
               "most.")},
    {"decode_entries", FASTCALL(pagemap_decode_entries), METH_FASTCALL,
     PyDoc_STR("decode_entries(entries, start, vec, max_pages, inverted, mask, anyof, report)\n"
               "-> (n, walk_end): entries of /proc/PID/pagemap as regions.")},
    {"read_entries", FASTCALL(pagemap_read_entries), METH_FASTCALL,
     PyDoc_STR(
         "read_entries(fd, start, out): the entries from `start` on; OSError ESRCH at the end of the file.")},
    {"read_maps", pagemap_read_maps, METH_O, PyDoc_STR("read_maps(fd) -> bytes of an open /proc/PID/maps")},
    {"parse_maps", pagemap_parse_maps, METH_O, PyDoc_STR("parse_maps(text) -> bytes of VMA records")},
    {"query_vma", FASTCALL(pagemap_query_vma), METH_FASTCALL,
     PyDoc_STR("query_vma(fd, address) -> (start, end, page_size, inode) or None: one PROCMAP_QUERY ioctl")},
    {"userfaultfd", FASTCALL(pagemap_userfaultfd), METH_FASTCALL,
     PyDoc_STR("userfaultfd(flags, owner): the descriptor becomes owner.fd")},
    {"uffd_api", FASTCALL(pagemap_uffd_api), METH_FASTCALL,
     PyDoc_STR("uffd_api(fd, features) -> (features, ioctls)")},
    {"uffd_register", FASTCALL(pagemap_uffd_register), METH_FASTCALL,
     PyDoc_STR("uffd_register(fd, start, end, mode) -> ioctls")},
    {"uffd_unregister", FASTCALL(pagemap_uffd_unregister), METH_FASTCALL,
     PyDoc_STR("uffd_unregister(fd, start, end)")},
    {"uffd_protect", FASTCALL(pagemap_uffd_protect), METH_FASTCALL,
     PyDoc_STR("uffd_protect(fd, start, end, mode, protect)")},
    {"inject_userfaultfd", FASTCALL(pagemap_inject_userfaultfd), METH_FASTCALL,
     PyDoc_STR(
         "inject_userfaultfd(pid, flags, owner) -> stopped_ns: a userfaultfd created inside another\n"
         "process becomes owner.fd. OSError with an attribute `stage` that names the step that failed.")},
    {NULL, NULL, 0, NULL},
};

static int
add_constants(PyObject *module)
{
    static const struct {
        const char *name;
        long value;
    } constants[] = {
        {"SMALL_PAGES", SMALL_PAGES},
        {"UFFD_USER_MODE_ONLY", PMU_UFFD_USER_MODE_ONLY},
        {"UFFD_FEATURE_WP_HUGETLBFS_SHMEM", PMU_UFFD_FEATURE_WP_HUGETLBFS_SHMEM},
        {"UFFD_FEATURE_WP_UNPOPULATED", PMU_UFFD_FEATURE_WP_UNPOPULATED},
        {"UFFD_FEATURE_WP_ASYNC", PMU_UFFD_FEATURE_WP_ASYNC},
        {"UFFD_FEATURE_RWP", PMU_UFFD_FEATURE_RWP},
        {"UFFD_FEATURE_RWP_ASYNC", PMU_UFFD_FEATURE_RWP_ASYNC},
        {"UFFDIO_REGISTER_MODE_WP", PMU_UFFDIO_REGISTER_MODE_WP},
        {"UFFDIO_REGISTER_MODE_RWP", PMU_UFFDIO_REGISTER_MODE_RWP},
    };

    for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++) {
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
module_exec(PyObject *module)
{
    static const char *const keywords[SCAN_KEYWORD_COUNT] = {
        "vec",         "flags", "max_pages", "category_inverted", "category_mask", "category_anyof_mask",
        "return_mask",
    };
    module_state *state = PyModule_GetState(module);

    for (int i = 0; i < SCAN_KEYWORD_COUNT; i++) {
        state->scan_keywords[i] = PyUnicode_InternFromString(keywords[i]);
        if (state->scan_keywords[i] == NULL) {
            return -1;
        }
    }
    state->str_dtype = PyUnicode_InternFromString("dtype");
    state->str_hasobject = PyUnicode_InternFromString("hasobject");
    state->region_buffer_type = PyType_FromModuleAndSpec(module, &region_buffer_spec, NULL);
    if (state->str_dtype == NULL || state->str_hasobject == NULL || state->region_buffer_type == NULL ||
        PyModule_AddType(module, (PyTypeObject *)state->region_buffer_type) < 0) {
        return -1;
    }
    return add_constants(module);
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = PyModule_GetState(module);

    Py_VISIT(state->region_buffer_type);
    Py_VISIT(atomic_load(&state->plain_dtype));
    return 0;
}

static int
module_clear(PyObject *module)
{
    module_state *state = PyModule_GetState(module);

    for (int i = 0; i < SCAN_KEYWORD_COUNT; i++) {
        Py_CLEAR(state->scan_keywords[i]);
    }
    Py_CLEAR(state->str_dtype);
    Py_CLEAR(state->str_hasobject);
    Py_CLEAR(state->region_buffer_type);
    Py_XDECREF(atomic_exchange(&state->plain_dtype, NULL));
    return 0;
}

static void
module_free(void *module)
{
    module_clear((PyObject *)module);
}

/*
 * Slots that a Python does not know make it refuse the module: per-interpreter GILs came with 3.12 and
 * are not in the headers of the 3.11 stable ABI, so the slot is spelled out, and offered from 3.12 on.
 */
#define SLOT_MULTIPLE_INTERPRETERS 3
#define PER_INTERPRETER_GIL_SUPPORTED ((void *)2)
#ifdef Py_GIL_DISABLED
#define FREE_THREADED_SLOT {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#else
#define FREE_THREADED_SLOT
#endif

static PyModuleDef_Slot slots_311[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyModuleDef_Slot slots_312[] = {
    {Py_mod_exec, module_exec},
    {SLOT_MULTIPLE_INTERPRETERS, PER_INTERPRETER_GIL_SUPPORTED},
    FREE_THREADED_SLOT{0, NULL},
};

#define MODULE_DEF(slots)                                                                                    \
    {                                                                                                        \
        .m_base = PyModuleDef_HEAD_INIT,                                                                     \
        .m_name = "pagemap._pagemap",                                                                        \
        .m_doc = PyDoc_STR("System calls, buffers and the loops that must be fast. No policy."),             \
        .m_size = sizeof(module_state),                                                                      \
        .m_methods = module_methods,                                                                         \
        .m_slots = (slots),                                                                                  \
        .m_traverse = module_traverse,                                                                       \
        .m_clear = module_clear,                                                                             \
        .m_free = module_free,                                                                               \
    }

static PyModuleDef module_311 = MODULE_DEF(slots_311);
static PyModuleDef module_312 = MODULE_DEF(slots_312);

PyMODINIT_FUNC
PyInit__pagemap(void)
{
    return PyModuleDef_Init(Py_Version >= 0x030C0000 ? &module_312 : &module_311);
}
