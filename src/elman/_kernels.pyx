# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""Typed memoryviews in, one C call out. No arithmetic and no checks: functional.py has made both sure."""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.float cimport PyFloat_CheckExact
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.tuple cimport PyTuple_Check, PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport INFINITY
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy

from numpy import asarray as _asarray, dtype as _dtype, empty as _empty, intp, ndarray as _ndarray, zeros as _zeros

_intp = _dtype(intp)

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "elman.h" nogil:
    int ELMAN_CELL_COUNT, ELMAN_STATES

    ctypedef struct elman_activation:
        int name
        double alpha, beta

    ctypedef struct elman_options:
        elman_activation activations[4]
        int coupled, peepholes, is_projected, by_deviation
        double clip, cell_clip, proj_clip, stay

    ctypedef struct elman_dense:
        const void *w_ih
        const void *w_hh
        const void *b_ih
        const void *b_hh
        const void *units
        const void *w_hr
        const void *b_hr

    ctypedef struct elman_weights:
        const void *w_ih
        const void *w_hh
        const void *b_ih
        const void *b_hh
        const void *units
        const void *w_hr
        const void *b_hr
        const void *wt_ih
        const void *wt_hh
        const void *wt_hr

    ctypedef struct elman_layer:
        ptrdiff_t T, B, I, H, R
        int directions, threads
        const elman_weights *weights
        const elman_options *options
        const void *x
        ptrdiff_t x_t, x_b
        const ptrdiff_t *lengths
        const unsigned char *reset
        const void *row
        const void *mask
        const unsigned char *stays[2]
        double stay[2]
        ptrdiff_t *index
        void *tape
        int recompute
        void *scratch

    ctypedef struct elman_forward_call:
        elman_layer layer
        const void *state[4]
        void *last[4]
        void *y
        ptrdiff_t y_t, y_b
        void *c
        ptrdiff_t c_t, c_b

    ctypedef struct elman_backward_call:
        elman_layer layer
        const void *dy
        ptrdiff_t dy_t, dy_b
        const void *dc
        ptrdiff_t dc_t, dc_b
        double limit
        const void *dlast[4]
        void *dstate[4]
        void *drow
        void *dx
        void *dw_ih[2]
        void *dw_hh[2]
        void *db_ih[2]
        void *db_hh[2]
        void *dunits[2]
        void *dw_hr[2]
        void *db_hr[2]

    ctypedef struct elman_cell:
        const char *name
        int gates, states, is_recurrent, carries_h, takes_row, projects, slots, units, size
        void (*forward)(const elman_forward_call *call) noexcept nogil
        void (*backward)(const elman_backward_call *call) noexcept nogil
        ptrdiff_t (*forward_scratch)(const elman_layer *layer) noexcept nogil
        ptrdiff_t (*backward_scratch)(const elman_layer *layer) noexcept nogil
        ptrdiff_t (*tape)(const elman_layer *layer, ptrdiff_t rows) noexcept nogil
        void (*pack)(ptrdiff_t I, ptrdiff_t H, ptrdiff_t R, const elman_dense *dense,
                     const elman_weights *packed) noexcept nogil
        void (*pack_transposed)(ptrdiff_t I, ptrdiff_t H, ptrdiff_t R, const elman_dense *dense,
                                const elman_weights *packed) noexcept nogil

    ctypedef struct elman_rule:
        double lr, weight_decay, shrink, momentum, mean_decay, square_decay, eps
        int nesterov, centered

    ctypedef struct elman_parameter:
        ptrdiff_t n
        const void *w
        const void *g
        const void *old[3]
        void *w_next
        void *next[3]

    ctypedef struct elman_cross_entropy:
        ptrdiff_t T, B, C
        const void *logits
        const ptrdiff_t *targets
        const ptrdiff_t *lengths
        const double *weights
        int is_mean
        void *dlogits

    ctypedef struct elman_ctc:
        ptrdiff_t T, B, C, S, blank
        int threads, is_single
        const void *logits
        const ptrdiff_t *lengths
        const ptrdiff_t *targets
        const ptrdiff_t *counts
        const double *scale
        double *losses
        void *dlogits
        double *scratch

    ctypedef struct elman_kernels:
        const char *isa
        int lanes
        elman_cell *cells
        void (*exp)(ptrdiff_t n, const void *x, void *y) noexcept nogil
        void (*sigmoid)(ptrdiff_t n, const void *x, void *y) noexcept nogil
        void (*tanh)(ptrdiff_t n, const void *x, void *y) noexcept nogil
        void (*gate)(const elman_activation *f, double limit, ptrdiff_t rows, ptrdiff_t H, const void *x,
                     const ptrdiff_t *place, void *y) noexcept nogil
        double (*multiply_add)(ptrdiff_t rounds, void *sum) noexcept nogil
        double (*read)(ptrdiff_t rounds, ptrdiff_t n, const void *a, void *sum) noexcept nogil
        int (*sgd)(const elman_rule *rule, ptrdiff_t count, const elman_parameter *parameters,
                   int threads) noexcept nogil
        int (*rmsprop)(const elman_rule *rule, ptrdiff_t count, const elman_parameter *parameters,
                       int threads) noexcept nogil
        int (*adam)(const elman_rule *rule, ptrdiff_t count, const elman_parameter *parameters,
                    int threads) noexcept nogil
        double (*sum_of_squares)(ptrdiff_t n, const void *x) noexcept nogil
        double (*softmax_cross_entropy)(const elman_cross_entropy *call) noexcept nogil
        void (*ctc)(const elman_ctc *call) noexcept nogil
        ptrdiff_t (*ctc_scratch)(const elman_ctc *call) noexcept nogil

    void elman_stack_forward(const elman_cell *cell, int layers, const elman_forward_call *call)
    ptrdiff_t elman_stack_index(const elman_layer *layer)
    ptrdiff_t elman_stack_scratch(const elman_cell *cell, int layers, const elman_layer *layer)

    const char *elman_compiler()
    int elman_isa_count()
    const char *elman_isa_name(int isa)
    int elman_isa_usable(int isa)
    const elman_kernels *elman_get_kernels(int isa, int is_double)

ctypedef fused real:
    float
    double

cdef int current_isa = 0

# Multiplications in a step() from which on the GIL is released: some 50 us of them.
cdef enum:
    RELEASE_GIL = 1000000
    RELEASE_GIL_UPDATE = 32768  # elements in an optimiser's step, or of logits
    STACK_BYTES = 16384  # of scratch that a stack of layers takes from the C stack; what needs more takes the heap
    WRITABLE = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE


def isa_built():
    """Names of the instruction sets in this build, best last."""
    return tuple(elman_isa_name(i).decode() for i in range(elman_isa_count()))


def isa_usable():
    """Names of those that this CPU and operating system can run, best last."""
    return tuple(elman_isa_name(i).decode() for i in range(elman_isa_count()) if elman_isa_usable(i))


def isa():
    """Name of the instruction set that newly packed weights are laid out for."""
    return elman_isa_name(current_isa).decode()


def select_isa(name):
    """Use this one of isa_usable() from now on. What is packed already keeps its own."""
    global current_isa
    current_isa = isa_built().index(name)


def cell_names():
    """The cells, in the order of their numbers."""
    cdef int i
    return tuple(elman_get_kernels(0, 0).cells[i].name.decode() for i in range(ELMAN_CELL_COUNT))


@cython.final
cdef class Memory:
    """So many bytes, from a cache line on, to be written by one kernel and read by another. NumPy can look at them."""

    cdef char *allocated
    cdef char *start
    cdef readonly ptrdiff_t size

    def __cinit__(self, ptrdiff_t size):
        self.allocated = allocate(size)
        self.start, self.size = aligned(self.allocated), size

    def __dealloc__(self):
        PyMem_RawFree(self.allocated)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.start, self.size, False, flags)


cdef Memory take(spare, ptrdiff_t size, ptrdiff_t most):
    """What waits in the deque `spare`, if that has from `size` to `most` bytes, or new. To hand out fresh pages can cost
    the operating system more time than the kernels take to fill them."""
    cdef Memory memory
    try:
        memory = spare.pop()
    except IndexError:
        return Memory(size)
    return memory if size <= memory.size <= most else Memory(size)


@cython.final
cdef class Packed:
    """One layer's weights in the layout of one instruction set, as long as this object lives."""

    cdef const elman_kernels *kernels
    cdef const elman_cell *cell
    cdef elman_weights weights[2]
    cdef elman_options options
    cdef list memory  # what `weights` points into
    cdef readonly ptrdiff_t I, H, R
    cdef readonly int D, cell_number
    cdef readonly bint is_double

    def __init__(self, int cell_number, bint is_double, ptrdiff_t I, ptrdiff_t H, ptrdiff_t R, int D,
                 tuple activations=(), int coupled=0, bint peepholes=False, bint is_projected=False, bint by_deviation=False,
                 double clip=INFINITY, double cell_clip=INFINITY, double proj_clip=INFINITY, double stay=0.0):
        """activations: up to four of (number, alpha, beta)."""
        cdef int i
        self.kernels = elman_get_kernels(current_isa, is_double)
        self.cell = &self.kernels.cells[cell_number]
        self.cell_number, self.is_double = cell_number, is_double
        self.I, self.H, self.R, self.D = I, H, R, D
        for i, (number, alpha, beta) in enumerate(activations):
            self.options.activations[i] = elman_activation(number, alpha, beta)
        self.options.coupled, self.options.peepholes = coupled, peepholes
        self.options.is_projected, self.options.stay = is_projected, stay
        self.options.by_deviation = by_deviation
        self.options.clip, self.options.cell_clip, self.options.proj_clip = clip, cell_clip, proj_clip
        self.memory = []

    @property
    def isa(self):
        return self.kernels.isa.decode()

    @property
    def lanes(self):
        return self.kernels.lanes

    @property
    def gates(self):
        return self.cell.gates

    @property
    def states(self):
        return self.cell.states

    @property
    def slots(self):
        return self.cell.slots

    @property
    def units(self):
        return self.cell.units

    @property
    def carries_h(self):
        return bool(self.cell.carries_h)

    cpdef ptrdiff_t padded(self, ptrdiff_t n) noexcept:
        """n rounded up to whole vectors."""
        return -(-n // self.kernels.lanes) * self.kernels.lanes

    cdef int lay_out(self, int count, const void ***places, const ptrdiff_t *sizes) except -1:
        """Points each place at so many elements on cache lines of their own; NULL, if none are wanted."""
        cdef ptrdiff_t line = 64 // self.cell.size, total = 0
        cdef Memory memory
        cdef int i
        for i in range(count):
            total += -(-sizes[i] // line) * line
        memory = Memory(total * self.cell.size)
        total = 0
        for i in range(count):
            places[i][0] = memory.start + total * self.cell.size if sizes[i] else NULL
            total += -(-sizes[i] // line) * line
        self.memory.append(memory)
        return 0

    def pack(self, int d, tuple dense):
        """Lay out the weights of direction d. dense: w_ih, w_hh, b_ih, b_hh, units, w_hr, b_hr, dense arrays or None, of
        the dtype that this was made for."""
        cdef elman_weights *w = &self.weights[d]
        cdef list alive = []
        cdef elman_dense arrays = dense_of(dense, alive)
        cdef ptrdiff_t I = self.I, H = self.H, R = self.R, Hp = self.padded(H), N = self.cell.gates * Hp
        cdef ptrdiff_t recurrent = self.cell.is_recurrent, Rp = self.padded(R) if self.options.is_projected else 0
        cdef const void **places[7]
        places[0], places[1], places[2], places[3] = &w.w_ih, &w.w_hh, &w.b_ih, &w.b_hh
        places[4], places[5], places[6] = &w.units, &w.w_hr, &w.b_hr
        self.lay_out(7, places, [I * N, recurrent * R * N, N, recurrent * N, self.cell.units * Hp, H * Rp, Rp])
        with nogil:
            self.cell.pack(I, H, R, &arrays, w)

    def pack_transposed(self, int d, tuple dense):
        """The same for backward, after `pack`."""
        cdef elman_weights *w = &self.weights[d]
        cdef list alive = []
        cdef elman_dense arrays = dense_of(dense, alive)
        cdef ptrdiff_t Hp = self.padded(self.H), Rp = self.padded(self.R), N = self.cell.gates * Hp
        cdef const void **places[3]
        places[0], places[1], places[2] = &w.wt_ih, &w.wt_hh, &w.wt_hr
        self.lay_out(3, places, [N * self.padded(self.I), self.cell.is_recurrent * N * Rp,
                                 Rp * Hp if self.options.is_projected else 0])
        with nogil:
            self.cell.pack_transposed(self.I, self.H, self.R, &arrays, w)

    cpdef ptrdiff_t tape_size(self, ptrdiff_t rows, bint recompute) noexcept:
        """Bytes of a tape for so many true pairs of step and sequence, which each direction sees."""
        cdef elman_layer layer
        layer.H, layer.R, layer.weights, layer.recompute = self.H, self.R, self.weights, recompute
        return self.D * self.cell.tape(&layer, rows) * self.cell.size

    def new_tape(self, spare, ptrdiff_t rows, bint recompute):
        """Memory for it: what waits in the deque `spare`, if it fits and is not too large, or new."""
        cdef ptrdiff_t size = self.tape_size(rows, recompute)
        return take(spare, size, 2 * size)


cdef const void *pointer(array, list alive) except? NULL:
    """Where the elements of a dense array are, which must not go away before `alive`; None is NULL."""
    cdef Py_buffer view
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS)
    PyBuffer_Release(&view)
    alive.append(array)
    return view.buf


cdef elman_dense dense_of(tuple arrays, list alive) except *:
    cdef elman_dense dense
    w_ih, w_hh, b_ih, b_hh, units, w_hr, b_hr = arrays
    dense.w_ih, dense.w_hh = pointer(w_ih, alive), pointer(w_hh, alive)
    dense.b_ih, dense.b_hh = pointer(b_ih, alive), pointer(b_hh, alive)
    dense.units, dense.w_hr, dense.b_hr = pointer(units, alive), pointer(w_hr, alive), pointer(b_hr, alive)
    return dense


cdef inline const void *start_of(const real[:, :, ::1] a) noexcept:
    if a is None or a.size == 0:
        return NULL
    return &a[0, 0, 0]


cdef void fill_layer(elman_layer *layer, Packed packed, const real[:, :, :] x, const ptrdiff_t[::1] lengths,
                     const unsigned char[:, ::1] reset, const real[:, ::1] row, int threads):
    layer.T, layer.B, layer.I, layer.H, layer.R = x.shape[0], x.shape[1], packed.I, packed.H, packed.R
    layer.directions, layer.weights, layer.options = packed.D, packed.weights, &packed.options
    layer.tape, layer.recompute, layer.scratch = NULL, 0, NULL
    no_noise(layer)
    fill_arrays[real](layer, x, lengths, reset, row, threads)


cdef void fill_arrays(elman_layer *layer, const real[:, :, :] x, const ptrdiff_t[::1] lengths,
                      const unsigned char[:, ::1] reset, const real[:, ::1] row, int threads):
    layer.threads, layer.x, layer.lengths, layer.reset, layer.row = threads, NULL, NULL, NULL, NULL
    layer.x_t, layer.x_b = x.strides[0] // <ptrdiff_t>sizeof(real), x.strides[1] // <ptrdiff_t>sizeof(real)
    if x.shape[0] and x.shape[1]:
        layer.x = &x[0, 0, 0]
        if reset is not None:
            layer.reset = &reset[0, 0]
        if row is not None:
            layer.row = &row[0, 0]
    if lengths is not None and lengths.shape[0]:
        layer.lengths = &lengths[0]


cdef inline void no_noise(elman_layer *layer) noexcept:
    layer.mask = layer.stays[0] = layer.stays[1] = NULL
    layer.stay[0] = layer.stay[1] = 0


cdef void fill_noise(elman_layer *layer, tuple noise, list alive) except *:
    """noise: factors of h on its way into the recurrent product (D, B, R) or None, and of h and of c what zoneout lets
    stay: a bool array (T, B, D*R or D*H), or a number."""
    cdef int i
    mask, *zoneout = noise
    layer.mask = pointer(mask, alive)
    for i, stays in enumerate(zoneout):
        if isinstance(stays, float):
            layer.stay[i] = stays
        else:
            layer.stays[i] = <const unsigned char *>pointer(stays, alive)


cdef inline char *aligned(char *p) noexcept nogil:
    return <char *>((<uintptr_t>p + 63) // 64 * 64)


cdef char *allocate(ptrdiff_t size) except NULL:
    cdef char *memory = <char *>PyMem_RawMalloc(size + 64)
    if memory == NULL:
        raise MemoryError(f"no {size} bytes of scratch")
    return memory


def forward(Packed packed, const real[:, :, :] x, list state, const ptrdiff_t[::1] lengths,
            const unsigned char[:, ::1] reset, const real[:, ::1] row, tuple noise, int threads, real[:, :, :] y,
            real[:, :, ::1] c_all, list last, Memory tape, bint recompute, spare):
    """state, last: dense arrays, one for each state that the cell carries; in `state` None is zeros. tape: from
    new_tape, or None. spare: a deque in which scratch waits for the next call."""
    cdef elman_forward_call call
    cdef Memory scratch
    cdef list alive = []
    cdef int i, first = not packed.cell.carries_h
    if x.shape[1] == 0:
        return
    fill_layer[real](&call.layer, packed, x, lengths, reset, row, threads)
    if noise is not None:
        fill_noise(&call.layer, noise, alive)
    if tape is not None:
        call.layer.tape, call.layer.recompute = tape.start, recompute
    for i in range(ELMAN_STATES):
        call.state[i] = call.last[i] = NULL
    for i in range(first, packed.cell.states):
        call.state[i], call.last[i] = pointer(state[i - first], alive), <void *>pointer(last[i - first], alive)
    call.y, call.c = NULL, <void *>start_of[real](c_all)
    if call.c != NULL:
        call.c_t, call.c_b = c_all.shape[1] * c_all.shape[2], c_all.shape[2]
    if x.shape[0]:
        call.y = &y[0, 0, 0]
    call.y_t, call.y_b = y.strides[0] // <ptrdiff_t>sizeof(real), y.strides[1] // <ptrdiff_t>sizeof(real)
    scratch = scratch_of(&call.layer, packed.cell.forward_scratch(&call.layer) * packed.cell.size, spare)
    with nogil:
        packed.cell.forward(&call)
    spare.append(scratch)


def backward(Packed packed, const real[:, :, :] x, const ptrdiff_t[::1] lengths, const unsigned char[:, ::1] reset,
             const real[:, ::1] row, tuple noise, int threads, Memory tape, bint recompute, const real[:, :, :] dy,
             const real[:, :, :] dc_all, double limit, list dlast, real[:, :, ::1] dx, list dstate,
             real[:, :, ::1] drow, list dweights, spare):
    """dlast, dstate: as state and last of `forward`. dweights: for each direction the arrays of `pack`'s dense, to be
    written, or None. spare: as in `forward`."""
    cdef elman_backward_call call
    cdef Memory scratch
    cdef list alive = []
    cdef elman_dense dense
    cdef int d, i, first = not packed.cell.carries_h
    fill_layer[real](&call.layer, packed, x, lengths, reset, row, threads)
    if noise is not None:
        fill_noise(&call.layer, noise, alive)
    call.layer.tape, call.layer.recompute = tape.start, recompute
    call.dy = NULL
    if dy is not None and x.shape[0] and x.shape[1]:
        call.dy = &dy[0, 0, 0]
        call.dy_t, call.dy_b = dy.strides[0] // <ptrdiff_t>sizeof(real), dy.strides[1] // <ptrdiff_t>sizeof(real)
    call.dc, call.limit = NULL, limit
    if dc_all is not None and x.shape[0] and x.shape[1]:
        call.dc = &dc_all[0, 0, 0]
        call.dc_t = dc_all.strides[0] // <ptrdiff_t>sizeof(real)
        call.dc_b = dc_all.strides[1] // <ptrdiff_t>sizeof(real)
    for i in range(ELMAN_STATES):
        call.dlast[i] = call.dstate[i] = NULL
    for i in range(first, packed.cell.states):
        call.dlast[i], call.dstate[i] = pointer(dlast[i - first], alive), <void *>pointer(dstate[i - first], alive)
    call.dx, call.drow = <void *>start_of[real](dx), <void *>start_of[real](drow)
    for d in range(packed.D):
        dense = dense_of(dweights[d], alive)
        call.dw_ih[d], call.dw_hh[d] = <void *>dense.w_ih, <void *>dense.w_hh
        call.db_ih[d], call.db_hh[d] = <void *>dense.b_ih, <void *>dense.b_hh
        call.dunits[d], call.dw_hr[d], call.db_hr[d] = <void *>dense.units, <void *>dense.w_hr, <void *>dense.b_hr
    scratch = scratch_of(&call.layer, packed.cell.backward_scratch(&call.layer) * packed.cell.size, spare)
    with nogil:
        packed.cell.backward(&call)
    spare.append(scratch)


cdef Memory scratch_of(elman_layer *layer, ptrdiff_t size, spare):
    """The layer's index, and behind it scratch of so many bytes."""
    cdef ptrdiff_t index = ((2 * layer.B + layer.T + 1) * <ptrdiff_t>sizeof(ptrdiff_t) + 63) // 64 * 64
    cdef Memory memory = take(spare, index + size, PY_SSIZE_T_MAX)
    layer.index, layer.scratch = <ptrdiff_t *>memory.start, memory.start + index
    return memory


cdef inline bint is_plain(const Py_buffer *view, char item, int axes, ptrdiff_t n0, ptrdiff_t n1,
                          ptrdiff_t n2) noexcept:
    """Whether it has this type and the last `axes` of these sizes; -1 stands for any."""
    cdef ptrdiff_t *sizes = [n0, n1, n2]
    cdef int i
    if view.format == NULL or view.format[0] != item or view.format[1] != 0 or view.ndim != axes:
        return False
    for i in range(axes):
        if sizes[3 - axes + i] >= 0 and view.shape[i] != sizes[3 - axes + i]:
            return False
    return True


cdef inline bint overlap(const Py_buffer *a, const Py_buffer *b) noexcept:
    return <char *>a.buf < <char *>b.buf + b.len and <char *>b.buf < <char *>a.buf + a.len


cdef int by_address(const void *a, const void *b) noexcept nogil:
    cdef const char *p = (<const char **>a)[0]
    cdef const char *q = (<const char **>b)[0]
    return (p > q) - (p < q)


cdef inline bint is_state(state, int parts) noexcept:
    """Whether it is one array, or a tuple of so many."""
    return parts == 1 or (PyTuple_Check(state) and PyTuple_GET_SIZE(state) == parts)


cdef inline object part_of(state, int parts, int i):
    """h, c, ... Not state[i]: of a subclass of tuple that costs 0.1 us."""
    return state if parts == 1 else <object>PyTuple_GET_ITEM(state, i)


@cython.final
cdef class Stack:
    """Layers, one on top of the other, ready for inference. `step` and `call` are the quick ways for plain arguments: they
    read them through the buffer protocol, since a typed memoryview costs 0.25 us and a small network is stepped in
    0.3 us. They return None, and have changed nothing, where an argument is not dense, of the right dtype and shape,
    and in memory of its own."""

    cdef tuple layers  # of Packed
    cdef elman_weights *weights  # (L * D)
    cdef const elman_cell *cell
    cdef const elman_options *options
    cdef object dtype, threads, begin
    cdef ptrdiff_t I, H, R, work  # multiplications of a step of one sequence
    cdef int D, parts, first  # parts of a state: the cell's states from the first on that it carries
    cdef double stay[2]  # zoneout
    cdef char item

    def __cinit__(self, layers, dtype, threads, zoneout=(0.0, 0.0), begin=None):
        """threads: a function, asked by a step that is large enough for more than one. zoneout: the share of the old
        h and c that stays. begin: a function, asked for (L * D, H) of h, of c, ..., which a call without a state begins
        with; None: zeros."""
        cdef Packed packed
        cdef ptrdiff_t k, d
        self.layers, self.dtype, self.threads, self.begin, self.work = tuple(layers), dtype, threads, begin, 0
        packed = <Packed>self.layers[0]
        self.I, self.H, self.R, self.D, self.cell = packed.I, packed.H, packed.R, packed.D, packed.cell
        self.stay[0], self.stay[1] = zoneout
        self.options = &packed.options
        self.item = b"d" if packed.is_double else b"f"
        self.first = not packed.cell.carries_h
        self.parts = packed.cell.states - self.first
        self.weights = <elman_weights *>PyMem_RawMalloc(len(self.layers) * self.D * sizeof(elman_weights))
        if self.weights == NULL:
            raise MemoryError("no memory for a stack of layers")
        for k in range(len(self.layers)):
            packed = <Packed>self.layers[k]
            for d in range(self.D):
                self.weights[k * self.D + d] = packed.weights[d]
            self.work += self.D * packed.cell.gates * packed.H * (packed.I + packed.cell.is_recurrent * packed.R)

    def __dealloc__(self):
        PyMem_RawFree(self.weights)

    def step(self, x, state, out, row=None):
        """x (B, I) or (I,), state (L, B, H) or (L, H) in place (h, or a tuple of h and c), out (B, H) or (H,)
        or None, row (B,) or one number, of a cell that takes them, or None. Returns out. The quick way only; two
        directions are not for it."""
        cdef Py_buffer views[7]  # x, out, the parts of the state, row
        cdef elman_forward_call call
        cdef ptrdiff_t B, L = len(self.layers)
        cdef int i, j, axes, opened = 0
        cdef double number = 0
        cdef float short_number
        try:
            if self.D == 2 or not is_state(state, self.parts):
                return None
            if out is not None and not isinstance(out, _ndarray):
                return None
            if out is None:
                out = _empty((x.shape[0], self.R) if x.ndim == 2 else self.R, self.dtype)
            PyObject_GetBuffer(x, &views[0], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
            opened = 1
            PyObject_GetBuffer(out, &views[1], WRITABLE)
            opened = 2
            for i in range(self.parts):
                part = part_of(state, self.parts, i)
                if not isinstance(part, _ndarray):
                    return None
                PyObject_GetBuffer(part, &views[2 + i], WRITABLE)
                opened = 3 + i
            call.layer.row = NULL
            if PyFloat_CheckExact(row) and views[0].ndim == 1:
                number = row
                short_number = <float>number
                call.layer.row = <void *>&number if self.item == b"d" else <void *>&short_number
            elif row is not None:
                PyObject_GetBuffer(row, &views[2 + self.parts], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
                opened = 3 + self.parts
                call.layer.row = views[2 + self.parts].buf
            axes = views[0].ndim
            B = views[0].shape[0] if axes == 2 else 1
            if not 1 <= axes <= 2 or not is_plain(&views[0], self.item, axes, -1, -1, self.I):
                return None
            if not is_plain(&views[1], self.item, axes, -1, B, self.R):
                return None
            for i in range(2, 2 + self.parts):
                if not is_plain(&views[i], self.item, axes + 1, L, B if axes == 2 else L, self.width(i - 2)):
                    return None
            if opened > 2 + self.parts and not is_plain(&views[2 + self.parts], self.item, axes - 1, -1, -1, B):
                return None
            for i in range(opened):
                for j in range(i):
                    if overlap(&views[i], &views[j]):
                        return None
            call.layer.x, call.layer.x_t, call.layer.x_b = views[0].buf, 0, self.I
            call.y, call.y_t, call.y_b = views[1].buf, 0, self.R
            call.c, call.layer.lengths, call.layer.reset, call.layer.threads = NULL, NULL, NULL, 1
            if self.work * B > RELEASE_GIL:
                call.layer.threads = self.threads()
            for i in range(self.parts):
                call.state[i + self.first] = call.last[i + self.first] = views[2 + i].buf
            self.run(1, B, &call, self.work * B > RELEASE_GIL)
            return out
        except (AttributeError, TypeError, ValueError, BufferError):
            return None
        finally:
            for i in range(opened):
                PyBuffer_Release(&views[i])

    def call(self, x, state, bint batch_first, int threads, row=None):
        """Whole sequences without lengths and resets: x (T, B, I), with batch_first (B, T, I), or (T, I); state
        (L * D, B, H), or (L * D, H), h or (h, c); None, whole or in part, is `begin`; row (T, B), with batch_first (B, T),
        or (T,), of a cell that takes it, or None. Returns a list of new arrays: y, h and, where the cell has it, c. The
        quick way only."""
        cdef Py_buffer views[2]  # x; row and the result in turn
        cdef elman_forward_call call
        cdef ptrdiff_t T, B, rows = len(self.layers) * self.D, outputs = self.D * self.R
        cdef int i, axes, opened = 0
        try:
            PyObject_GetBuffer(x, &views[0], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
            opened = 1
            axes = views[0].ndim
            if not 2 <= axes <= 3 or not is_plain(&views[0], self.item, axes, -1, -1, self.I):
                return None
            B = 1 if axes == 2 else views[0].shape[not batch_first]
            T = views[0].shape[batch_first and axes == 3]
            call.layer.x, call.layer.x_t, call.layer.x_b = views[0].buf, B * self.I, self.I
            call.y_t, call.y_b = B * outputs, outputs
            if batch_first:
                call.layer.x_t, call.layer.x_b = self.I, T * self.I
                call.y_t, call.y_b = outputs, T * outputs
            call.layer.row = NULL
            if row is not None:
                if batch_first and axes == 3:
                    row = row.T.copy()
                if not isinstance(row, _ndarray):
                    return None
                PyObject_GetBuffer(row, &views[1], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
                opened = 2
                if not is_plain(&views[1], self.item, axes - 1, -1, T, B if axes == 3 else T):
                    return None
                call.layer.row = views[1].buf  # as long as `row` lives
                PyBuffer_Release(&views[1])
                opened = 1
            if state is not None and not is_state(state, self.parts):
                return None
            result = [_empty((*x.shape[:axes - 1], outputs), self.dtype)]
            for i in range(self.parts):
                given = None if state is None else part_of(state, self.parts, i)
                if axes == 3:
                    part = _zeros((rows, B, self.width(i)), self.dtype)
                else:
                    part = _zeros((rows, self.width(i)), self.dtype)
                PyObject_GetBuffer(part, &views[1], WRITABLE)
                call.state[i + self.first] = call.last[i + self.first] = views[1].buf  # as long as `part` lives
                PyBuffer_Release(&views[1])
                if given is not None:
                    PyObject_GetBuffer(given, &views[1], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
                    opened = 2
                    if not is_plain(&views[1], self.item, axes, rows, B if axes == 3 else rows, self.width(i)):
                        return None
                    memcpy(call.last[i + self.first], views[1].buf, views[1].len)
                    PyBuffer_Release(&views[1])
                    opened = 1
                elif self.begin is not None:
                    given = self.begin()[i]
                    part[...] = given[:, None] if axes == 3 else given
                result.append(part)
            PyObject_GetBuffer(result[0], &views[1], WRITABLE)
            opened = 2
            call.y = views[1].buf
            call.c, call.layer.lengths, call.layer.reset = NULL, NULL, NULL
            call.layer.threads = threads
            self.run(T, B, &call, True)
            return result
        except (AttributeError, TypeError, ValueError, BufferError):
            return None
        finally:
            for i in range(opened):
                PyBuffer_Release(&views[i])

    def step_many(self, x, tuple states, out, int threads):
        """One step of N streams: x (N, I), N states in place, each (L, H) or (L, 1, H), h or a tuple of h and c, and out
        (N, H) or None. Returns out. The quick way only; two directions are not for it."""
        cdef ptrdiff_t N = len(states), L = len(self.layers), row, place, opened = 0, b, l
        cdef int i
        cdef elman_forward_call call
        cdef Py_buffer *views = NULL  # x, out, the parts of every state
        cdef Py_buffer *view
        cdef char *memory = NULL  # the states as one batch: (L, N, H) of h, and of c
        cdef const void **places = NULL
        if self.D == 2 or N == 0 or (out is not None and not isinstance(out, _ndarray)):
            return None
        try:
            views = <Py_buffer *>allocate((2 + self.parts * N) * sizeof(Py_buffer))
            PyObject_GetBuffer(x, &views[0], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
            opened = 1
            if out is None:
                out = _empty((N, self.R), self.dtype)
            PyObject_GetBuffer(out, &views[1], WRITABLE)
            opened = 2
            if not is_plain(&views[0], self.item, 2, -1, N, self.I) or overlap(&views[0], &views[1]):
                return None
            if not is_plain(&views[1], self.item, 2, -1, N, self.R):
                return None
            places = <const void **>allocate(2 * self.parts * N * sizeof(void *))
            for state in states:
                if not is_state(state, self.parts):
                    return None
                for i in range(self.parts):
                    part, view = part_of(state, self.parts, i), &views[opened]
                    if not isinstance(part, _ndarray):
                        return None
                    PyObject_GetBuffer(part, view, WRITABLE)
                    opened += 1
                    if not (is_plain(view, self.item, 2, -1, L, self.width(i))
                            or is_plain(view, self.item, 3, L, 1, self.width(i))):
                        return None
                    if overlap(view, &views[0]) or overlap(view, &views[1]):
                        return None
                    places[2 * (opened - 3)] = view.buf
                    places[2 * (opened - 3) + 1] = <char *>view.buf + view.len
            qsort(places, self.parts * N, 2 * sizeof(void *), by_address)
            for b in range(1, self.parts * N):
                if <const char *>places[2 * b] < <const char *>places[2 * b - 1]:
                    return None
            memory = allocate(L * N * (self.R + (self.parts - 1) * self.H + self.H) * self.cell.size)
            call.layer.x, call.layer.x_t, call.layer.x_b = views[0].buf, 0, self.I
            call.y, call.y_t, call.y_b = views[1].buf, 0, self.R
            call.c, call.layer.lengths, call.layer.reset, call.layer.row = NULL, NULL, NULL, NULL
            call.layer.threads = threads
            place = 0
            for i in range(self.parts):
                call.state[i + self.first] = call.last[i + self.first] = memory + place
                row = self.width(i) * self.cell.size
                for b in range(N):
                    for l in range(L):
                        memcpy(memory + place + (l * N + b) * row,
                               <char *>views[2 + b * self.parts + i].buf + l * row, row)
                place += L * N * row
            self.run(1, N, &call, self.work * N > RELEASE_GIL)
            for i in range(self.parts):
                row = self.width(i) * self.cell.size
                for b in range(N):
                    for l in range(L):
                        memcpy(<char *>views[2 + b * self.parts + i].buf + l * row,
                               <char *>call.last[i + self.first] + (l * N + b) * row, row)
            return out
        except (AttributeError, TypeError, ValueError, BufferError):
            return None
        finally:
            for b in range(opened):
                PyBuffer_Release(&views[b])
            PyMem_RawFree(views)
            PyMem_RawFree(places)
            PyMem_RawFree(memory)

    cdef inline ptrdiff_t width(self, int i) noexcept:
        """Of part i of the state."""
        return self.H if i + self.first else self.R

    cdef int run(self, ptrdiff_t T, ptrdiff_t B, elman_forward_call *call, bint release) except -1:
        """The call's x, y, the states that are carried, lengths, reset and threads are set."""
        cdef char on_stack[STACK_BYTES]
        cdef char *memory = on_stack
        cdef int layers = <int>len(self.layers)
        cdef ptrdiff_t index, needed
        if B == 0:
            return 0
        call.layer.T, call.layer.B, call.layer.I, call.layer.H = T, B, self.I, self.H
        call.layer.R = self.R
        call.layer.directions, call.layer.weights, call.layer.options = self.D, self.weights, self.options
        no_noise(&call.layer)
        call.layer.stay[0], call.layer.stay[1] = self.stay[0], self.stay[1]
        if self.first:
            call.state[0] = call.last[0] = NULL
        call.layer.tape, call.layer.recompute = NULL, 0
        index = (elman_stack_index(&call.layer) * <ptrdiff_t>sizeof(ptrdiff_t) + 63) // 64 * 64
        needed = 64 + index + elman_stack_scratch(self.cell, layers, &call.layer) * self.cell.size
        if needed > STACK_BYTES:
            memory = allocate(needed)
        call.layer.index = <ptrdiff_t *>aligned(memory)
        call.layer.scratch = <char *>call.layer.index + index
        if release:
            with nogil:
                elman_stack_forward(self.cell, layers, call)
        else:
            elman_stack_forward(self.cell, layers, call)
        if memory != on_stack:
            PyMem_RawFree(memory)
        return 0


def infer(Stack stack, const real[:, :, :] x, const ptrdiff_t[::1] lengths, const unsigned char[:, ::1] reset,
          const real[:, ::1] row, int threads, real[:, :, :] y, list state):
    """Whole sequences through a stack; state, one dense array for each part, in place."""
    cdef elman_forward_call call
    cdef list alive = []
    cdef int i
    fill_arrays[real](&call.layer, x, lengths, reset, row, threads)
    call.y = call.c = NULL
    if x.shape[0] and x.shape[1]:
        call.y = &y[0, 0, 0]
    call.y_t, call.y_b = y.strides[0] // <ptrdiff_t>sizeof(real), y.strides[1] // <ptrdiff_t>sizeof(real)
    for i in range(stack.parts):
        call.last[i + stack.first] = <void *>pointer(state[i], alive)
        call.state[i + stack.first] = call.last[i + stack.first]
    stack.run(x.shape[0], x.shape[1], &call, True)


def elementwise(str name, const real[::1] x, real[::1] y):
    """y = exp, sigmoid or tanh of x."""
    cdef const elman_kernels *kernels = elman_get_kernels(current_isa, sizeof(real) == 8)
    cdef void (*function)(ptrdiff_t n, const void *x, void *y) noexcept nogil
    function = kernels.exp if name == "exp" else kernels.sigmoid if name == "sigmoid" else kernels.tanh
    if x.shape[0]:
        with nogil:
            function(x.shape[0], &x[0], &y[0])


def gate(Packed packed, tuple activation, const real[:, ::1] slot, const ptrdiff_t[::1] place, real[::1] out):
    """The H units of each row of a tape's slot (rows, Hp) to where `place` says; of pre-activations what the activation,
    (number, alpha, beta), makes of them, with None as they are."""
    cdef elman_activation of_gate
    cdef const elman_activation *f = NULL
    if activation is not None:
        of_gate.name, of_gate.alpha, of_gate.beta = activation
        f = &of_gate
    if slot.shape[0]:
        with nogil:
            packed.kernels.gate(f, packed.options.clip, slot.shape[0], packed.H, &slot[0, 0], &place[0], &out[0])


def multiply_add(ptrdiff_t rounds, real[::1] total):
    """Keeps the multipliers busy, and returns the operations done. total (lanes or more): the factor, then a sum."""
    cdef const elman_kernels *kernels = elman_get_kernels(current_isa, sizeof(real) == 8)
    cdef double operations
    with nogil:
        operations = kernels.multiply_add(rounds, &total[0])
    return operations


def read(ptrdiff_t rounds, const real[::1] a, real[::1] total):
    """Reads the whole of `a`, again and again, and returns the bytes read. total (lanes or more): a sum."""
    cdef const elman_kernels *kernels = elman_get_kernels(current_isa, sizeof(real) == 8)
    cdef double size
    with nogil:
        size = kernels.read(rounds, a.shape[0], &a[0], &total[0])
    return size


cdef inline bint is_like(const Py_buffer *view, const Py_buffer *other, char item) noexcept:
    """Whether it has this type and the other's shape."""
    cdef int i
    if view.format == NULL or view.format[0] != item or view.format[1] != 0 or view.ndim != other.ndim:
        return False
    for i in range(view.ndim):
        if view.shape[i] != other.shape[i]:
            return False
    return True


def update(str kind, tuple rule, dict weights, dict grads, const real[:, :] old, real[:, :] new, threads):
    """One step of "sgd", "rmsprop" or "adam" for all weights of a layer, in one C call.

    rule: the numbers of elman_rule, in its order. weights, grads: dense arrays of one dtype under the same names. old,
    new: the moments (slots, n) before and after the step, those of all weights one behind the other. threads: a
    function, asked by a step that is large enough for more than one.

    Returns the new weights by name, in memory that nobody can write to; or None, where an array is not there, not
    dense, or of another dtype or shape. FloatingPointError: a new weight or mean square is not finite. (Buffers as in
    Stack: a typed memoryview for each array would cost more than a small network's step.)
    """
    cdef const elman_kernels *kernels = elman_get_kernels(current_isa, sizeof(real) == 8)
    cdef int (*function)(const elman_rule *rule, ptrdiff_t count, const elman_parameter *parameters,
                         int threads) noexcept nogil
    cdef elman_rule r
    cdef ptrdiff_t count = len(weights), n = 0, opened = 0, k
    cdef int slot, finite, many = 1
    cdef char item = b"d" if sizeof(real) == 8 else b"f"
    cdef Py_buffer *views = NULL  # a weight and its gradient in turn
    cdef Py_buffer *w
    cdef Py_buffer *g
    cdef elman_parameter *parameters = NULL
    function = kernels.sgd if kind == "sgd" else kernels.rmsprop if kind == "rmsprop" else kernels.adam
    (r.lr, r.weight_decay, r.shrink, r.momentum, r.mean_decay, r.square_decay, r.eps, r.nesterov, r.centered) = rule
    if len(grads) != count:
        return None
    try:
        views = <Py_buffer *>allocate(2 * count * sizeof(Py_buffer))
        parameters = <elman_parameter *>allocate(count * sizeof(elman_parameter))
        result = {}
        for k, (name, weight) in enumerate(weights.items()):
            w, g = &views[2 * k], &views[2 * k + 1]
            PyObject_GetBuffer(weight, w, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
            opened += 1
            PyObject_GetBuffer(grads[name], g, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
            opened += 1
            if not is_like(g, w, item):
                return None
            memory = PyBytes_FromStringAndSize(NULL, w.len)
            parameters[k].n, parameters[k].w, parameters[k].g = w.len // w.itemsize, w.buf, g.buf
            parameters[k].w_next = PyBytes_AS_STRING(memory)
            for slot in range(<int>old.shape[0]):
                parameters[k].old[slot], parameters[k].next[slot] = &old[slot, n], &new[slot, n]
            result[name] = _ndarray(weight.shape, weight.dtype, memory)
            n += parameters[k].n
        if n != old.shape[1]:
            return None
        if n > RELEASE_GIL_UPDATE:
            many = threads()
            with nogil:
                finite = function(&r, count, parameters, many)
        else:
            finite = function(&r, count, parameters, 1)
        if not finite:
            raise FloatingPointError
        return result
    except (KeyError, TypeError, ValueError, BufferError):
        return None
    finally:
        for k in range(opened):
            PyBuffer_Release(&views[k])
        PyMem_RawFree(views)
        PyMem_RawFree(parameters)


def sum_of_squares(list arrays):
    """The sum of the squares of all elements, in double; or None, where one is no dense, writable array of float or
    double, or shares memory with another."""
    cdef ptrdiff_t count = len(arrays), opened = 0, n = 0, k
    cdef double total = 0
    cdef Py_buffer *views = NULL
    cdef Py_buffer *view
    cdef const void **places = NULL  # where each begins and ends
    try:
        views = <Py_buffer *>allocate(count * sizeof(Py_buffer))
        places = <const void **>allocate(2 * count * sizeof(void *))
        for array in arrays:
            if not isinstance(array, _ndarray):
                return None
            view = &views[opened]
            PyObject_GetBuffer(array, view, WRITABLE)
            places[2 * opened], places[2 * opened + 1] = view.buf, <char *>view.buf + view.len
            opened += 1
            if not is_like(view, view, b"f") and not is_like(view, view, b"d"):
                return None
            n += view.len // view.itemsize
        qsort(places, count, 2 * sizeof(void *), by_address)
        for k in range(1, count):
            if <const char *>places[2 * k] < <const char *>places[2 * k - 1]:
                return None
        if n > RELEASE_GIL_UPDATE:
            with nogil:
                total = squares_in(views, count)
        else:
            total = squares_in(views, count)
        return total
    except (TypeError, ValueError, BufferError):
        return None
    finally:
        for k in range(opened):
            PyBuffer_Release(&views[k])
        PyMem_RawFree(views)
        PyMem_RawFree(places)


cdef double squares_in(const Py_buffer *views, ptrdiff_t count) noexcept nogil:
    cdef double total = 0
    cdef ptrdiff_t k
    for k in range(count):
        total += elman_get_kernels(current_isa, views[k].itemsize == 8).sum_of_squares(
            views[k].len // views[k].itemsize, views[k].buf)
    return total


def softmax_cross_entropy(logits, targets, lengths, weights, bint is_mean):
    """(loss, dlogits) for dense logits (..., C) and classes (...); lengths: None, or for logits (T, B, C) integers (B,);
    weights: None, or a dense array of double (C,). Or None, where an argument is something else, of another shape, or
    out of range. (Buffers as in Stack.)
    """
    cdef elman_cross_entropy call
    cdef const elman_kernels *kernels
    cdef Py_buffer views[3]
    cdef list alive = []
    cdef ptrdiff_t row
    cdef int opened = 0, axes
    cdef double loss
    if type(logits) is not _ndarray:
        return None
    try:
        targets = integers_of(targets)
        dlogits = _empty(logits.shape, logits.dtype)
        PyObject_GetBuffer(logits, &views[0], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        opened = 1
        PyObject_GetBuffer(dlogits, &views[1], WRITABLE)
        opened = 2
        axes = views[0].ndim - 1
        if axes < 0 or views[0].shape[axes] < 1 or targets is None or logits.shape[:axes] != targets.shape:
            return None
        if not is_like(&views[0], &views[1], b"f") and not is_like(&views[0], &views[1], b"d"):
            return None
        call.C = views[0].shape[axes]
        call.T, call.B = views[0].len // views[0].itemsize // call.C, 1
        call.targets, call.lengths, call.weights = <const ptrdiff_t *>pointer(targets, alive), NULL, NULL
        if lengths is not None:
            lengths = integers_of(lengths)
            if lengths is None or axes != 2 or lengths.shape != targets.shape[1:]:
                return None
            call.T, call.B = views[0].shape[0], views[0].shape[1]
            call.lengths = <const ptrdiff_t *>pointer(lengths, alive)
            for row in range(call.B):
                if not 0 <= call.lengths[row] <= call.T:
                    return None
        if weights is not None:
            PyObject_GetBuffer(weights, &views[2], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
            opened = 3
            if not is_plain(&views[2], b"d", 1, -1, -1, call.C):
                return None
            call.weights = <const double *>views[2].buf
        for row in range(call.T * call.B):
            if call.lengths == NULL or row // call.B < call.lengths[row % call.B]:
                if not 0 <= call.targets[row] < call.C:
                    return None
        call.logits, call.dlogits, call.is_mean = views[0].buf, views[1].buf, is_mean
        kernels = elman_get_kernels(current_isa, views[0].itemsize == 8)
        if views[0].len // views[0].itemsize > RELEASE_GIL_UPDATE:
            with nogil:
                loss = kernels.softmax_cross_entropy(&call)
        else:
            loss = kernels.softmax_cross_entropy(&call)
        return loss, dlogits
    except (TypeError, ValueError, BufferError):
        return None
    finally:
        for row in range(opened):
            PyBuffer_Release(&views[row])


cdef integers_of(value):
    """A copy, so that what is checked stays what it is; None, if they are not integers, or wider than ptrdiff_t."""
    array = _asarray(value)
    return array.astype(_intp, "C") if array.dtype.kind in "iu" and array.itemsize <= sizeof(ptrdiff_t) else None


def ctc(const real[:, :, ::1] logits, const ptrdiff_t[::1] lengths, const ptrdiff_t[:, ::1] targets,
        const ptrdiff_t[::1] counts, ptrdiff_t blank, const double[::1] scale, int threads, double[::1] losses,
        real[:, :, ::1] dlogits):
    """The loss of each sequence and its gradient times `scale`: see elman_ctc in elman.h."""
    cdef const elman_kernels *kernels = elman_get_kernels(current_isa, 1)
    cdef elman_ctc call
    call.T, call.B, call.C, call.S = logits.shape[0], logits.shape[1], logits.shape[2], targets.shape[1]
    if call.B == 0:
        return
    call.logits, call.dlogits = NULL, NULL
    if call.T:
        call.logits, call.dlogits = &logits[0, 0, 0], &dlogits[0, 0, 0]
    call.targets = &targets[0, 0] if call.S else NULL
    call.lengths, call.counts, call.scale, call.losses = &lengths[0], &counts[0], &scale[0], &losses[0]
    call.blank, call.threads, call.is_single = blank, threads, sizeof(real) == 4
    call.scratch = <double *>allocate(kernels.ctc_scratch(&call) * <ptrdiff_t>sizeof(double))
    with nogil:
        kernels.ctc(&call)
    PyMem_RawFree(call.scratch)


def compiler():
    """Name and version of the compiler that built this module."""
    return elman_compiler().decode()
