/* What becomes of the sites' rows when a step is over: the arrays of its record. columns.py says what a row holds, records.py what
 * a record does; drafts.py and measured.py ask for it. One call makes what would be dozens of operations on small arrays, each of
 * which finds the caches full of the training's tensors. */

/* As columns.py has them; behind MAGNITUDES come CELLS, the extremes PEAK and FILL, and what is looked at now and then. */
enum column {
    COLUMN_SKIP,
    COLUMN_BRANCH,
    COLUMN_OUTPUT,
    COLUMN_PRODUCT,
    COLUMN_ELEMENTS,
    COLUMN_FORWARD_NONFINITE,
    COLUMN_KEPT_SQUARE,
    COLUMN_SAMPLES,
    COLUMN_KEPT,
    COLUMN_GRADIENT,
    COLUMN_ARRIVED,
    COLUMN_BACKWARD_NONFINITE,
    COLUMN_MAGNITUDES
};

/* As records.BLOCK_VALUES and BLOCK_COUNTS. The looks are in the columns' order. */
enum value { VALUE_SKIP, VALUE_BRANCH, VALUE_OUTPUT, VALUE_PARAMETERS, VALUE_GRADIENT, VALUE_PRODUCT, VALUE_KEPT, VALUE_PEAK,
             VALUE_FILL, VALUE_LOOKS };
enum counted { COUNT_ELEMENTS, COUNT_FORWARD, COUNT_BACKWARD, COUNT_SAMPLES, COUNT_KEPT, COUNTS };

/* Products are told by squares, |s + f|^2 - |s|^2 - |f|^2, unless the operands' squares differ by more than this: rounding would
 * show in the difference then. */
#define RESOLVED 1e8

/* Of one site; the values, what is there of them and the counts lie `sites` apart. */
static void tell(const double *row, size_t cells, size_t looks, size_t sites, double *values, uint8_t *present, int64_t *counts,
                 double *looked)
{
    const double *extremes = row + COLUMN_MAGNITUDES + cells, *look = extremes + 2;
    const int is_there = row[COLUMN_ELEMENTS] > 0;
    const double skip = row[COLUMN_SKIP], branch = row[COLUMN_BRANCH], output = row[COLUMN_OUTPUT];
    double product = row[COLUMN_PRODUCT], larger = skip > branch ? skip : branch, smaller = skip > branch ? branch : skip;
    int is_told = is_there;
    if (is_there && product == 0) { /* operands that were not read together */
        product = (output - skip - branch) / 2;
        is_told = larger <= RESOLVED * smaller;
    }
    double told[VALUE_LOOKS] = {skip, branch, output, 0, row[COLUMN_GRADIENT], product};
    uint8_t there[VALUE_LOOKS] = {is_there, is_there, is_there, 0, row[COLUMN_ARRIVED] > 0, is_told};
    if (row[COLUMN_SAMPLES] > 0) {
        /* Graphs count samples only; there all are taken to be of one size. */
        double kept = row[COLUMN_KEPT_SQUARE];
        told[VALUE_KEPT] = kept == 0 ? skip * row[COLUMN_KEPT] / (row[COLUMN_SAMPLES] > 1 ? row[COLUMN_SAMPLES] : 1) : kept;
        there[VALUE_KEPT] = 1;
    }
    told[VALUE_PEAK] = extremes[0];
    told[VALUE_FILL] = extremes[1];
    there[VALUE_PEAK] = is_there && (extremes[0] > 0 || output == 0);
    there[VALUE_FILL] = extremes[1] > 0;
    for (size_t i = 0; i < VALUE_LOOKS; i++) {
        if (i == VALUE_PARAMETERS)
            continue;
        values[i * sites] = told[i];
        present[i * sites] = there[i];
    }
    for (size_t i = 0; i < looks; i++) {
        if (!isnan(look[i]))
            looked[i] = look[i];
        values[(VALUE_LOOKS + i) * sites] = isnan(looked[i]) ? 0 : looked[i];
        present[(VALUE_LOOKS + i) * sites] = !isnan(looked[i]);
    }
    static const enum column FROM[COUNTS] = {COLUMN_ELEMENTS, COLUMN_FORWARD_NONFINITE, COLUMN_BACKWARD_NONFINITE, COLUMN_SAMPLES,
                                             COLUMN_KEPT};
    for (int i = 0; i < COUNTS; i++)
        counts[i * sites] = (int64_t)row[FROM[i]];
}

static PyObject *blocks(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct arrays taken = {.count = 0};
    size_t sites, cells, looks;
    if (!expects(given, 10) || !whole(arguments[0], &sites) || !whole(arguments[1], &cells) || !whole(arguments[2], &looks))
        return NULL;
    const size_t columns = COLUMN_MAGNITUDES + cells + 2 + looks, kinds = VALUE_LOOKS + looks;
    const Py_ssize_t n = (Py_ssize_t)sites;
    double *rows, *looked, *magnitudes, *values;
    int64_t *nonfinite, *counts;
    uint8_t *present;
    PyObject *outcome = NULL;
    if ((rows = array(&taken, arguments[3], sizeof *rows, n * (Py_ssize_t)columns)) != NULL &&
        (looked = array(&taken, arguments[4], sizeof *looked, n * (Py_ssize_t)looks)) != NULL &&
        (nonfinite = array(&taken, arguments[5], sizeof *nonfinite, n)) != NULL &&
        (magnitudes = array(&taken, arguments[6], sizeof *magnitudes, n * (Py_ssize_t)cells)) != NULL &&
        (values = array(&taken, arguments[7], sizeof *values, n * (Py_ssize_t)kinds)) != NULL &&
        (present = array(&taken, arguments[8], sizeof *present, n * (Py_ssize_t)kinds)) != NULL &&
        (counts = array(&taken, arguments[9], sizeof *counts, n * COUNTS)) != NULL) {
        for (size_t i = 0; i < sites; i++) {
            const double *row = rows + i * columns;
            tell(row, cells, looks, sites, values + i, present + i, counts + i, looked + i * looks);
            nonfinite[i] += row[COLUMN_FORWARD_NONFINITE] != 0 || row[COLUMN_BACKWARD_NONFINITE] != 0;
            for (size_t k = 0; k < cells; k++)
                magnitudes[i * cells + k] += row[COLUMN_MAGNITUDES + k];
        }
        outcome = (Py_INCREF(Py_None), Py_None);
    }
    let_go(&taken);
    return outcome;
}

static PyObject *grouped(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct arrays taken = {.count = 0};
    double *squares, *into;
    uint8_t *there, *due, *present;
    Py_ssize_t *members, *starts;
    PyObject *outcome = NULL;
    if (!expects(given, 7))
        return NULL;
    if ((squares = array(&taken, arguments[0], sizeof *squares, -1)) == NULL)
        goto done;
    const Py_ssize_t places = taken.of[0].len / (Py_ssize_t)sizeof *squares;
    if ((there = array(&taken, arguments[1], 1, places)) == NULL || (due = array(&taken, arguments[2], 1, places)) == NULL ||
        (members = array(&taken, arguments[3], sizeof *members, -1)) == NULL ||
        (starts = array(&taken, arguments[4], sizeof *starts, -1)) == NULL)
        goto done;
    const Py_ssize_t all = taken.of[3].len / (Py_ssize_t)sizeof *members, groups = taken.of[4].len / (Py_ssize_t)sizeof *starts;
    if ((into = array(&taken, arguments[5], sizeof *into, groups)) == NULL || (present = array(&taken, arguments[6], 1, groups)) == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < groups; i++) {
        Py_ssize_t end = i + 1 < groups ? starts[i + 1] : all;
        into[i] = 0;
        present[i] = 0;
        for (Py_ssize_t k = starts[i]; k < end; k++) {
            if (k < 0 || k >= all || members[k] < 0 || members[k] >= places) {
                PyErr_SetString(PyExc_IndexError, "a group's member is none of the places");
                goto done;
            }
            if (there[members[k]] && due[members[k]]) {
                into[i] += squares[members[k]];
                present[i] = 1;
            }
        }
    }
    outcome = (Py_INCREF(Py_None), Py_None);
done:
    let_go(&taken);
    return outcome;
}

static PyObject *total(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct arrays taken = {.count = 0};
    double *squares, *factors, sum = 0, stepped = 0;
    uint8_t *there, *due, *clipped;
    PyObject *outcome = NULL;
    if (!expects(given, 5))
        return NULL;
    if ((squares = array(&taken, arguments[0], sizeof *squares, -1)) == NULL)
        goto done;
    const Py_ssize_t places = taken.of[0].len / (Py_ssize_t)sizeof *squares;
    if ((factors = array(&taken, arguments[1], sizeof *factors, places)) == NULL ||
        (there = array(&taken, arguments[2], 1, places)) == NULL || (due = array(&taken, arguments[3], 1, places)) == NULL ||
        (clipped = array(&taken, arguments[4], 1, places)) == NULL)
        goto done;
    int is_any = 0, is_clipped = 0;
    for (Py_ssize_t i = 0; i < places; i++)
        if (there[i] && due[i]) {
            is_any = 1;
            is_clipped |= clipped[i];
            sum += squares[i];
            stepped += squares[i] * factors[i] * factors[i];
        }
    outcome = !is_any       ? Py_BuildValue("OO", Py_None, Py_None)
              : is_clipped ? Py_BuildValue("dd", sum, stepped)
                           : Py_BuildValue("dO", sum, Py_None);
done:
    let_go(&taken);
    return outcome;
}
