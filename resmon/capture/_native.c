/* Reads tensors in main memory: sums of squares and histograms of magnitudes.
 *
 * A training step leaves little time, and what a block's numbers cost is reading its tensors once and everything around that. So
 * there is one call per residual add, which reads skip and branch in a single pass and makes their sum in registers on the way,
 * and one per gradient. Addresses and sizes come from Python (sums.py, sample.py), which vouches that the memory is dense and alive.
 *
 * Sums are exact enough by two levels: at most BLOCK elements are added in float32, in LANES separate lanes, and blocks in float64.
 * Where a block's sum leaves the range in which float32 squares lose nothing, that block is read again in float64. So a sum that is
 * not finite means that an element is not.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 32
#define BLOCK 2048
#define RELEASE (1 << 20) /* elements from which other Python threads may run meanwhile */

/* The same code for several instruction sets; the loader takes the widest that the processor has. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

enum dtype { FLOAT32, FLOAT64, FLOAT16, BFLOAT16, DTYPES };

/* Sums of float32 squares of n elements between these have neither lost a small element nor overflowed. */
static int is_safe(double total, size_t n)
{
    return total > 1e-30 * (double)n && total < 1e36 * (double)n;
}

static double bfloat16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static double float16(uint16_t half)
{
    uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
    double value = exponent == 31 ? (fraction ? NAN : INFINITY)
                   : exponent     ? ldexp(1024 + fraction, (int)exponent - 25)
                                  : ldexp(fraction, -24);
    return half >> 15 ? -value : value;
}

static double element(const void *data, enum dtype dtype, size_t i)
{
    switch (dtype) {
    case FLOAT64: return ((const double *)data)[i];
    case FLOAT16: return float16(((const uint16_t *)data)[i]);
    case BFLOAT16: return bfloat16(((const uint16_t *)data)[i]);
    default: return ((const float *)data)[i];
    }
}

static double added(const float *lane)
{
    double total = 0;
    for (int j = 0; j < LANES; j++)
        total += lane[j];
    return total;
}

WIDE static double squares32(const float *x, size_t n)
{
    double total = 0;
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        const float *block = x + begin;
        size_t size = n - begin < BLOCK ? n - begin : BLOCK, i = 0;
        float lane[LANES] = {0};
        for (; i + LANES <= size; i += LANES)
            for (int j = 0; j < LANES; j++)
                lane[j] += block[i + j] * block[i + j];
        for (int j = 0; i + j < size; j++)
            lane[j] += block[i + j] * block[i + j];
        double sum = added(lane);
        if (!is_safe(sum, size)) {
            sum = 0;
            for (i = 0; i < size; i++)
                sum += (double)block[i] * block[i];
        }
        total += sum;
    }
    return total;
}

WIDE static double squares16(const uint16_t *x, size_t n, int is_bfloat)
{
    double total = 0;
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        float wide[BLOCK];
        const uint16_t *block = x + begin;
        size_t size = n - begin < BLOCK ? n - begin : BLOCK;
        uint16_t largest = 0;
        if (is_bfloat) {
            for (size_t i = 0; i < size; i++) {
                uint32_t bits = (uint32_t)block[i] << 16;
                memcpy(&wide[i], &bits, sizeof bits);
            }
        } else {
            /* The bits of a float16, moved to where float32 has them, are the value less 2^112; infinity and NaN aside. */
            for (size_t i = 0; i < size; i++) {
                uint16_t magnitude = block[i] & 0x7FFF;
                uint32_t bits = (uint32_t)magnitude << 13;
                largest = magnitude > largest ? magnitude : largest;
                memcpy(&wide[i], &bits, sizeof bits);
                wide[i] *= 0x1p112f;
            }
        }
        if (largest < 0x7C00)
            total += squares32(wide, size);
        else
            for (size_t i = 0; i < size; i++)
                total += float16(block[i]) * float16(block[i]);
    }
    return total;
}

WIDE static double squares64(const double *x, size_t n)
{
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += x[i + j] * x[i + j];
    for (int j = 0; i + j < n; j++)
        lane[j] += x[i + j] * x[i + j];
    double total = 0;
    for (int j = 0; j < LANES; j++)
        total += lane[j];
    if (isinf(total)) { /* the largest there is, where squares overflowed and no element is infinite */
        for (i = 0; i < n; i++)
            if (!isfinite(x[i]))
                return total;
        total = DBL_MAX;
    }
    return total;
}

static double squares(const void *data, enum dtype dtype, size_t n)
{
    switch (dtype) {
    case FLOAT64: return squares64(data, n);
    case FLOAT16: return squares16(data, n, 0);
    case BFLOAT16: return squares16(data, n, 1);
    default: return squares32(data, n);
    }
}

struct addition {
    const float *skip, *branch;
    float skip_factor, branch_factor; /* what each operand is multiplied with before the add */
};

/* The sums of squares of skip, branch and their sum, of n elements each. */
WIDE static void add_squares(const struct addition *of, size_t n, double sums[3])
{
    const float p = of->skip_factor, q = of->branch_factor;
    sums[0] = sums[1] = sums[2] = 0;
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        const float *x = of->skip + begin, *f = of->branch + begin;
        size_t size = n - begin < BLOCK ? n - begin : BLOCK, i = 0;
        float skip[LANES] = {0}, branch[LANES] = {0}, output[LANES] = {0};
        for (; i + LANES <= size; i += LANES)
            for (int j = 0; j < LANES; j++) {
                float a = x[i + j] * p, b = f[i + j] * q, y = a + b;
                skip[j] += a * a;
                branch[j] += b * b;
                output[j] += y * y;
            }
        for (int j = 0; i + j < size; j++) {
            float a = x[i + j] * p, b = f[i + j] * q, y = a + b;
            skip[j] += a * a;
            branch[j] += b * b;
            output[j] += y * y;
        }
        double sum[3] = {added(skip), added(branch), added(output)};
        if (!(is_safe(sum[0], size) && is_safe(sum[1], size) && is_safe(sum[2], size))) {
            sum[0] = sum[1] = sum[2] = 0;
            for (i = 0; i < size; i++) {
                float a = x[i] * p, b = f[i] * q, y = a + b;
                sum[0] += (double)a * a;
                sum[1] += (double)b * b;
                sum[2] += (double)y * y;
            }
        }
        for (int k = 0; k < 3; k++)
            sums[k] += sum[k];
    }
}

/* A histogram: cells[0] gathers the finite magnitudes, then come the buckets: of upper edges 2^low, 2^(low+1), ..., `larger` of
 * them, then larger than the last edge, then zero, then not finite. */
struct histogram {
    double *cells;
    int low, larger;
};

static void count(const struct histogram *into, double value)
{
    int column;
    value = fabs(value);
    if (!isfinite(value)) {
        column = into->larger + 2;
    } else if (value == 0) {
        column = into->larger + 1;
    } else {
        uint64_t bits;
        memcpy(&bits, &value, sizeof bits);
        /* One less, so that a power of two falls into the bucket that it closes. */
        int exponent = (int)((bits - 1) >> 52) - 1022;
        column = exponent - into->low;
        column = column < 0 ? 0 : column > into->larger ? into->larger : column;
        into->cells[0] += value;
    }
    into->cells[1 + column] += 1;
}

static void clear(const struct histogram *into)
{
    memset(into->cells, 0, (size_t)(into->larger + 4) * sizeof *into->cells);
}

/* -- what Python calls --------------------------------------------------------------------------------------------------------- */

static int whole(PyObject *argument, size_t *value)
{
    *value = PyLong_AsSize_t(argument);
    return !(*value == (size_t)-1 && PyErr_Occurred());
}

static int address(PyObject *argument, void *pointer)
{
    void *value = PyLong_AsVoidPtr(argument);
    memcpy(pointer, &value, sizeof value);
    return value != NULL || !PyErr_Occurred();
}

/* A tensor without memory of its own (a wrapper, a fake one) has no address; only one without elements may. */
static int is_there(const void *data, size_t n)
{
    if (data != NULL || n == 0)
        return 1;
    PyErr_SetString(PyExc_ValueError, "the tensor has no memory of its own");
    return 0;
}

static int real(PyObject *argument, float *value)
{
    *value = (float)PyFloat_AsDouble(argument);
    return !PyErr_Occurred();
}

static int kind(PyObject *argument, enum dtype *dtype)
{
    long value = PyLong_AsLong(argument);
    if (value < 0 || value >= DTYPES) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "unknown dtype");
        return 0;
    }
    *dtype = (enum dtype)value;
    return 1;
}

static int buckets(PyObject *const *arguments, struct histogram *into)
{
    into->low = (int)PyLong_AsLong(arguments[0]);
    into->larger = (int)PyLong_AsLong(arguments[1]);
    return address(arguments[2], &into->cells) && !PyErr_Occurred();
}

static int expects(Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return 1;
    PyErr_Format(PyExc_TypeError, "%zd arguments expected, %zd given", wanted, given);
    return 0;
}

static PyObject *square(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    const void *data;
    enum dtype dtype;
    size_t n;
    double total;
    if (!expects(given, 3) || !address(arguments[0], &data) || !kind(arguments[1], &dtype) || !whole(arguments[2], &n) ||
        !is_there(data, n))
        return NULL;
    if (n < RELEASE) {
        total = squares(data, dtype, n);
    } else {
        Py_BEGIN_ALLOW_THREADS
        total = squares(data, dtype, n);
        Py_END_ALLOW_THREADS
    }
    return PyFloat_FromDouble(total);
}

static PyObject *magnitudes(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    const void *data;
    enum dtype dtype;
    size_t n, stride;
    struct histogram into;
    if (!expects(given, 7) || !address(arguments[0], &data) || !kind(arguments[1], &dtype) || !whole(arguments[2], &n) ||
        !whole(arguments[3], &stride) || !buckets(arguments + 4, &into) || !is_there(data, n))
        return NULL;
    clear(&into);
    for (size_t i = 0; i < n; i += stride)
        count(&into, element(data, dtype, i));
    Py_RETURN_NONE;
}

static PyObject *addition(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct addition of;
    double *sums;
    size_t n, stride;
    struct histogram into;
    if (!expects(given, 10) || !address(arguments[0], &of.skip) || !address(arguments[1], &of.branch) ||
        !real(arguments[2], &of.skip_factor) || !real(arguments[3], &of.branch_factor) || !whole(arguments[4], &n) ||
        !address(arguments[5], &sums) || !whole(arguments[6], &stride) || !buckets(arguments + 7, &into) || !is_there(of.skip, n) ||
        !is_there(of.branch, n))
        return NULL;
    if (n < RELEASE) {
        add_squares(&of, n, sums);
    } else {
        Py_BEGIN_ALLOW_THREADS
        add_squares(&of, n, sums);
        Py_END_ALLOW_THREADS
    }
    clear(&into);
    for (size_t i = 0; i < n; i += stride)
        count(&into, of.skip[i] * of.skip_factor + of.branch[i] * of.branch_factor);
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"square", (PyCFunction)(void (*)(void))square, METH_FASTCALL, NULL},
    {"magnitudes", (PyCFunction)(void (*)(void))magnitudes, METH_FASTCALL, NULL},
    {"addition", (PyCFunction)(void (*)(void))addition, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "resmon.capture._native", NULL, 0, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&MODULE);
}
