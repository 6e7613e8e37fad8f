/* Follows many streams of numbers at once: what each is expected to do next, how far its value is from that in units of the stream's
 * own noise, and the charts that add such distances up (charts.py says what they mean).
 *
 * All of a stream is in one column of the state, a row for each number of it, so that a tile of neighbouring streams is worked on in
 * registers and the first cache for as many steps as there are. Nothing here branches on a stream but its calibration, which comes
 * once: that is what lets the compiler take eight streams in one instruction. Addresses and sizes come from Python, which vouches that
 * the memory is dense and alive.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The same code for several instruction sets; the loader takes the widest that the processor has. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

#define TILE 128        /* streams that are worked on together */
#define CALIBRATION 64 /* values from which the first forecast and the first scale are made */
#define KNOTS 7        /* quantiles of a stream's errors that are followed */
#define MOVES 4        /* one-sided charts of the level */
#define EVENS 5        /* charts that do not know up from down, of spread and shape */
#define HINGES 6       /* pieces that their increments are made of */
#define WINDOWS 6      /* lengths of the adaptive window, each twice the one before */
#define SHORTEST 4     /* of these */
#define SUMS (MOVES + EVENS)
#define CHARTS (SUMS + WINDOWS + 1)

/* Rows of the state; charts.py has their names. */
enum {
    COUNT,
    LEVEL,
    SLOPE,
    ERROR,
    PRODUCT,
    SQUARE,
    MEAN,
    SCALE,
    QUANTILE,
    SLOW = QUANTILE + KNOTS,
    WANDER,
    ENERGY,
    UNREST,
    EVIDENCE,
    SUM,
    SINCE = SUM + SUMS,
    PART = SINCE + SUMS,
    WHOLE = PART + WINDOWS,
    ROWS = WHOLE + WINDOWS
};

/* Numbers that Python sets. */
enum {
    WARM_UP,
    GAIN,
    SLOPE_GAIN,
    LEARNING,
    LEAST,
    MOST,
    SMOOTHING,
    MOVE,
    EVEN = MOVE + MOVES,
    WEIGHT = EVEN + EVENS * (HINGES + 1),
    WANDERS = WEIGHT + CHARTS, /* of the moves and windows, whether they are held against how the level wanders */
    SETTINGS = WANDERS + CHARTS
};

/* The normal scores of the quantiles, the probabilities below them, and the inverse of the density there. */
static const double SCORE[KNOTS] = {-1.8, -1.2, -0.6, 0, 0.6, 1.2, 1.8};
static const double BELOW[KNOTS] = {0.03593031911292579, 0.11506967022170822, 0.2742531177500736, 0.5,
                                    0.7257468822499265, 0.8849303297782918, 0.9640696808870742};
static const double PACE[KNOTS] = {12.666219061763103, 5.149700374140914, 3.0009788932802985, 2.5066282746310002,
                                   3.0009788932802985, 5.149700374140914, 12.666219061763103};
static const double HINGE[HINGES] = {0, 0.4, 0.8, 1.4, 2.0, 2.8};

#define BOUND 2.5     /* scales of an error that a forecast and a correlation learn from, at most */
#define TALLEST 3.0   /* scales of one that the scale learns from, and what makes the mean magnitude a standard deviation then */
#define MAGNITUDE 1.2567
#define CLOSEST 0.5   /* of their distance in a normal distribution, that quantiles count as apart at least */
#define USUAL 4.0     /* times its usual size, that the level's wandering is learnt from, at most */
#define FORGETTING 0.03 /* of what correlation is measured around */
#define HASTE 4.0 /* times its gain, that a forecast learns with at most */

static inline double larger(double a, double b) { return a > b ? a : b; }
static inline double smaller(double a, double b) { return a < b ? a : b; }
/* Of a number below 2^51, without a call that older processors have no instruction for. */
static inline double whole_part(double a)
{
    double rounded = a + 4503599627370496.0 - 4503599627370496.0;
    return rounded > a ? rounded - 1 : rounded;
}
static inline double within(double a, double most) { return larger(smaller(a, most), -most); }

/* One step of a tile. `y` has NaN where there is no value; such a stream stays as it is. */
WIDE static void follow(double (*restrict s)[TILE], const double *restrict y, double *restrict score, const double *restrict set)
{
    double live[TILE], moves[TILE], wander[TILE], unrest[TILE];
#pragma GCC ivdep
    for (int j = 0; j < TILE; j++) {
        double is = fabs(y[j]) <= DBL_MAX ? 1 : 0, n = s[COUNT][j] + is, on = n > CALIBRATION ? is : 0, seen = larger(n, 1);
        double off = y[j] - s[LEVEL][j] - s[SLOPE][j], e = is > 0 ? off : 0, before = s[ERROR][j];
        double phi = larger(smaller(s[PRODUCT][j] / larger(s[SQUARE][j], 0.25), 0.9), 0);
        double scale = larger(s[SCALE][j], set[LEAST]), wide = scale / sqrt(1 - phi * phi);
        double u = e - phi * within(before, BOUND * wide); /* what the error before does not tell of this one */
        double q[KNOTS], place, z = 0, rate = 0;
        for (int k = 0; k < KNOTS; k++)
            q[k] = s[QUANTILE + k][j];
        /* from the median outwards, so that quantiles which are too close to each other are put apart evenly */
        place = q[KNOTS / 2];
        for (int k = KNOTS / 2; k + 1 < KNOTS; k++) {
            double step = SCORE[k + 1] - SCORE[k], d = larger(q[k + 1] - q[k], CLOSEST * step * scale);
            rate = step / d;
            z += rate * smaller(larger(u - place, 0), d);
            place += d;
        }
        z += rate * larger(u - place, 0);
        place = q[KNOTS / 2];
        for (int k = KNOTS / 2; k > 0; k--) {
            double step = SCORE[k] - SCORE[k - 1], d = larger(q[k] - q[k - 1], CLOSEST * step * scale);
            rate = step / d;
            z -= rate * smaller(larger(place - u, 0), d);
            place -= d;
        }
        z -= rate * larger(place - u, 0);
        double w = within(z, set[MOST]);
        score[j] = on > 0 ? w : NAN;
        live[j] = n > set[WARM_UP] ? is : 0;
        moves[j] = s[SCALE][j] >= set[LEAST] ? 1 : 0; /* one that stands still has neither spread nor shape */

        /* the wider the fewer values it has seen, as in a line through them */
        double bounded = within(e, BOUND * wide), learning = larger(set[LEARNING], 1 / seen) * on;
        double now = bounded / wide, then = within(before / wide, BOUND), mean = s[MEAN][j];
        /* the forecast of a stream that wanders, or whose trend bends, follows it closer */
        double haste = within(sqrt(larger(s[WANDER][j], 1)), HASTE), gain = set[GAIN] * haste;
        s[LEVEL][j] += on * s[SLOPE][j] + larger(gain, 4 / seen) * on * bounded;
        s[SLOPE][j] += larger(set[SLOPE_GAIN] * haste * haste, 6 / (seen * seen)) * on * bounded;
        s[PRODUCT][j] += learning * ((now - mean) * (then - mean) - s[PRODUCT][j]);
        s[SQUARE][j] += learning * ((now - mean) * (now - mean) - s[SQUARE][j]);
        s[MEAN][j] += FORGETTING * on * (now - mean);
        s[ERROR][j] = on > 0 ? e : before;
        s[SCALE][j] += learning * (MAGNITUDE * smaller(fabs(u), TALLEST * scale) - s[SCALE][j]);
        for (int k = 0; k < KNOTS; k++)
            q[k] += learning * scale * PACE[k] * (BELOW[k] - (u < q[k] ? 1 : 0));
        /* each follows its own share of the errors, and must not pass its neighbour */
        for (int k = KNOTS / 2; k + 1 < KNOTS; k++)
            q[k + 1] = larger(q[k + 1], q[k]);
        for (int k = KNOTS / 2; k > 0; k--)
            q[k - 1] = smaller(q[k - 1], q[k]);
        for (int k = 0; k < KNOTS; k++)
            s[QUANTILE + k][j] = q[k];

        double smoothing = set[SMOOTHING], slow = s[SLOW][j] * s[SLOW][j] * (2 - smoothing) / smoothing;
        s[WANDER][j] += learning * (smaller(slow, USUAL * larger(s[WANDER][j], 1)) - s[WANDER][j]);
        s[SLOW][j] += smoothing * on * (w - s[SLOW][j]);
        double energy = s[ENERGY][j], loud = (energy - 1) * (energy - 1) * (2 - smoothing) / smoothing / 2;
        s[UNREST][j] += learning * (smaller(loud, USUAL * larger(s[UNREST][j], 1)) - s[UNREST][j]);
        s[ENERGY][j] += smoothing * on * (within(w * w, 9) - energy);
        s[COUNT][j] = n;
        wander[j] = larger(s[WANDER][j], 1);
        unrest[j] = larger(s[UNREST][j], 1);
        slow = s[SLOW][j] * s[SLOW][j] * (2 - smoothing) / smoothing / 2;
        double told = set[WEIGHT + CHARTS - 1] * slow / wander[j], kept = s[EVIDENCE][j];
        s[EVIDENCE][j] = live[j] > 0 ? told : kept;
    }
    for (int k = 0; k < MOVES; k++) {
        double move = set[MOVE + k], weight = set[WEIGHT + k], held = set[WANDERS + k];
        double *restrict sum = s[SUM + k], *restrict since = s[SINCE + k], *restrict n = s[COUNT], *restrict evidence = s[EVIDENCE];
#pragma GCC ivdep
        for (int j = 0; j < TILE; j++) {
            double old = sum[j], now = larger(old, 0) + move * (score[j] - move / 2), began = since[j], fresh = n[j];
            double on = live[j], kept = evidence[j], told = weight * now / (1 + held * (wander[j] - 1));
            fresh = old <= 0 ? fresh : began;
            told = larger(kept, told);
            since[j] = on > 0 ? fresh : began;
            sum[j] = on > 0 ? now : old;
            evidence[j] = on > 0 ? told : kept;
        }
    }
    for (int k = 0; k < EVENS; k++) {
        const double *c = set + EVEN + k * (HINGES + 1), weight = set[WEIGHT + MOVES + k], held = set[WANDERS + MOVES + k];
        double *restrict sum = s[SUM + MOVES + k], *restrict since = s[SINCE + MOVES + k];
        double *restrict n = s[COUNT], *restrict evidence = s[EVIDENCE];
#pragma GCC ivdep
        for (int j = 0; j < TILE; j++) {
            double a = fabs(score[j]), increment = c[0];
            for (int i = 0; i < HINGES; i++)
                increment += c[i + 1] * larger(a - HINGE[i], 0);
            double old = sum[j], now = larger(old, 0) + increment, began = since[j], fresh = n[j];
            double on = live[j] * moves[j], kept = evidence[j], told = larger(kept, weight * now / (1 + held * (unrest[j] - 1)));
            fresh = old <= 0 ? fresh : began;
            since[j] = on > 0 ? fresh : began;
            sum[j] = on > 0 ? now : old;
            evidence[j] = on > 0 ? told : kept;
        }
    }
    for (int k = 0; k < WINDOWS; k++) {
        double length = (double)(SHORTEST << k), weight = set[WEIGHT + SUMS + k], held = set[WANDERS + SUMS + k];
        double *restrict part = s[PART + k], *restrict whole = s[WHOLE + k], *restrict n = s[COUNT], *restrict evidence = s[EVIDENCE];
#pragma GCC ivdep
        for (int j = 0; j < TILE; j++) {
            double over = n[j] - length * whole_part(n[j] / length), on = live[j], kept = evidence[j], was = whole[j], now = score[j];
            double sum = part[j] + (on > 0 ? now : 0), both = was + sum, all = over > 0 ? both : sum;
            double told = larger(kept, weight * all * all / (2 * (length + over)) / (1 + held * (wander[j] - 1)));
            double full = over > 0 ? was : sum, rest = over > 0 ? sum : 0;
            whole[j] = on > 0 ? full : was;
            part[j] = on > 0 ? rest : sum;
            evidence[j] = on > 0 ? told : kept;
        }
    }
}

static int compare(const void *first, const void *second)
{
    double a = *(const double *)first, b = *(const double *)second;
    return (a > b) - (a < b);
}

/* The first forecast, correlation and quantiles of one stream: of its first values, around a line through the medians of their halves. */
static void calibrate(double *state, size_t stride, const double *first, size_t streams)
{
    double v[CALIBRATION], half[2], size = 0, product = 0, square = 0, before = 0;
    const int n = CALIBRATION, m = CALIBRATION / 2;
    for (int h = 0; h < 2; h++) {
        for (int i = 0; i < m; i++)
            v[i] = first[(size_t)(h * m + i) * streams];
        qsort(v, m, sizeof *v, compare);
        half[h] = (v[m / 2 - 1] + v[m / 2]) / 2;
    }
    double slope = (half[1] - half[0]) / m, middle = (half[0] + half[1]) / 2;
    for (int i = 0; i < n; i++) {
        v[i] = first[(size_t)i * streams] - middle - slope * (i - (n - 1) / 2.0);
        size += fabs(v[i]) * 3 / n;
    }
    for (int i = 0; i < n; i++) {
        double now = within(v[i], size);
        product += i ? now * before : 0;
        square += now * now;
        before = now;
    }
    double phi = square > 0 ? larger(smaller(product / square, 0.9), 0) : 0;
    state[COUNT * stride] = n;
    state[LEVEL * stride] = middle + slope * (n - 1) / 2.0;
    state[SLOPE * stride] = slope;
    state[ERROR * stride] = v[n - 1];
    state[PRODUCT * stride] = phi;
    state[SQUARE * stride] = state[WANDER * stride] = state[ENERGY * stride] = state[UNREST * stride] = 1;
    state[MEAN * stride] = state[SLOW * stride] = 0;
    for (int i = n - 1; i > 0; i--)
        v[i] -= phi * v[i - 1];
    qsort(v, n, sizeof *v, compare);
    double quantile[KNOTS];
    for (int k = 0; k < KNOTS; k++) {
        double at = within(BELOW[k] * n - 0.5, n - 1);
        int i = (int)at < n - 1 ? (int)at : n - 2;
        quantile[k] = state[(QUANTILE + k) * stride] = v[i] + (at - i) * (v[i + 1] - v[i]);
    }
    state[SCALE * stride] = (quantile[4] - quantile[2]) / (SCORE[4] - SCORE[2]);
}

static int address(PyObject *of, void *into)
{
    size_t at = PyLong_AsSize_t(of);
    memcpy(into, &at, sizeof at);
    return !(at == (size_t)-1 && PyErr_Occurred());
}

static int whole_number(PyObject *of, size_t *into)
{
    *into = PyLong_AsSize_t(of);
    return !(*into == (size_t)-1 && PyErr_Occurred());
}

/* One value of a stream that is not calibrated yet. Returns whether it now is. */
static int collect(double (*tile)[TILE], size_t j, double y, double *first, size_t streams)
{
    size_t n = (size_t)tile[COUNT][j];
    if (n >= CALIBRATION || !(fabs(y) <= DBL_MAX))
        return 0;
    first[n * streams] = y;
    if (n + 1 < CALIBRATION)
        return 0;
    calibrate(&tile[0][j], TILE, first, streams);
    return 1;
}

static PyObject *follow_block(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    const double *values, *set;
    double *state, *first, *evidence, *scores;
    size_t steps, streams;
    (void)self;
    if (given != 8)
        return PyErr_Format(PyExc_TypeError, "expected 8 arguments, got %zd", given);
    if (!address(arguments[0], &values) || !whole_number(arguments[1], &steps) || !whole_number(arguments[2], &streams) ||
        !address(arguments[3], &set) || !address(arguments[4], &state) || !address(arguments[5], &first) ||
        !address(arguments[6], &evidence) || !address(arguments[7], &scores))
        return NULL;
    if (steps && streams && !(values && set && state && first && evidence))
        return PyErr_Format(PyExc_ValueError, "an address is 0");
    double tile[ROWS][TILE], y[TILE], score[TILE];
    Py_BEGIN_ALLOW_THREADS
    for (size_t begin = 0; begin < streams; begin += TILE) {
        size_t size = streams - begin < TILE ? streams - begin : TILE;
        if (size < TILE)
            memset(tile, 0, sizeof tile);
        for (int r = 0; r < ROWS; r++)
            memcpy(tile[r], state + r * streams + begin, size * sizeof **tile);
        for (size_t j = size; j < TILE; j++)
            y[j] = NAN;
        int young = 0;
        for (size_t j = 0; j < size; j++)
            young |= tile[COUNT][j] < CALIBRATION;
        for (size_t i = 0; i < steps; i++) {
            memcpy(y, values + i * streams + begin, size * sizeof *y);
            for (size_t j = 0; young && j < size; j++)
                if (collect(tile, j, y[j], first + begin + j, streams))
                    y[j] = NAN;
            follow(tile, y, score, set);
            memcpy(evidence + i * streams + begin, tile[EVIDENCE], size * sizeof **tile);
            if (scores)
                memcpy(scores + i * streams + begin, score, size * sizeof *score);
        }
        for (int r = 0; r < ROWS; r++)
            memcpy(state + r * streams + begin, tile[r], size * sizeof **tile);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *sizes(PyObject *self, PyObject *nothing)
{
    (void)self;
    (void)nothing;
    return Py_BuildValue("iii", ROWS, SETTINGS, CALIBRATION);
}

static PyMethodDef METHODS[] = {
    {"follow", (PyCFunction)(void (*)(void))follow_block, METH_FASTCALL, NULL},
    {"sizes", (PyCFunction)(void (*)(void))sizes, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "resmon.detectors._native", NULL, 0, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&MODULE);
}
