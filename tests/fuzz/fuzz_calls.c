/*
 * The argument surface: any sequence of calls of every function and method of the extension, with arguments
 * that fit, nearly fit and do not fit. Each call must answer, or refuse with a known exception; the
 * sanitizers watch the memory.
 *
 * What a call could do outside the extension is fenced in: userfaultfds see only an arena that nobody
 * touches, process ids are ones that cannot be attached to, descriptors are those of this list, and a
 * RegionBuffer is small or impossibly large.
 */
#include "harness.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ARENA_PAGES = 64, SLOTS = 8, MOST_ARGUMENTS = 12, MOST_USERFAULTFDS = 8 };

typedef struct {
    PyObject *module, *region_buffer;
    PyObject *slots[SLOTS]; /* results and buffers, for later calls; NULL where there is none */
    int userfaultfds[MOST_USERFAULTFDS];
    size_t userfaultfd_count;
} machine;

static uint64_t arena, page_size;
static int descriptors[5];
static PyObject *wild[10], *owner_type;

void
fuzz_prepare(void)
{
    static const char *const sources[] = {
        "None",
        "'text'",
        "-1",
        "1 << 64",
        "2.5",
        "b'readonly' * 24",
        "object()",
        "[]",
        "type('Refuses', (), {'__index__': lambda self: 1 // 0})()",
        "type('Odd', (), {'dtype': 5, '__index__': lambda self: 4096, 'fileno': lambda self: -7})()",
    };
    PyObject *globals = PyDict_New();

    page_size = (uint64_t)sysconf(_SC_PAGESIZE);
    arena = (uint64_t)(uintptr_t)mmap(NULL, ARENA_PAGES * page_size, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    MUST(arena != (uint64_t)(uintptr_t)MAP_FAILED);
    descriptors[0] = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    descriptors[1] = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    descriptors[2] = open("/dev/null", O_RDWR | O_CLOEXEC);
    descriptors[3] = 1 << 20;
    descriptors[4] = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    MUST(descriptors[0] >= 0 && descriptors[1] >= 0 && descriptors[2] >= 0 && descriptors[4] >= 0);
    MUST(PyDict_SetItemString(globals, "__builtins__", PyEval_GetBuiltins()) == 0);
    for (size_t i = 0; i < sizeof(sources) / sizeof(sources[0]); i++) {
        wild[i] = PyRun_String(sources[i], Py_eval_input, globals, globals);
        MUST(wild[i] != NULL);
    }
    owner_type = PyRun_String("type('Owner', (), {})", Py_eval_input, globals, globals);
    MUST(owner_type != NULL);
    Py_DECREF(globals);
}

static uint64_t
arena_address(input *in)
{
    return arena + take(in, 1) % (ARENA_PAGES + 1) * page_size;
}

static PyObject *
number(uint64_t value)
{
    return PyLong_FromUnsignedLongLong(value);
}

/* Memory of some size, kind and alignment, as long as the input says. */
static PyObject *
new_buffer(input *in)
{
    uint64_t kind = take(in, 1), length = take(in, 1);
    PyObject *array = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(length * (kind & 8 ? 1 : 24)));
    PyObject *view, *cast;

    MUST(array != NULL);
    memset(PyByteArray_AsString(array), (int)take(in, 1), (size_t)PyByteArray_Size(array));
    if ((kind & 3) == 0) {
        return array;
    }
    view = PyMemoryView_FromObject(array);
    Py_DECREF(array);
    MUST(view != NULL);
    cast = (kind & 3) == 1   ? PyObject_CallMethod(view, "cast", "s", kind & 16 ? "Q" : "H")
           : (kind & 3) == 2 ? PySequence_GetSlice(view, (Py_ssize_t)(kind >> 5), PY_SSIZE_T_MAX)
                             : PyObject_CallMethod(view, "toreadonly", NULL);
    Py_DECREF(view);
    if (cast == NULL) {
        PyErr_Clear(); /* the length does not fit the items */
        return PyLong_FromLong(3);
    }
    return cast;
}

static PyObject *
slot(machine *m, input *in)
{
    PyObject *object = m->slots[take(in, 1) % SLOTS];

    return Py_NewRef(object == NULL ? Py_None : object);
}

static int
descriptor(machine *m, input *in)
{
    uint64_t which = take(in, 1) % (5 + m->userfaultfd_count);

    return which < 5 ? descriptors[which] : m->userfaultfds[which - 5];
}

/*
 * n: a number. s: a small one. a: an address. u: the same, within the arena or where nothing is. f: a
 * descriptor. m: one that ends before memory does. b: a buffer. r: a RegionBuffer. c: a capacity. p: a
 * process. w: ranges to read. t: the masks of a query. o: an owner of a descriptor.
 */
static PyObject *
argument(machine *m, char kind, input *in)
{
    uint64_t choice = take(in, 1);

    if (choice < 16) {
        return Py_NewRef(wild[take(in, 1) % (sizeof(wild) / sizeof(wild[0]))]);
    }
    switch (kind) {
    case 'n':
        return number(take(in, choice % 9));
    case 's':
        return number(take(in, 1) % 64);
    case 'a':
        return number(choice & 1 ? arena_address(in) : take(in, 8));
    case 'u':
        return number(choice & 1 ? arena_address(in) : take(in, 8) | UINT64_C(1) << 63);
    case 'f':
        return PyLong_FromLong(descriptor(m, in));
    case 'm':
        return PyLong_FromLong(descriptors[1 + choice % 4]);
    case 'b':
    case 'r':
        return choice & 1 || kind == 'r' ? slot(m, in) : new_buffer(in);
    case 'c':
        return number(choice < 240 ? take(in, 1) % 200 : UINT64_C(1) << 56 | take(in, 8));
    case 'p':
        return PyLong_FromLong(choice & 1 ? getpid() : choice & 2 ? 0 : INT32_MAX);
    case 'o':
        return PyObject_CallNoArgs(owner_type);
    case 't': {
        Py_ssize_t count = choice < 240 ? 4 : (Py_ssize_t)(choice % 6);
        PyObject *masks = PyTuple_New(count);

        for (Py_ssize_t i = 0; i < count; i++) {
            MUST(PyTuple_SetItem(masks, i, argument(m, 'n', in)) == 0);
        }
        return masks;
    }
    default: {
        uint64_t ranges[4] = {arena, arena_address(in), arena_address(in), arena_address(in)};
        PyObject *bytes = PyByteArray_FromStringAndSize((const char *)ranges, sizeof(ranges));
        PyObject *view = PyMemoryView_FromObject(bytes);
        PyObject *cast = PyObject_CallMethod(view, "cast", "s", choice & 8 ? "Q" : "B");

        Py_DECREF(view);
        Py_DECREF(bytes);
        return cast;
    }
    }
}

static const struct {
    const char *name, *arguments;
    bool method;
} CALLS[] = {
    {"pagemap_scan", "faab", false},
    {"scan_small", "fuut", false},
    {"decode_entries", "bnbnnnnn", false},
    {"read_entries", "fab", false},
    {"read_maps", "m", false},
    {"parse_maps", "b", false},
    {"query_vma", "fa", false},
    {"userfaultfd", "no", false},
    {"uffd_api", "fn", false},
    {"uffd_register", "fuun", false},
    {"uffd_unregister", "fuu", false},
    {"uffd_protect", "fuunn", false},
    {"inject_userfaultfd", "pno", false},
    {"RegionBuffer", "c", false},
    {"scan", "sfaannnnnn", true},
    {"scan_whole", "faat", true},
    {"read", "sfwaannnnn", true},
    {"append", "srss", true},
    {"clear", "", true},
    {"resize", "c", true},
};
enum { CALL_COUNT = sizeof(CALLS) / sizeof(CALLS[0]) };

static const char *const KEYWORDS[] = {"flags",         "max_pages",           "category_inverted",
                                       "category_mask", "category_anyof_mask", "return_mask",
                                       "unknown"};

static PyObject *
keywords(machine *m, input *in)
{
    PyObject *dict = PyDict_New();
    uint64_t which = take(in, 1);

    MUST(dict != NULL);
    for (size_t i = 0; i < sizeof(KEYWORDS) / sizeof(KEYWORDS[0]); i++) {
        if (which >> i & 1) {
            PyObject *value = argument(m, 'n', in);

            MUST(PyDict_SetItemString(dict, KEYWORDS[i], value) == 0);
            Py_DECREF(value);
        }
    }
    return dict;
}

static void
keep(machine *m, input *in, PyObject *object)
{
    PyObject **place = &m->slots[take(in, 1) % SLOTS];

    Py_XDECREF(*place);
    *place = object;
}

static void
call(machine *m, unsigned index, input *in)
{
    const char *kinds = CALLS[index].arguments;
    size_t count = strlen(kinds), given = take(in, 1) < 250 ? count : take(in, 1) % MOST_ARGUMENTS;
    PyObject *tuple = PyTuple_New((Py_ssize_t)given), *named = NULL, *owner, *function, *answer = NULL;

    MUST(tuple != NULL);
    for (size_t i = 0; i < given; i++) {
        PyObject *value = argument(m, i < count ? kinds[i] : 's', in);

        MUST(value != NULL && PyTuple_SetItem(tuple, (Py_ssize_t)i, value) == 0);
    }
    if (index == 0) {
        named = keywords(m, in);
    }
    owner = CALLS[index].method ? slot(m, in) : Py_NewRef(m->module);
    if (!CALLS[index].method || Py_TYPE(owner) == (PyTypeObject *)m->region_buffer) {
        function = PyObject_GetAttrString(owner, CALLS[index].name);
        MUST(function != NULL);
        answer = PyObject_Call(function, tuple, named);
        Py_DECREF(function);
        if (answer != NULL && strcmp(CALLS[index].name, "userfaultfd") == 0) {
            PyObject *stored = PyObject_GetAttrString(PyTuple_GetItem(tuple, 1), "fd");
            int fd = (int)PyLong_AsLong(stored);

            Py_DECREF(stored);
            if (m->userfaultfd_count == MOST_USERFAULTFDS) {
                close(fd);
            } else {
                m->userfaultfds[m->userfaultfd_count++] = fd;
            }
        }
        if (answer != NULL) {
            keep(m, in, answer);
        } else if (PyErr_ExceptionMatches(PyExc_ZeroDivisionError)) {
            PyErr_Clear(); /* out of an argument's own __index__ */
        } else {
            must_be_refusal();
        }
    }
    Py_DECREF(owner);
    Py_XDECREF(named);
    Py_DECREF(tuple);
}

/* What is done with buffers besides calls. */
static void
handle(machine *m, unsigned what, input *in)
{
    PyObject *object;

    if (what == 0) {
        keep(m, in, new_buffer(in));
        return;
    }
    if (what == 1) {
        keep(m, in, NULL);
        return;
    }
    object = slot(m, in);
    if (PyObject_CheckBuffer(object)) {
        PyObject *view = PyMemoryView_FromObject(object);

        if (view == NULL) {
            PyErr_Clear(); /* released, or being written */
        } else {
            keep(m, in, view);
        }
    }
    Py_DECREF(object);
}

void
fuzz_one(PyObject *module, const uint8_t *data, size_t size)
{
    input in = {data, size};
    machine m = {.module = module};

    m.region_buffer = PyObject_GetAttrString(module, "RegionBuffer");
    for (int steps = 0; in.left > 0 && steps < 64; steps++) {
        unsigned op = (unsigned)take(&in, 1) % (CALL_COUNT + 3);

        if (op < CALL_COUNT) {
            call(&m, op, &in);
        } else {
            handle(&m, op - CALL_COUNT, &in);
        }
    }
    for (size_t i = 0; i < SLOTS; i++) {
        Py_XDECREF(m.slots[i]);
    }
    for (size_t i = 0; i < m.userfaultfd_count; i++) {
        close(m.userfaultfds[i]);
    }
    Py_DECREF(m.region_buffer);
}
