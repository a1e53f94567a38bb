# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
# cython: freethreading_compatible=True
"""Typed memoryviews in, one C call out. No arithmetic and no checks: functional.py has made both sure."""

cimport cython
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

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
                     const unsigned char[:, ::1] reset, ptrdiff_t[::1] index, int threads):
    layer.T, layer.B, layer.I, layer.H = x.shape[0], x.shape[1], packed.I, packed.H
    layer.directions, layer.threads, layer.weights = packed.D, threads, packed.weights
    layer.x, layer.lengths, layer.reset, layer.tape, layer.scratch = NULL, NULL, NULL, NULL, NULL
    layer.x_t, layer.x_b = x.strides[0] // <ptrdiff_t>sizeof(real), x.strides[1] // <ptrdiff_t>sizeof(real)
    layer.index = &index[0]
    if x.shape[0] and x.shape[1]:
        layer.x = &x[0, 0, 0]
        if reset is not None:
            layer.reset = &reset[0, 0]
    if lengths is not None and lengths.shape[0]:
        layer.lengths = &lengths[0]


def forward_scratch(Packed packed, ptrdiff_t T, ptrdiff_t B, int threads):
    """Elements of scratch that forward() needs."""
    cdef elman_layer layer
    layer.T, layer.B, layer.I, layer.H, layer.threads = T, B, packed.I, packed.H, threads
    return packed.cell.forward_scratch(&layer)


def forward(Packed packed, const real[:, :, :] x, const real[:, :, ::1] h, const real[:, :, ::1] c,
            const ptrdiff_t[::1] lengths, const unsigned char[:, ::1] reset, int threads, ptrdiff_t[::1] index,
            real[::1] scratch, real[:, :, :] y, real[:, :, ::1] h_last, real[:, :, ::1] c_last, real[::1] tape):
    cdef elman_forward_call call
    fill_layer[real](&call.layer, packed, x, lengths, reset, index, threads)
    if x.shape[1] == 0:
        return
    call.layer.scratch = &scratch[0]
    call.layer.tape = NULL if tape is None else &tape[0]
    call.state[0], call.state[1] = start_of[real](h), start_of[real](c)
    call.last[0], call.last[1] = &h_last[0, 0, 0], <void *>start_of[real](c_last)
    call.y = NULL if x.shape[0] == 0 else &y[0, 0, 0]
    call.y_t, call.y_b = y.strides[0] // <ptrdiff_t>sizeof(real), y.strides[1] // <ptrdiff_t>sizeof(real)
    with nogil:
        packed.cell.forward(&call)


def backward_scratch(Packed packed, const real[:, :, :] x, const ptrdiff_t[::1] lengths, ptrdiff_t[::1] index,
                     int threads):
    """Elements of scratch that backward() needs."""
    cdef elman_layer layer
    fill_layer[real](&layer, packed, x, lengths, None, index, threads)
    return packed.cell.backward_scratch(&layer)


def backward(Packed packed, const real[:, :, :] x, const ptrdiff_t[::1] lengths, const unsigned char[:, ::1] reset,
             int threads, ptrdiff_t[::1] index, real[::1] scratch, real[::1] tape, const real[:, :, :] dy,
             const real[:, :, ::1] dh_last, const real[:, :, ::1] dc_last, real[:, :, ::1] dx, real[:, :, ::1] dh,
             real[:, :, ::1] dc, list dweights):
    cdef elman_backward_call call
    cdef real[:, ::1] matrix
    cdef real[::1] bias
    cdef int d
    fill_layer[real](&call.layer, packed, x, lengths, reset, index, threads)
    call.layer.scratch = &scratch[0]
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
    with nogil:
        packed.cell.backward(&call)


cdef void step_layers(tuple stack, elman_forward_call *call, ptrdiff_t state_stride, ptrdiff_t state_size, void *out,
                      char *between, bint release_gil) noexcept:
    """One step through the layers; `between` holds the outputs of two layers, in turn."""
    cdef Packed packed
    cdef ptrdiff_t l, layers = len(stack)
    for l in range(layers):
        packed = <Packed>stack[l]
        call.layer.I, call.layer.weights = packed.I, packed.weights
        call.y = out if l == layers - 1 else between + (l & 1) * state_stride
        if release_gil:
            with nogil:
                packed.cell.forward(call)
        else:
            packed.cell.forward(call)
        call.layer.x, call.layer.x_b = call.y, packed.H
        call.state[0] = call.last[0] = <char *>call.last[0] + state_size
        if call.last[1] != NULL:
            call.state[1] = call.last[1] = <char *>call.last[1] + state_size


def step(tuple stack, const real[:, :] x, real[:, :, ::1] h, real[:, :, ::1] c, real[:, :] out):
    """One step of x (B, I) through a stack of one-direction layers: h and c (L, B, H) in place, out (B, H)."""
    cdef char on_stack[STEP_STACK]
    cdef char *memory = on_stack
    cdef elman_forward_call call
    cdef Packed packed
    cdef ptrdiff_t B = x.shape[0], size, needed, widest = 0, work = 0
    if B == 0:
        return
    packed = <Packed>stack[0]
    call.layer.T, call.layer.B, call.layer.H = 1, B, packed.H
    call.layer.directions = call.layer.threads = 1
    call.layer.x, call.layer.x_t, call.layer.x_b = &x[0, 0], 0, x.strides[0] // <ptrdiff_t>sizeof(real)
    call.layer.lengths, call.layer.reset, call.layer.tape = NULL, NULL, NULL
    for packed in stack:
        call.layer.I = packed.I
        widest = max(widest, packed.cell.forward_scratch(&call.layer))
        work += packed.cell.gates * packed.H * (packed.I + packed.H) * B
    size = (B * call.layer.H * <ptrdiff_t>sizeof(real) + 63) // 64 * 64
    needed = 64 + (2 * B + 2) * <ptrdiff_t>sizeof(ptrdiff_t) + 64 + 2 * size + widest * <ptrdiff_t>sizeof(real)
    if needed > STEP_STACK:
        memory = <char *>malloc(needed)
        if memory == NULL:
            raise MemoryError(f"step: no {needed} bytes of scratch")
    try:
        call.layer.index = <ptrdiff_t *>aligned(memory)
        between = aligned(<char *>(call.layer.index + 2 * B + 2))
        call.layer.scratch = between + 2 * size
        call.state[0] = call.last[0] = &h[0, 0, 0]
        call.state[1] = call.last[1] = NULL if c is None else <void *>&c[0, 0, 0]
        call.y_t, call.y_b = 0, call.layer.H
        step_layers(stack, &call, size, B * call.layer.H * <ptrdiff_t>sizeof(real), &out[0, 0], between,
                    work > RELEASE_GIL)
    finally:
        if memory != on_stack:
            free(memory)


cdef inline char *aligned(char *p) noexcept nogil:
    return <char *>((<uintptr_t>p + 63) // 64 * 64)


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
