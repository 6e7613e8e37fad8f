/* Reads tensors in main memory: sums of squares and products, largest magnitudes, histograms of magnitudes, and what is looked at in
 * some positions or samples only.
 *
 * A training step leaves little time, and what a block's numbers cost is reading its tensors once and everything around that. So
 * there is one call per residual add, which reads skip and branch in a single pass and makes their sum in registers on the way,
 * and one per gradient. Addresses and sizes come from Python (sums.py, sample.py), which vouches that the memory is dense and alive.
 *
 * Large tensors are read by torch's own threads: where torch runs on OpenMP, its library is in the process, and its pool waits for
 * the next piece of work at just this moment. A pool of ours beside it would fight it for the cores.
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
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) && !defined(_WIN32)
#include <dlfcn.h>
#define THREADS
#endif

#define LANES 32
#define BLOCK 2048
#define CHUNK (1 << 15)   /* elements that one thread reads at a time, a multiple of BLOCK */
#define CHUNKS 1024       /* at most; larger tensors have larger ones */
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

static double largest(const float *lane)
{
    float found = 0;
    for (int j = 0; j < LANES; j++)
        found = lane[j] > found ? lane[j] : found;
    return found;
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

/* Of 16 bits: also the largest magnitude, of those that are not NaN. */
WIDE static double squares16(const uint16_t *x, size_t n, int is_bfloat, double *peak)
{
    const uint16_t infinite = is_bfloat ? 0x7F80 : 0x7C00;
    double total = 0;
    uint16_t most = 0; /* the larger magnitude has the larger bits */
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        float wide[BLOCK];
        const uint16_t *block = x + begin;
        size_t size = n - begin < BLOCK ? n - begin : BLOCK;
        uint16_t largest = 0;
        for (size_t i = 0; i < size; i++) {
            uint16_t magnitude = block[i] & 0x7FFF;
            largest = magnitude > largest ? magnitude : largest;
        }
        if (largest > infinite) {
            largest = 0;
            for (size_t i = 0; i < size; i++) {
                uint16_t magnitude = block[i] & 0x7FFF;
                magnitude = magnitude > infinite ? 0 : magnitude;
                most = magnitude > most ? magnitude : most;
            }
            largest = infinite;
        } else {
            most = largest > most ? largest : most;
        }
        if (is_bfloat) {
            for (size_t i = 0; i < size; i++) {
                uint32_t bits = (uint32_t)block[i] << 16;
                memcpy(&wide[i], &bits, sizeof bits);
            }
        } else {
            /* The bits of a float16, moved to where float32 has them, are the value less 2^112; infinity and NaN aside. */
            for (size_t i = 0; i < size; i++) {
                uint32_t bits = (uint32_t)(block[i] & 0x7FFF) << 13;
                memcpy(&wide[i], &bits, sizeof bits);
                wide[i] *= 0x1p112f;
            }
        }
        if (is_bfloat || largest < infinite)
            total += squares32(wide, size);
        else
            for (size_t i = 0; i < size; i++)
                total += float16(block[i]) * float16(block[i]);
    }
    *peak = is_bfloat ? bfloat16(most) : float16(most);
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

static double squares(const void *data, enum dtype dtype, size_t begin, size_t n)
{
    double peak;
    switch (dtype) {
    case FLOAT64: return squares64((const double *)data + begin, n);
    case FLOAT16: return squares16((const uint16_t *)data + begin, n, 0, &peak);
    case BFLOAT16: return squares16((const uint16_t *)data + begin, n, 1, &peak);
    default: return squares32((const float *)data + begin, n);
    }
}

/* The largest magnitude among n numbers; what is NaN is larger than none. */
WIDE static double largest32(const float *x, size_t n)
{
    float lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float magnitude = fabsf(x[i + j]);
            lane[j] = magnitude > lane[j] ? magnitude : lane[j];
        }
    for (int j = 0; i + j < n; j++)
        lane[j] = fabsf(x[i + j]) > lane[j] ? fabsf(x[i + j]) : lane[j];
    return largest(lane);
}

static double largest64(const double *x, size_t n)
{
    double found = 0;
    for (size_t i = 0; i < n; i++)
        found = fabs(x[i]) > found ? fabs(x[i]) : found;
    return found;
}

/* What is gathered of a chunk: sums of squares of skip, branch and output (of a single tensor: of it, the first), the sum of skip
 * times branch, and the largest magnitude of the output. */
enum gathered { SKIP, BRANCH, OUTPUT, PRODUCT, PEAK, GATHERED };

struct addition {
    const float *skip, *branch;
    float skip_factor, branch_factor; /* what each operand is multiplied with before the add */
};

/* Gathers n elements of skip, branch and their sum. */
WIDE static void add_squares(const struct addition *of, size_t n, double sums[GATHERED])
{
    const float p = of->skip_factor, q = of->branch_factor;
    float peak[LANES] = {0};
    memset(sums, 0, GATHERED * sizeof *sums);
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        const float *x = of->skip + begin, *f = of->branch + begin;
        size_t size = n - begin < BLOCK ? n - begin : BLOCK, i = 0;
        float skip[LANES] = {0}, branch[LANES] = {0}, output[LANES] = {0}, product[LANES] = {0};
        for (; i + LANES <= size; i += LANES)
            for (int j = 0; j < LANES; j++) {
                float a = x[i + j] * p, b = f[i + j] * q, y = a + b, magnitude = fabsf(y);
                skip[j] += a * a;
                branch[j] += b * b;
                output[j] += y * y;
                product[j] += a * b;
                peak[j] = magnitude > peak[j] ? magnitude : peak[j];
            }
        for (int j = 0; i + j < size; j++) {
            float a = x[i + j] * p, b = f[i + j] * q, y = a + b, magnitude = fabsf(y);
            skip[j] += a * a;
            branch[j] += b * b;
            output[j] += y * y;
            product[j] += a * b;
            peak[j] = magnitude > peak[j] ? magnitude : peak[j];
        }
        double sum[] = {added(skip), added(branch), added(output), added(product)};
        if (!(is_safe(sum[SKIP], size) && is_safe(sum[BRANCH], size) && is_safe(sum[OUTPUT], size))) {
            memset(sum, 0, sizeof sum);
            for (i = 0; i < size; i++) {
                float a = x[i] * p, b = f[i] * q, y = a + b;
                sum[SKIP] += (double)a * a;
                sum[BRANCH] += (double)b * b;
                sum[OUTPUT] += (double)y * y;
                sum[PRODUCT] += (double)a * b;
            }
        }
        for (int k = SKIP; k <= PRODUCT; k++)
            sums[k] += sum[k];
    }
    sums[PEAK] = largest(peak);
}

/* One reading of n elements: the squares of `data` and, where it is wanted, its peak; or, where there is no data, all of the
 * addition, and every stride-th sum. */
struct reading {
    const void *data;
    enum dtype dtype;
    int wants_peak;
    struct addition of;
    float *samples;
    size_t stride;
    size_t n, chunk, next;
    double sums[CHUNKS][GATHERED];
};

static void read_chunk(struct reading *r, size_t i)
{
    size_t begin = i * r->chunk, n = r->n - begin < r->chunk ? r->n - begin : r->chunk;
    double *sums = r->sums[i];
    if (r->data == NULL) {
        struct addition part = r->of;
        part.skip += begin;
        part.branch += begin;
        add_squares(&part, n, sums);
        /* Now, while the chunk is in the cache. */
        for (size_t k = (begin + r->stride - 1) / r->stride; k * r->stride < begin + n; k++) {
            size_t at = k * r->stride;
            r->samples[k] = r->of.skip[at] * r->of.skip_factor + r->of.branch[at] * r->of.branch_factor;
        }
        return;
    }
    switch (r->dtype) {
    case FLOAT64:
        sums[0] = squares64((const double *)r->data + begin, n);
        if (r->wants_peak)
            sums[PEAK] = largest64((const double *)r->data + begin, n);
        break;
    case FLOAT16:
    case BFLOAT16:
        sums[0] = squares16((const uint16_t *)r->data + begin, n, r->dtype == BFLOAT16, &sums[PEAK]);
        break;
    default:
        sums[0] = squares32((const float *)r->data + begin, n);
        if (r->wants_peak)
            sums[PEAK] = largest32((const float *)r->data + begin, n);
    }
}

#ifdef THREADS
static void read_chunks(void *reading)
{
    struct reading *r = reading;
    size_t i;
    while ((i = __atomic_fetch_add(&r->next, 1, __ATOMIC_RELAXED)) * r->chunk < r->n)
        read_chunk(r, i);
}

/* What a compiler makes of `#pragma omp parallel`: every thread of the pool calls the function once. */
typedef void (*parallel)(void (*)(void *), void *, unsigned, unsigned);

static parallel pool(void)
{
    static parallel found;
    if (found == NULL) {
        void *symbol = dlsym(RTLD_DEFAULT, "GOMP_parallel");
        memcpy(&found, &symbol, sizeof found);
    }
    return found;
}
#endif

/* Reads all chunks and adds them up in their order, so that the sums do not depend on who read what. */
static void read_all(struct reading *r, double sums[GATHERED])
{
    size_t least = (r->n + CHUNKS - 1) / CHUNKS;
    r->chunk = least <= CHUNK ? CHUNK : (least + BLOCK - 1) / BLOCK * BLOCK;
    r->next = 0;
    size_t chunks = (r->n + r->chunk - 1) / r->chunk, i = 0;
#ifdef THREADS
    if (chunks > 1 && pool() != NULL) {
        pool()(read_chunks, r, 0, 0);
        i = chunks;
    }
#endif
    for (; i < chunks; i++)
        read_chunk(r, i);
    memset(sums, 0, GATHERED * sizeof *sums);
    for (i = 0; i < chunks; i++) {
        for (int k = SKIP; k <= (r->data ? SKIP : PRODUCT); k++)
            sums[k] += r->sums[i][k];
        if ((!r->data || r->wants_peak) && r->sums[i][PEAK] > sums[PEAK])
            sums[PEAK] = r->sums[i][PEAK];
    }
}

static void read_freely(struct reading *r, double sums[GATHERED])
{
    if (r->n < RELEASE) {
        read_all(r, sums);
    } else {
        Py_BEGIN_ALLOW_THREADS
        read_all(r, sums);
        Py_END_ALLOW_THREADS
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

/* As count, of n float32 numbers: first by their exponents, in two tables in turn, so that no count waits for the one before. */
static void count32(const struct histogram *into, const float *values, size_t n)
{
    uint32_t tables[2][258] = {{0}};
    double total[2] = {0};
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        bits &= 0x7FFFFFFF;
        int finite = bits < 0x7F800000;
        /* 0 is zero, 257 what is not finite; between them 1 plus the exponent of the upper edge, biased. */
        tables[i & 1][finite ? (bits ? ((bits - 1) >> 23) + 1 : 0) : 257]++;
        total[i & 1] += finite ? fabsf(values[i]) : 0;
    }
    into->cells[0] += total[0] + total[1];
    for (int code = 0; code < 258; code++) {
        uint32_t counted = tables[0][code] + tables[1][code];
        int column = code - 127 - into->low;
        column = column < 0 ? 0 : column > into->larger ? into->larger : column;
        column = code == 0 ? into->larger + 1 : code == 257 ? into->larger + 2 : column;
        into->cells[1 + column] += counted;
    }
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
    struct reading r;
    double sums[GATHERED], *peak;
    if (!expects(given, 4) || !address(arguments[0], &r.data) || !kind(arguments[1], &r.dtype) || !whole(arguments[2], &r.n) ||
        !address(arguments[3], &peak) || !is_there(r.data, r.n))
        return NULL;
    r.wants_peak = peak != NULL;
    if (r.n == 0)
        return PyFloat_FromDouble(0);
    read_freely(&r, sums);
    if (peak != NULL && sums[PEAK] > *peak)
        *peak = sums[PEAK];
    return PyFloat_FromDouble(sums[0]);
}

/* Arrays that are in one piece, taken of their objects for the length of a call. */
#define ARRAYS 8
struct arrays {
    Py_buffer of[ARRAYS];
    int count;
};

static void let_go(struct arrays *taken)
{
    while (taken->count)
        PyBuffer_Release(&taken->of[--taken->count]);
}

/* Its elements, `size` bytes each and `n` of them, or any number where n is negative. */
static void *array(struct arrays *taken, PyObject *of, Py_ssize_t size, Py_ssize_t n)
{
    Py_buffer *view = &taken->of[taken->count];
    if (PyObject_GetBuffer(of, view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) < 0)
        return NULL;
    taken->count++;
    if (view->itemsize != size || (n >= 0 && view->len != n * size)) {
        PyErr_Format(PyExc_ValueError, "an array of %zd bytes in items of %zd; %zd items of %zd were expected", view->len,
                     view->itemsize, n, size);
        return NULL;
    }
    return view->buf;
}

#include "_tensors.h"

/* The sum of its squares. */
static double square_of(const struct plain *tensor)
{
    struct reading r;
    double sums[GATHERED] = {0};
    r.data = tensor->data;
    r.dtype = FLOAT32;
    r.wants_peak = 0;
    r.n = tensor->n;
    if (r.n)
        read_freely(&r, sums);
    return sums[0];
}

static PyObject *gradients(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct arrays taken = {.count = 0};
    double *squares, total = 0;
    uint8_t *present;
    Py_ssize_t *places;
    struct plain tensor;
    if (!expects(given, 4))
        return NULL;
    Py_ssize_t parameters = PyTuple_Size(arguments[0]);
    PyObject *others = parameters < 0 ? NULL : PyList_New(0);
    if (others == NULL)
        return NULL;
    if ((squares = array(&taken, arguments[2], sizeof *squares, -1)) == NULL)
        goto failed;
    const Py_ssize_t size = taken.of[0].len / (Py_ssize_t)sizeof *squares;
    if ((places = array(&taken, arguments[1], sizeof *places, parameters)) == NULL || (present = array(&taken, arguments[3], 1, size)) == NULL)
        goto failed;
    for (Py_ssize_t i = 0; i < parameters; i++) {
        const Py_ssize_t place = places[i];
        if (place < 0 || place >= size) {
            PyErr_SetString(PyExc_IndexError, "a parameter's place is none of the places");
            goto failed;
        }
        PyObject *gradient = PyObject_GetAttr(PyTuple_GetItem(arguments[0], i), GRAD);
        if (gradient == NULL)
            goto failed;
        squares[place] = 0;
        present[place] = gradient != Py_None;
        int is = present[place] ? plain(gradient, &tensor) : 1;
        if (is == 1 && present[place]) {
            total += squares[place] = square_of(&tensor);
        } else if (is == 0) {
            PyObject *index = PyLong_FromSsize_t(i);
            is = index == NULL ? -1 : PyList_Append(others, index);
            Py_XDECREF(index);
        }
        Py_DECREF(gradient);
        if (is < 0)
            goto failed;
    }
    let_go(&taken);
    return Py_BuildValue("Nd", others, total);
failed:
    let_go(&taken);
    Py_DECREF(others);
    return NULL;
}

static PyObject *arrived(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct plain tensor;
    double *into;
    if (!expects(given, 2) || !address(arguments[1], &into))
        return NULL;
    int is = plain(arguments[0], &tensor);
    if (is < 1)
        return is < 0 ? NULL : (Py_INCREF(Py_None), Py_None);
    double square = square_of(&tensor);
    into[0] += square;
    into[1] += 1;
    return PyBool_FromLong(isfinite(square));
}

/* A draw moves the place, which some keep before the 624 words and some behind them, and after 624 draws all words are new. So two
 * at either end tell, which are two lines of memory instead of forty. */
static PyObject *drawn(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    const uint32_t *words[2];
    uint64_t ends[4];
    if (!expects(given, 2) || !address(arguments[0], &words[0]) || !address(arguments[1], &words[1]) || !is_there(words[0], 1) ||
        !is_there(words[1], 1))
        return NULL;
    for (int i = 0; i < 2; i++) {
        memcpy(&ends[2 * i], words[i], sizeof *ends);
        memcpy(&ends[2 * i + 1], words[i] + 623, sizeof *ends);
    }
    const Py_ssize_t size = 2 * sizeof *ends;
    return Py_BuildValue("y#y#", (const char *)ends, size, (const char *)(ends + 2), size);
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
    if (stride == 0)
        return PyErr_Format(PyExc_ValueError, "the stride is 0");
    clear(&into);
    for (size_t i = 0; i < n; i += stride)
        count(&into, element(data, dtype, i));
    Py_RETURN_NONE;
}

static PyObject *addition(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct reading r;
    struct addition *of = &r.of;
    struct plain skip, branch;
    double *into_sums, *into_peak, sums[GATHERED];
    struct histogram into;
    if (!expects(given, 12) || !real(arguments[2], &of->skip_factor) || !real(arguments[3], &of->branch_factor) ||
        !whole(arguments[5], &r.stride) || !address(arguments[7], &into_sums) || !address(arguments[8], &into_peak) ||
        !buckets(arguments + 9, &into))
        return NULL;
    int is_known = arguments[6] == Py_True ? at(arguments[0], &skip) && at(arguments[1], &branch) ? 1 : -1
                                           : plain(arguments[0], &skip);
    if (is_known == 1 && arguments[6] != Py_True && (is_known = plain(arguments[1], &branch)) == 1) {
        PyObject *shape = PyObject_GetAttr(arguments[0], SHAPE);
        is_known = shape == NULL ? -1 : PyObject_RichCompareBool(shape, arguments[4], Py_EQ);
        Py_XDECREF(shape);
    }
    if (is_known < 1 || skip.n != branch.n)
        return is_known < 0 ? NULL : (Py_INCREF(Py_None), Py_None);
    if (r.stride == 0)
        return PyErr_Format(PyExc_ValueError, "the stride is 0");
    of->skip = skip.data;
    of->branch = branch.data;
    r.n = skip.n;
    size_t sampled = (r.n + r.stride - 1) / r.stride;
    r.data = NULL;
    r.samples = PyMem_Malloc(sampled * sizeof *r.samples);
    if (r.samples == NULL)
        return PyErr_NoMemory();
    read_freely(&r, sums);
    memcpy(into_sums, sums, (PRODUCT + 1) * sizeof *sums);
    into_peak[0] = sums[PEAK];
    into_peak[1] = 0;
    clear(&into);
    count32(&into, r.samples, sampled);
    PyMem_Free(r.samples);
    return PyFloat_FromDouble(sums[OUTPUT]);
}

/* Vectors of channels at some positions of a tensor: where they begin, and how far apart their elements are, in elements. */
struct vectors {
    const void *data;
    enum dtype dtype;
    const int64_t *offsets;
    size_t stride;
};

static int vectors(PyObject *const *arguments, struct vectors *at)
{
    return address(arguments[0], &at->data) && kind(arguments[1], &at->dtype) && address(arguments[2], &at->offsets) &&
           whole(arguments[3], &at->stride);
}

static double norm(const struct vectors *at, size_t i, size_t channels)
{
    size_t begin = (size_t)at->offsets[i];
    if (at->stride == 1)
        return sqrt(squares(at->data, at->dtype, begin, channels));
    double sum = 0;
    for (size_t k = 0; k < channels; k++) {
        double value = at->dtype == FLOAT32 ? ((const float *)at->data)[begin + k * at->stride]
                                            : element(at->data, at->dtype, begin + k * at->stride);
        sum += value * value;
    }
    return sqrt(sum);
}

static int compare(const void *first, const void *second)
{
    double a = *(const double *)first, b = *(const double *)second;
    return (a > b) - (a < b);
}

static PyObject *median_ratio(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct vectors skip, branch;
    size_t positions, channels, found = 0;
    if (!expects(given, 10) || !vectors(arguments, &skip) || !vectors(arguments + 4, &branch) || !whole(arguments[8], &positions) ||
        !whole(arguments[9], &channels) || !is_there(skip.data, positions * channels) ||
        !is_there(branch.data, positions * channels))
        return NULL;
    double *ratios = PyMem_Malloc((positions + 1) * sizeof *ratios);
    if (ratios == NULL)
        return PyErr_NoMemory();
    for (size_t i = 0; i < positions; i++) {
        double below = norm(&skip, i, channels), ratio = below > 0 ? norm(&branch, i, channels) / below : NAN;
        if (!isnan(ratio))
            ratios[found++] = ratio;
    }
    qsort(ratios, found, sizeof *ratios, compare);
    double median = found ? ratios[(found - 1) / 2] : NAN;
    PyMem_Free(ratios);
    return PyFloat_FromDouble(median);
}

/* Marks which of n numbers are not zero; NaN is none. */
WIDE static void mark32(const float *x, size_t n, uint8_t *marks)
{
    for (size_t k = 0; k < n; k++)
        marks[k] |= x[k] != 0;
}

static PyObject *idle(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct vectors at;
    int64_t *since;
    size_t positions, units, limit, found = 0;
    if (!expects(given, 8) || !vectors(arguments, &at) || !whole(arguments[4], &positions) || !whole(arguments[5], &units) ||
        !address(arguments[6], &since) || !whole(arguments[7], &limit) || !is_there(at.data, positions * units))
        return NULL;
    uint8_t *marks = PyMem_Calloc(units + 1, 1);
    if (marks == NULL)
        return PyErr_NoMemory();
    for (size_t i = 0; i < positions; i++) {
        size_t begin = (size_t)at.offsets[i];
        if (at.stride == 1 && at.dtype == FLOAT32)
            mark32((const float *)at.data + begin, units, marks);
        else
            for (size_t k = 0; k < units; k++)
                marks[k] |= element(at.data, at.dtype, begin + k * at.stride) != 0;
    }
    for (size_t k = 0; k < units; k++) {
        since[k] = marks[k] ? 0 : since[k] + (int64_t)positions;
        found += since[k] >= (int64_t)limit;
    }
    PyMem_Free(marks);
    return PyLong_FromSize_t(found);
}

/* Whether any of n numbers is not zero. */
static int is_any(const void *data, enum dtype dtype, size_t begin, size_t n)
{
    for (size_t i = begin; i < begin + n; i++)
        if (element(data, dtype, i) != 0)
            return 1;
    return 0;
}

static PyObject *kept(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    const void *branch, *skip;
    enum dtype branch_dtype, skip_dtype;
    size_t samples, size, dropped = 0;
    double square, *into;
    if (!expects(given, 8) || !address(arguments[0], &branch) || !kind(arguments[1], &branch_dtype) ||
        !address(arguments[2], &skip) || !kind(arguments[3], &skip_dtype) || !whole(arguments[4], &samples) ||
        !whole(arguments[5], &size) || !address(arguments[7], &into) || !is_there(branch, samples * size) ||
        !is_there(skip, samples * size))
        return NULL;
    square = PyFloat_AsDouble(arguments[6]);
    if (PyErr_Occurred())
        return NULL;
    uint8_t *is_kept = PyMem_Malloc(samples + 1);
    if (is_kept == NULL)
        return PyErr_NoMemory();
    for (size_t i = 0; i < samples; i++)
        dropped += !(is_kept[i] = (uint8_t)is_any(branch, branch_dtype, i * size, size));
    double sum = 0;
    for (size_t i = 0; i < samples && dropped; i++)
        sum += is_kept[i] ? 0 : squares(skip, skip_dtype, i * size, size);
    if (sum < square / 2) {
        sum = square - sum;
    } else if (dropped) { /* little is left, and a difference of two numbers that are nearly equal says nothing */
        sum = 0;
        for (size_t i = 0; i < samples; i++)
            sum += is_kept[i] ? squares(skip, skip_dtype, i * size, size) : 0;
    } else {
        sum = square;
    }
    PyMem_Free(is_kept);
    *into = (double)(samples - dropped);
    return PyFloat_FromDouble(sum);
}

static PyObject *sampled(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    const void *data;
    double *into;
    enum dtype dtype;
    size_t n, stride;
    if (!expects(given, 5) || !address(arguments[0], &data) || !kind(arguments[1], &dtype) || !whole(arguments[2], &n) ||
        !whole(arguments[3], &stride) || !address(arguments[4], &into) || !is_there(data, n))
        return NULL;
    if (stride == 0)
        return PyErr_Format(PyExc_ValueError, "the stride is 0");
    for (size_t i = 0; i < n; i += stride) {
        double value = element(data, dtype, i);
        into[0] += value;
        into[1] += value * value;
    }
    Py_RETURN_NONE;
}

static PyObject *widened(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    const void *data;
    double *into;
    enum dtype dtype;
    size_t n;
    if (!expects(given, 4) || !address(arguments[0], &data) || !kind(arguments[1], &dtype) || !whole(arguments[2], &n) ||
        !address(arguments[3], &into) || !is_there(data, n))
        return NULL;
    for (size_t i = 0; i < n; i++)
        into[i] = element(data, dtype, i);
    Py_RETURN_NONE;
}

/* A number of int64 in main memory: 1, or 0 where the tensor is none such; -1 and an error. */
static int counted(PyObject *tensor, PyObject *dtype, long long *value)
{
    struct plain of;
    if ((PyObject *)Py_TYPE(tensor) != TENSOR)
        return 0;
    int is = attribute_is(tensor, IS_CPU, Py_True);
    if (is == 1)
        is = attribute_is(tensor, DTYPE, dtype);
    if (is != 1)
        return is;
    if (!at(tensor, &of))
        return -1;
    if (of.n != 1)
        return 0;
    memcpy(value, of.data, sizeof *value);
    return 1;
}

/* What one layer remembers, a tuple; NULL, without an error where it is nothing of that kind. */
static PyObject *remembered(PyObject *buffers, PyObject *whole)
{
    const char *names[] = {"num_batches_tracked", "running_mean", "running_var"};
    PyObject *tensors[3];
    struct plain mean, variance;
    long long batches = 0;
    for (int i = 0; i < 3; i++) {
        tensors[i] = PyDict_GetItemString(buffers, names[i]);
        if (tensors[i] == NULL)
            return NULL;
    }
    if (TENSOR == NULL || counted(tensors[0], whole, &batches) != 1 || plain(tensors[1], &mean) != 1 ||
        plain(tensors[2], &variance) != 1 || mean.n == 0 || mean.n != variance.n)
        return NULL;
    return Py_BuildValue("LNNin", batches, PyLong_FromVoidPtr((void *)mean.data), PyLong_FromVoidPtr((void *)variance.data), FLOAT32,
                         (Py_ssize_t)mean.n);
}

static PyObject *running_statistics(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    if (!expects(given, 2))
        return NULL;
    Py_ssize_t layers = PyTuple_Size(arguments[0]);
    PyObject *found = layers < 0 ? NULL : PyList_New(layers);
    for (Py_ssize_t i = 0; found != NULL && i < layers; i++) {
        PyObject *buffers = PyObject_GetAttrString(PyTuple_GetItem(arguments[0], i), "_buffers");
        PyObject *one = buffers == NULL || !PyDict_Check(buffers) ? NULL : remembered(buffers, arguments[1]);
        Py_XDECREF(buffers);
        if (one == NULL || PyList_SetItem(found, i, one) < 0) {
            Py_DECREF(found);
            if (PyErr_Occurred())
                return NULL;
            Py_RETURN_NONE;
        }
    }
    return found;
}

/* See norms.py for what it means. */
static PyObject *running(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    enum { DISTANCES, MOVED, LARGEST, COLLAPSED, CHANNELS, BROKEN };
    const void *mean, *variance;
    const double *before;
    double *into, numbers[2];
    enum dtype dtype;
    size_t n;
    if (!expects(given, 8) || !address(arguments[0], &mean) || !address(arguments[1], &variance) || !kind(arguments[2], &dtype) ||
        !whole(arguments[3], &n) || !address(arguments[4], &before) || !address(arguments[7], &into) || !is_there(mean, n) ||
        !is_there(variance, n))
        return NULL;
    for (int i = 0; i < 2; i++)
        numbers[i] = PyFloat_AsDouble(arguments[5 + i]);
    if (PyErr_Occurred())
        return NULL;
    double share = numbers[0], eps = numbers[1];
    for (size_t i = 0; i < n; i++) {
        double m = element(mean, dtype, i), v = element(variance, dtype, i);
        into[BROKEN] += !isfinite(m) || !isfinite(v);
        into[LARGEST] = v > into[LARGEST] ? v : into[LARGEST];
        into[COLLAPSED] += v <= eps;
        if (share == 0)
            continue;
        double spread = fmax(before[n + i] + eps, FLT_MIN);
        double shift = (m - before[i]) / share, square = fmax(before[n + i] + (v - before[n + i]) / share, 0);
        double distance = shift * shift / spread, factor = sqrt((square + eps) / spread) - 1;
        distance += factor * factor;
        if (!isnan(distance)) { /* where they were not finite before and are so now, nothing is known */
            into[DISTANCES] += distance;
            into[MOVED] += 1;
        }
    }
    into[CHANNELS] += (double)n;
    Py_RETURN_NONE;
}

static PyObject *accumulate(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    const double *from;
    double *into;
    size_t sums, extremes;
    if (!expects(given, 4) || !address(arguments[0], &from) || !address(arguments[1], &into) || !whole(arguments[2], &sums) ||
        !whole(arguments[3], &extremes))
        return NULL;
    for (size_t i = 0; i < sums; i++)
        into[i] += from[i];
    for (size_t i = sums; i < sums + extremes; i++)
        into[i] = from[i] > into[i] ? from[i] : into[i];
    Py_RETURN_NONE;
}

#include "_rows.h"
#include "_last_words.h"

static PyMethodDef METHODS[] = {
    LAST_WORDS_METHODS
    {"square", (PyCFunction)(void (*)(void))square, METH_FASTCALL, NULL},
    {"plain_is", (PyCFunction)(void (*)(void))plain_is, METH_FASTCALL, NULL},
    {"arrived", (PyCFunction)(void (*)(void))arrived, METH_FASTCALL, NULL},
    {"gradients", (PyCFunction)(void (*)(void))gradients, METH_FASTCALL, NULL},
    {"drawn", (PyCFunction)(void (*)(void))drawn, METH_FASTCALL, NULL},
    {"magnitudes", (PyCFunction)(void (*)(void))magnitudes, METH_FASTCALL, NULL},
    {"median_ratio", (PyCFunction)(void (*)(void))median_ratio, METH_FASTCALL, NULL},
    {"idle", (PyCFunction)(void (*)(void))idle, METH_FASTCALL, NULL},
    {"kept", (PyCFunction)(void (*)(void))kept, METH_FASTCALL, NULL},
    {"sampled", (PyCFunction)(void (*)(void))sampled, METH_FASTCALL, NULL},
    {"widened", (PyCFunction)(void (*)(void))widened, METH_FASTCALL, NULL},
    {"running_statistics", (PyCFunction)(void (*)(void))running_statistics, METH_FASTCALL, NULL},
    {"running", (PyCFunction)(void (*)(void))running, METH_FASTCALL, NULL},
    {"blocks", (PyCFunction)(void (*)(void))blocks, METH_FASTCALL, NULL},
    {"total", (PyCFunction)(void (*)(void))total, METH_FASTCALL, NULL},
    {"grouped", (PyCFunction)(void (*)(void))grouped, METH_FASTCALL, NULL},
    {"accumulate", (PyCFunction)(void (*)(void))accumulate, METH_FASTCALL, NULL},
    {"addition", (PyCFunction)(void (*)(void))addition, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "resmon.capture._native", NULL, 0, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&MODULE);
}
