# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""Typed memoryviews in, one C call out. No arithmetic and no checks: functional.py has made both sure."""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t

from numpy import empty as _empty

cdef extern from "elman.h" nogil:
    int ELMAN_CELL_COUNT

    ctypedef struct elman_weights:
        const void *w_ih
        const void *w_hh
        const void *b_ih
        const void *b_hh
        const void *wt_ih
        const void *wt_hh

    ctypedef struct elman_layer:
        ptrdiff_t T, B, I, H
        int directions, threads
        const elman_weights *weights
        const void *x
        ptrdiff_t x_t, x_b
        const ptrdiff_t *lengths
        const unsigned char *reset
        ptrdiff_t *index
        void *tape
        void *scratch

    ctypedef struct elman_forward_call:
        elman_layer layer
        const void *state[2]
        void *last[2]
        void *y
        ptrdiff_t y_t, y_b

    ctypedef struct elman_backward_call:
        elman_layer layer
        const void *dy
        ptrdiff_t dy_t, dy_b
        const void *dlast[2]
        void *dstate[2]
        void *dx
        void *dw_ih[2]
        void *dw_hh[2]
        void *db_ih[2]
        void *db_hh[2]

    ctypedef struct elman_cell:
        const char *name
        int gates, states, slots
        void (*forward)(const elman_forward_call *call) noexcept nogil
        void (*backward)(const elman_backward_call *call) noexcept nogil
        ptrdiff_t (*forward_scratch)(const elman_layer *layer) noexcept nogil
        ptrdiff_t (*backward_scratch)(const elman_layer *layer) noexcept nogil
        void (*pack)(ptrdiff_t I, ptrdiff_t H, const void *w_ih, const void *w_hh, const void *b_ih, const void *b_hh,
                     void *panels_ih, void *panels_hh, void *padded_b_ih, void *padded_b_hh) noexcept nogil
        void (*pack_transposed)(ptrdiff_t I, ptrdiff_t H, const void *w_ih, const void *w_hh, void *panels_ih,
                                void *panels_hh) noexcept nogil

    ctypedef struct elman_kernels:
        const char *isa
        int lanes
        elman_cell *cells
        void (*exp)(ptrdiff_t n, const void *x, void *y) noexcept nogil
        void (*sigmoid)(ptrdiff_t n, const void *x, void *y) noexcept nogil
        void (*tanh)(ptrdiff_t n, const void *x, void *y) noexcept nogil

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
    STEP_STACK = 65536  # bytes of scratch that step() takes from the C stack; a larger network takes the heap


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
cdef class Packed:
    """One layer's weights in the layout of one instruction set, as long as this object lives."""

    cdef const elman_kernels *kernels
    cdef const elman_cell *cell
    cdef elman_weights weights[2]
    cdef list buffers  # the memory that `weights` points into
    cdef readonly ptrdiff_t I, H
    cdef readonly int D, cell_number
    cdef readonly bint is_double, has_bias, has_transposed

    def __init__(self, int cell_number, bint is_double, ptrdiff_t I, ptrdiff_t H, int D, bint has_bias):
        self.kernels = elman_get_kernels(current_isa, is_double)
        self.cell = &self.kernels.cells[cell_number]
        self.cell_number, self.is_double, self.has_bias = cell_number, is_double, has_bias
        self.I, self.H, self.D, self.has_transposed = I, H, D, False
        self.buffers = []

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


def pack(Packed packed, int d, const real[:, ::1] w_ih, const real[:, ::1] w_hh, const real[::1] b_ih,
         const real[::1] b_hh, real[::1] panels_ih, real[::1] panels_hh, real[::1] padded_b_ih,
         real[::1] padded_b_hh):
    cdef elman_weights *w = &packed.weights[d]
    cdef const void *bias_ih = NULL
    cdef const void *bias_hh = NULL
    if b_ih is not None:
        bias_ih, bias_hh = &b_ih[0], &b_hh[0]
    with nogil:
        packed.cell.pack(packed.I, packed.H, &w_ih[0, 0], &w_hh[0, 0], bias_ih, bias_hh, &panels_ih[0], &panels_hh[0],
                         &padded_b_ih[0], &padded_b_hh[0])
    w.w_ih, w.w_hh, w.b_ih, w.b_hh = &panels_ih[0], &panels_hh[0], &padded_b_ih[0], &padded_b_hh[0]
    packed.buffers += [panels_ih, panels_hh, padded_b_ih, padded_b_hh]


def pack_transposed(Packed packed, int d, const real[:, ::1] w_ih, const real[:, ::1] w_hh, real[::1] panels_ih,
                    real[::1] panels_hh):
    cdef elman_weights *w = &packed.weights[d]
    with nogil:
        packed.cell.pack_transposed(packed.I, packed.H, &w_ih[0, 0], &w_hh[0, 0], &panels_ih[0], &panels_hh[0])
    w.wt_ih, w.wt_hh = &panels_ih[0], &panels_hh[0]
    packed.buffers += [panels_ih, panels_hh]
    packed.has_transposed = d == packed.D - 1


cdef inline const void *start_of(const real[:, :, ::1] a) noexcept:
    if a is None or a.size == 0:
        return NULL
    return &a[0, 0, 0]


cdef void fill_layer(elman_layer *layer, Packed packed, const real[:, :, :] x, const ptrdiff_t[::1] lengths,
                     const unsigned char[:, ::1] reset, int threads):
    layer.T, layer.B, layer.I, layer.H = x.shape[0], x.shape[1], packed.I, packed.H
    layer.directions, layer.threads, layer.weights = packed.D, threads, packed.weights
    layer.x, layer.lengths, layer.reset, layer.tape, layer.scratch = NULL, NULL, NULL, NULL, NULL
    layer.x_t, layer.x_b = x.strides[0] // <ptrdiff_t>sizeof(real), x.strides[1] // <ptrdiff_t>sizeof(real)
    if x.shape[0] and x.shape[1]:
        layer.x = &x[0, 0, 0]
        if reset is not None:
            layer.reset = &reset[0, 0]
    if lengths is not None and lengths.shape[0]:
        layer.lengths = &lengths[0]


cdef inline char *aligned(char *p) noexcept nogil:
    return <char *>((<uintptr_t>p + 63) // 64 * 64)


cdef char *allocate(ptrdiff_t size) except NULL:
    cdef char *memory = <char *>PyMem_RawMalloc(size + 64)
    if memory == NULL:
        raise MemoryError(f"no {size} bytes of scratch")
    return memory


def forward(Packed packed, const real[:, :, :] x, const real[:, :, ::1] h, const real[:, :, ::1] c,
            const ptrdiff_t[::1] lengths, const unsigned char[:, ::1] reset, int threads, real[:, :, :] y,
            real[:, :, ::1] h_last, real[:, :, ::1] c_last, real[::1] tape):
    cdef elman_forward_call call
    cdef char *index
    cdef char *scratch = NULL
    if x.shape[1] == 0:
        return
    fill_layer[real](&call.layer, packed, x, lengths, reset, threads)
    if tape is not None:
        call.layer.tape = &tape[0]
    call.state[0], call.state[1] = start_of[real](h), start_of[real](c)
    call.last[0], call.last[1] = &h_last[0, 0, 0], <void *>start_of[real](c_last)
    call.y = NULL
    if x.shape[0]:
        call.y = &y[0, 0, 0]
    call.y_t, call.y_b = y.strides[0] // <ptrdiff_t>sizeof(real), y.strides[1] // <ptrdiff_t>sizeof(real)
    index = allocate(index_size(&call.layer))
    try:
        call.layer.index = <ptrdiff_t *>aligned(index)
        scratch = allocate(packed.cell.forward_scratch(&call.layer) * <ptrdiff_t>sizeof(real))
        call.layer.scratch = aligned(scratch)
        with nogil:
            packed.cell.forward(&call)
    finally:
        PyMem_RawFree(index)
        PyMem_RawFree(scratch)


def backward(Packed packed, const real[:, :, :] x, const ptrdiff_t[::1] lengths, const unsigned char[:, ::1] reset,
             int threads, real[::1] tape, const real[:, :, :] dy, const real[:, :, ::1] dh_last,
             const real[:, :, ::1] dc_last, real[:, :, ::1] dx, real[:, :, ::1] dh, real[:, :, ::1] dc,
             list dweights):
    cdef elman_backward_call call
    cdef real[:, ::1] matrix
    cdef real[::1] bias
    cdef char *index
    cdef char *scratch = NULL
    cdef int d
    fill_layer[real](&call.layer, packed, x, lengths, reset, threads)
    call.layer.tape = &tape[0]
    call.dy = NULL
    if dy is not None and x.shape[0] and x.shape[1]:
        call.dy = &dy[0, 0, 0]
        call.dy_t, call.dy_b = dy.strides[0] // <ptrdiff_t>sizeof(real), dy.strides[1] // <ptrdiff_t>sizeof(real)
    call.dlast[0], call.dlast[1] = start_of[real](dh_last), start_of[real](dc_last)
    call.dstate[0], call.dstate[1] = <void *>start_of[real](dh), <void *>start_of[real](dc)
    call.dx = <void *>start_of[real](dx)
    for d in range(packed.D):
        matrix = dweights[d][0]
        call.dw_ih[d] = &matrix[0, 0]
        matrix = dweights[d][1]
        call.dw_hh[d] = &matrix[0, 0]
        call.db_ih[d] = call.db_hh[d] = NULL
        if packed.has_bias:
            bias = dweights[d][2]
            call.db_ih[d] = &bias[0]
            bias = dweights[d][3]
            call.db_hh[d] = &bias[0]
    index = allocate(index_size(&call.layer))
    try:
        call.layer.index = <ptrdiff_t *>aligned(index)
        scratch = allocate(packed.cell.backward_scratch(&call.layer) * <ptrdiff_t>sizeof(real))
        call.layer.scratch = aligned(scratch)
        with nogil:
            packed.cell.backward(&call)
    finally:
        PyMem_RawFree(index)
        PyMem_RawFree(scratch)


cdef inline ptrdiff_t index_size(const elman_layer *layer) noexcept:
    return (2 * layer.B + layer.T + 1) * <ptrdiff_t>sizeof(ptrdiff_t)


@cython.final
cdef class Stack:
    """One-direction layers, one on top of the other, ready to be stepped. Reads its arguments through the plain buffer
    protocol: a typed memoryview costs 0.25 us for each, and a small network is stepped in 0.3 us."""

    cdef tuple layers
    cdef object dtype
    cdef ptrdiff_t I, H, work
    cdef int states, item_size

    def __init__(self, layers, dtype):
        cdef Packed packed
        self.layers, self.dtype, self.work = tuple(layers), dtype, 0
        for packed in self.layers:
            self.work += packed.cell.gates * packed.H * (packed.I + packed.H)
        packed = <Packed>self.layers[0]
        self.I, self.H, self.states = packed.I, packed.H, packed.cell.states
        self.item_size = sizeof(double) if packed.is_double else sizeof(float)

    def step(self, x, state, out):
        """x (B, I) or (I,), state (L, B, H) or (L, H) in place (h, or a tuple or list of h and c), out (B, H) or (H,)
        or None. Returns out, or None and changes nothing if an argument is not a dense array of the right dtype and
        shape with memory of its own."""
        cdef Py_buffer views[4]  # x, out, h, c
        cdef int opened = 0
        cdef ptrdiff_t B
        try:
            if self.states == 2 and (not isinstance(state, (tuple, list)) or len(state) != 2):
                return None
            if out is None:
                out = _empty((x.shape[0], self.H) if x.ndim == 2 else self.H, self.dtype)
            PyObject_GetBuffer(x, &views[0], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
            opened = 1
            PyObject_GetBuffer(out, &views[1], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)
            opened = 2
            PyObject_GetBuffer(state[0] if self.states == 2 else state, &views[2],
                               PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)
            opened = 3
            if self.states == 2:
                PyObject_GetBuffer(state[1], &views[3], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)
                opened = 4
            if not self.fit(views):
                return None
            B = views[0].shape[0] if views[0].ndim == 2 else 1
            if B:
                self.run(B, views)
            return out
        except (AttributeError, TypeError, ValueError, BufferError):
            return None
        finally:
            for i in range(opened):
                PyBuffer_Release(&views[i])

    cdef bint fit(self, Py_buffer *views):
        cdef int i, j, axes = views[0].ndim
        cdef const char *item = b"d" if self.item_size == sizeof(double) else b"f"
        cdef ptrdiff_t B = 1
        if axes != 1 and axes != 2:
            return False
        if axes == 2:
            B = views[0].shape[0]
        for i in range(2 + self.states):
            if views[i].format == NULL or views[i].format[0] != item[0] or views[i].format[1] != 0:
                return False
            if views[i].ndim != axes + (i >= 2) or views[i].shape[views[i].ndim - 1] != (self.H if i else self.I):
                return False
            if axes == 2 and views[i].shape[i >= 2] != B or i >= 2 and views[i].shape[0] != len(self.layers):
                return False
            for j in range(i):
                if (<char *>views[i].buf < <char *>views[j].buf + views[j].len and
                        <char *>views[j].buf < <char *>views[i].buf + views[i].len):
                    return False
        return True

    cdef int run(self, ptrdiff_t B, Py_buffer *views) except -1:
        cdef char on_stack[STEP_STACK]
        cdef char *memory = on_stack
        cdef char *outputs  # of two layers, in turn
        cdef elman_forward_call call
        cdef ptrdiff_t l, needed, row = B * self.H * self.item_size, padded = (row + 63) // 64 * 64, widest = 0
        cdef Packed packed
        call.layer.T, call.layer.B, call.layer.H, call.layer.directions, call.layer.threads = 1, B, self.H, 1, 1
        call.layer.lengths, call.layer.reset, call.layer.tape = NULL, NULL, NULL
        for packed in self.layers:
            call.layer.I = packed.I
            widest = max(widest, packed.cell.forward_scratch(&call.layer))
        needed = 128 + index_size(&call.layer) + 2 * padded + widest * self.item_size
        if needed > STEP_STACK:
            memory = allocate(needed)
        call.layer.index = <ptrdiff_t *>aligned(memory)
        outputs = aligned(<char *>call.layer.index + index_size(&call.layer))
        call.layer.scratch = outputs + 2 * padded
        call.layer.x, call.layer.x_t, call.layer.x_b = views[0].buf, 0, self.I
        call.y_t, call.y_b = 0, self.H
        call.state[1] = call.last[1] = NULL
        for l in range(len(self.layers)):
            packed = <Packed>self.layers[l]
            call.layer.I, call.layer.weights = packed.I, packed.weights
            call.state[0] = call.last[0] = <char *>views[2].buf + l * row
            if self.states == 2:
                call.state[1] = call.last[1] = <char *>views[3].buf + l * row
            call.y = views[1].buf if l == len(self.layers) - 1 else outputs + (l & 1) * padded
            if self.work * B > RELEASE_GIL:
                with nogil:
                    packed.cell.forward(&call)
            else:
                packed.cell.forward(&call)
            call.layer.x, call.layer.x_b = call.y, self.H
        if memory != on_stack:
            PyMem_RawFree(memory)
        return 0


def elementwise(str name, const real[::1] x, real[::1] y):
    """y = exp, sigmoid or tanh of x."""
    cdef const elman_kernels *kernels = elman_get_kernels(current_isa, sizeof(real) == 8)
    cdef void (*function)(ptrdiff_t n, const void *x, void *y) noexcept nogil
    function = kernels.exp if name == "exp" else kernels.sigmoid if name == "sigmoid" else kernels.tanh
    if x.shape[0]:
        with nogil:
            function(x.shape[0], &x[0], &y[0])


def compiler():
    """Name and version of the compiler that built this module."""
    return elman_compiler().decode()
