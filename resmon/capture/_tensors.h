/* What Python's tensors say of themselves, for _native.c. */

/* What is asked of tensors, made once; and what a plain one is: of this very type, dtype and layout. */
static PyObject *GRAD, *IS_CPU, *DTYPE, *LAYOUT, *SHAPE, *IS_CONTIGUOUS, *DATA_PTR, *NUMEL, *TENSOR, *PLAIN_DTYPE, *PLAIN_LAYOUT;

/* What a tensor is, told in one call instead of six: DLPack's table of C functions, which torch has from 2.10 on. These are as its
 * dlpack.h lays them out for all versions 1.x; where a tensor type has no such table, TELL stays NULL. */
enum { DL_CPU = 1, DL_FLOAT = 2 };
struct dl_tensor {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t dimensions;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    const int64_t *shape, *strides; /* in elements; no strides are those of an array in order */
    uint64_t offset;                /* in bytes */
};
struct dl_table {
    struct {
        uint32_t major, minor;
    } version;
    void *older, *allocate, *give, *take;
    int (*tell)(void *tensor, struct dl_tensor *into); /* borrows, whether or not it requires gradients; 0, or -1 and an error */
};
static int (*TELL)(void *, struct dl_tensor *);

static PyObject *learn_to_tell(void)
{
    PyObject *capsule = PyObject_GetAttrString(TENSOR, "__dlpack_c_exchange_api__");
    const struct dl_table *table = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    TELL = table != NULL && table->version.major == 1 ? table->tell : NULL; /* the table lives as long as the process */
    Py_XDECREF(capsule);
    PyErr_Clear();
    Py_RETURN_NONE;
}

static PyObject *plain_is(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct {
        PyObject **name;
        const char *text;
    } names[] = {{&GRAD, "grad"},
                 {&IS_CPU, "is_cpu"},
                 {&DTYPE, "dtype"},
                 {&LAYOUT, "layout"},
                 {&SHAPE, "shape"},
                 {&IS_CONTIGUOUS, "is_contiguous"},
                 {&DATA_PTR, "data_ptr"},
                 {&NUMEL, "numel"}};
    PyObject **of[] = {&TENSOR, &PLAIN_DTYPE, &PLAIN_LAYOUT};
    if (!expects(given, 3))
        return NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (*names[i].name == NULL && (*names[i].name = PyUnicode_InternFromString(names[i].text)) == NULL)
            return NULL;
    for (int i = 0; i < 3; i++) {
        PyObject *before = *of[i];
        Py_INCREF(arguments[i]);
        *of[i] = arguments[i];
        Py_XDECREF(before);
    }
    return learn_to_tell();
}

/* Whether `of`'s attribute is this very object; -1 and an error where it has none. */
static int attribute_is(PyObject *of, PyObject *name, PyObject *wanted)
{
    PyObject *found = PyObject_GetAttr(of, name);
    if (found == NULL)
        return -1;
    Py_DECREF(found);
    return found == wanted;
}

static int number(PyObject *of, PyObject *method, size_t *value)
{
    PyObject *found = PyObject_CallMethodObjArgs(of, method, NULL);
    int is_number = found != NULL && whole(found, value);
    Py_XDECREF(found);
    return is_number;
}

/* A tensor of float32, dense in main memory. */
struct plain {
    const float *data;
    size_t n;
};

static int at(PyObject *tensor, struct plain *of)
{
    size_t where;
    if (!number(tensor, DATA_PTR, &where) || !number(tensor, NUMEL, &of->n))
        return 0;
    memcpy(&of->data, &where, sizeof where);
    return is_there(of->data, of->n);
}

/* Likewise, by what was told of it: float32, in main memory, its elements in order. */
static int plain_as_told(const struct dl_tensor *told, struct plain *of)
{
    if (told->device.type != DL_CPU || told->dtype.code != DL_FLOAT || told->dtype.bits != 32 || told->dtype.lanes != 1)
        return 0;
    int64_t n = 1, in_order = 1;
    for (int32_t i = told->dimensions - 1; i >= 0; i--) {
        in_order = in_order && (told->strides == NULL || told->shape[i] == 1 || told->strides[i] == n);
        n *= told->shape[i];
    }
    if (!in_order && n != 0)
        return 0;
    of->data = told->data == NULL ? NULL : (const float *)((const char *)told->data + told->offset);
    of->n = (size_t)n;
    return is_there(of->data, of->n) ? 1 : -1;
}

/* Whether a tensor is of that kind, by what it says itself, and in order: 1 or 0; -1 and an error. */
static int plain(PyObject *tensor, struct plain *of)
{
    struct dl_tensor told;
    if (TENSOR == NULL || (PyObject *)Py_TYPE(tensor) != TENSOR)
        return 0;
    if (TELL != NULL) {
        if (TELL(tensor, &told) == 0)
            return plain_as_told(&told, of);
        PyErr_Clear(); /* sparse, say, for which it has no words */
    }
    int is = attribute_is(tensor, IS_CPU, Py_True);
    if (is == 1)
        is = attribute_is(tensor, DTYPE, PLAIN_DTYPE);
    if (is == 1)
        is = attribute_is(tensor, LAYOUT, PLAIN_LAYOUT);
    if (is != 1)
        return is;
    PyObject *contiguous = PyObject_CallMethodObjArgs(tensor, IS_CONTIGUOUS, NULL);
    if (contiguous == NULL)
        return -1;
    Py_DECREF(contiguous);
    if (contiguous != Py_True)
        return 0;
    return at(tensor, of) ? 1 : -1;
}
