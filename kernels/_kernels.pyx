# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Native kernels on raw addresses; compress/kernels/ checks every tensor before it calls in here."""

from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t


cdef extern from "level.h":
    cdef struct level:
        const char *name
    int levels_available() nogil
    const level *level_at(int index) nogil
    const level *level_current() nogil
    void level_select(int index) nogil

cdef extern from "arena.h":
    void *c_arena_take "arena_take"(size_t bytes) nogil
    void c_arena_release "arena_release"(void *buffer) nogil

cdef extern from "memory.h":
    void c_advise_huge "advise_huge"(void *address, size_t bytes) nogil
    uint64_t c_stream_read "stream_read"(const void *address, size_t bytes, int threads) nogil

cdef extern from "ffn.h":
    enum: SETTINGS
    enum: PARTS
    struct ffn:
        int64_t d_in, d_out, tables, rows, row_bytes, hadamard_from
        int64_t weight_bytes, table_bytes
        int64_t *offset
        int64_t *bytes
        const char *weights
        const char *table_rows
    int ffn_layout(ffn *f, const int64_t *settings) nogil
    int ffn_forward(const ffn *f, const float *x, float *y, int64_t tokens, int threads) nogil

cdef extern from "linear.h":
    struct linear:
        const char *panels
        const float *scale
        const float *bias
        int64_t k, outputs
    int linear_forward(const linear *l, const float *x, float *y, int64_t tokens, int threads) nogil

cdef extern from "training.h":
    int c_codes_valid "codes_valid"(const int32_t *codes, int64_t count, int64_t rows) nogil
    void c_gather "gather"(
        const float *tables, const int32_t *codes, const float *weights, float *y, int64_t tokens,
        int64_t tables_count, int64_t rows, int64_t width, int64_t cells, int threads) nogil
    int c_gather_backward "gather_backward"(
        const float *grad_y, const float *tables, const int32_t *codes, const float *weights, float *grad_tables,
        float *grad_weights, int64_t tokens, int64_t tables_count, int64_t rows, int64_t width, int64_t cells,
        int threads) nogil
    void c_margin_scores "margin_scores"(
        const float *z, int64_t bits, int64_t count, int32_t *codes, float *scores, int threads) nogil
    void c_margin_scores_backward "margin_scores_backward"(
        const float *z, const float *scores, const float *grad_scores, int64_t bits, int64_t count, float *grad_z,
        int threads) nogil


def levels():
    """Names of the instruction sets this processor runs, best first."""
    return [level_at(index).name.decode() for index in range(levels_available())]


def level_name():
    """Name of the instruction set in use."""
    return level_current().name.decode()


def select_level(int index):
    """Use the level at `index` of `levels()`."""
    level_select(index)


def advise_huge(uintptr_t address, size_t size):
    """Ask for huge pages in the memory at `address`."""
    c_advise_huge(<void *>address, size)


def arena_take(size_t size):
    """Address of so many uninitialised bytes in huge pages. Raises MemoryError."""
    cdef void *buffer = c_arena_take(size)
    if buffer == NULL:
        raise MemoryError(f"{size} bytes for a layer's buffers")
    return <uintptr_t>buffer


def arena_release(uintptr_t address):
    """Give back what `arena_take` gave."""
    c_arena_release(<void *>address)


def stream_read(uintptr_t address, size_t size, int threads):
    """Read all of the memory at `address`; the exclusive or of its 64-bit words."""
    cdef uint64_t found
    with nogil:
        found = c_stream_read(<const void *>address, size, threads)
    return found


def codes_valid(uintptr_t codes, int64_t count, int64_t rows):
    """Whether every int32 code lies in [0, rows)."""
    cdef bint valid
    with nogil:
        valid = c_codes_valid(<const int32_t *>codes, count, rows)
    return valid


def gather(uintptr_t tables, uintptr_t codes, uintptr_t weights, uintptr_t y, int64_t tokens, int64_t tables_count,
           int64_t rows, int64_t width, int64_t cells, int threads):
    """Write y [tokens, width]."""
    with nogil:
        c_gather(<const float *>tables, <const int32_t *>codes, <const float *>weights, <float *>y, tokens,
                 tables_count, rows, width, cells, threads)


def gather_backward(uintptr_t grad_y, uintptr_t tables, uintptr_t codes, uintptr_t weights, uintptr_t grad_tables,
                    uintptr_t grad_weights, int64_t tokens, int64_t tables_count, int64_t rows, int64_t width,
                    int64_t cells, int threads):
    """Write grad_tables [tables, rows, width] and grad_weights [tokens, tables, cells]."""
    cdef int status
    with nogil:
        status = c_gather_backward(
            <const float *>grad_y, <const float *>tables, <const int32_t *>codes, <const float *>weights,
            <float *>grad_tables, <float *>grad_weights, tokens, tables_count, rows, width, cells, threads)
    if status:
        raise MemoryError("no memory to sort the reads of the tables")


def margin_scores(uintptr_t z, int64_t bits, int64_t count, uintptr_t codes, uintptr_t scores, int threads):
    """Write codes and scores [count] of z [count, bits]."""
    with nogil:
        c_margin_scores(<const float *>z, bits, count, <int32_t *>codes, <float *>scores, threads)


def margin_scores_backward(uintptr_t z, uintptr_t scores, uintptr_t grad_scores, int64_t bits, int64_t count,
                           uintptr_t grad_z, int threads):
    """Write grad_z [count, bits]."""
    with nogil:
        c_margin_scores_backward(<const float *>z, <const float *>scores, <const float *>grad_scores, bits, count,
                                 <float *>grad_z, threads)


PART_NAMES = (
    "input", "input_scale", "input_bias", "hash", "hash_scale", "hash_bias", "linear", "linear_scale", "down",
    "down_scale", "output_bias", "scales", "sharpness", "rotations",
)


cdef int read_settings(settings, ffn *f) except -1:
    cdef int64_t numbers[SETTINGS]
    cdef int i
    if len(settings) != SETTINGS:
        raise ValueError(f"{len(settings)} settings instead of {SETTINGS}")
    for i in range(SETTINGS):
        numbers[i] = settings[i]
    if ffn_layout(f, numbers):
        raise ValueError("settings that no packed LookupFFN has")
    return 0


def layout(settings):
    """Sizes of a packed LookupFFN, and (offset, bytes) of each part of its weights."""
    cdef ffn f
    read_settings(settings, &f)
    return {
        "parts": {PART_NAMES[i]: (f.offset[i], f.bytes[i]) for i in range(PARTS)},
        "weight_bytes": f.weight_bytes,
        "table_bytes": f.table_bytes,
        "row_bytes": f.row_bytes,
        "hadamard_from": f.hadamard_from,
    }


cdef class PackedFFN:
    """A LookupFFN that was laid out, read once; raises ValueError where the buffers, which must outlive it, do not fit.

    A call writes y [tokens, d_out] for x [tokens, d_in].
    """

    cdef ffn f

    def __cinit__(self, settings, uintptr_t weights, int64_t weight_bytes, uintptr_t tables, int64_t table_bytes):
        read_settings(settings, &self.f)
        if self.f.weight_bytes != weight_bytes or self.f.table_bytes != table_bytes:
            raise ValueError("prepared buffers of another geometry")
        self.f.weights = <const char *>weights
        self.f.table_rows = <const char *>tables

    def run(self, uintptr_t x, uintptr_t y, int64_t tokens, int threads):
        cdef int status
        with nogil:
            status = ffn_forward(&self.f, <const float *>x, <float *>y, tokens, threads)
        if status:
            raise MemoryError("no memory for the intermediate results of a LookupFFN")


cdef class PackedLinear:
    """An int8 linear layer that was laid out in buffers that must outlive it; `bias` may be 0."""

    cdef linear l

    def __cinit__(self, uintptr_t panels, uintptr_t scale, uintptr_t bias, int64_t k, int64_t outputs):
        self.l.panels, self.l.scale, self.l.bias = <const char *>panels, <const float *>scale, <const float *>bias
        self.l.k, self.l.outputs = k, outputs

    def run(self, uintptr_t x, uintptr_t y, int64_t tokens, int threads):
        cdef int status
        with nogil:
            status = linear_forward(&self.l, <const float *>x, <float *>y, tokens, threads)
        if status:
            raise MemoryError("no memory for the rounded inputs of a linear layer")
