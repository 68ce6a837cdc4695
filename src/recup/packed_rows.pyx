# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Rows packed as they come, and the columns of an Arrow batch made of them: the compiled half of the spool.

A row's numbers are copied into one block, its texts beside them; no Python object of it is
kept.  The writer thread then makes columns of a whole block without holding the GIL.  So a
hook costs the workload little, and the writer next to nothing.  `recup.spool` does without
this module where it could not be built: the same rows, at about twice the cost.

Covers packing, numbering of keys and categories, and the buffers of a batch.  It does not
cover files, nor the framing of messages (`recup.arrow_stream`).

Nothing here trusts a value: what is not of the exact built-in type its column wants is
converted by `_plain`, counted where something was lost, and never touched otherwise.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_AsStringAndSize, PyBytes_FromStringAndSize
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

cdef extern from "Python.h":
    int64_t PyLong_AsLongLongAndOverflow(object, int*) except? -1
    bint PyUnicode_IS_ASCII(object)
    void* PyUnicode_DATA(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    object PyUnicode_AsEncodedString(object, const char*, const char*)
    Py_ssize_t PyTuple_GET_SIZE(object)
    bint PyTuple_Check(object)
    ctypedef struct PyTupleObject:
        PyObject** ob_item

DEF ROWS_OF_A_BLOCK = 8192
DEF BYTES_OF_A_BLOCK = 16777216
DEF CACHED_TEXTS = 256
DEF CACHED_KEYS = 4096
DEF WIDEST = 64
DEF DICTIONARY_LIMIT = 256

cdef int64_t NOTHING = -0x7FFFFFFFFF8AC0DE
"""Stands for None in a packed row; a number that happens to be this one is counted as degraded."""


cdef struct Entry:
    uint32_t offset
    uint32_t size       # of the text and, for a key that is no str, of its type's name behind it
    uint32_t text_size


cdef struct Slot:       # what a pointer was packed as; the references keep the pointer from being another's
    PyObject* value
    uint32_t entry
    uint32_t generation


cdef struct KeySlot:
    PyObject* value
    PyObject* packed    # bytes: the text and the name of the type
    uint32_t text_size


cdef void* grown(void* old, size_t* capacity, size_t wanted, size_t item) except NULL:
    """Return memory for that many items, with the old ones in it."""
    cdef size_t new = capacity[0] if capacity[0] else 16
    while new < wanted:
        new *= 2
    cdef void* memory = realloc(old, new * item)
    if memory == NULL:
        raise MemoryError()
    capacity[0] = new
    return memory


cdef class Block:
    """Rows of one table and the texts they refer to."""

    cdef int64_t* rows
    cdef char* heap
    cdef Entry* entries
    cdef size_t width, row_count, row_capacity, heap_size, heap_capacity, entry_count, entry_capacity

    def __cinit__(self, size_t width):
        self.width = width

    def __dealloc__(self):
        free(self.rows)
        free(self.heap)
        free(self.entries)

    def __len__(self):
        return self.row_count

    cdef int64_t add_entry(self, const char* data, size_t size, size_t text_size) except -1:
        if self.heap_size + size > self.heap_capacity:
            self.heap = <char*>grown(self.heap, &self.heap_capacity, self.heap_size + size, 1)
        if self.entry_count == self.entry_capacity:
            self.entries = <Entry*>grown(self.entries, &self.entry_capacity, self.entry_count + 1, sizeof(Entry))
        memcpy(self.heap + self.heap_size, data, size)
        self.entries[self.entry_count] = Entry(<uint32_t>self.heap_size, <uint32_t>size, <uint32_t>text_size)
        self.heap_size += size
        self.entry_count += 1
        return <int64_t>(self.entry_count - 1)

    cdef int add_text(self, object text, int64_t* number) except -1:
        cdef char* data
        cdef Py_ssize_t size
        if PyUnicode_IS_ASCII(text):
            size = PyUnicode_GET_LENGTH(text)
            number[0] = self.add_entry(<const char*>PyUnicode_DATA(text), size, size)
        else:
            encoded = PyUnicode_AsEncodedString(text, "utf-8", "backslashreplace")
            PyBytes_AsStringAndSize(encoded, &data, &size)
            number[0] = self.add_entry(data, size, size)
        return 0

    cdef int add_row(self, int64_t* values) except -1:
        if self.row_count == self.row_capacity:
            self.rows = <int64_t*>grown(
                self.rows, &self.row_capacity, self.row_count + 1, self.width * sizeof(int64_t))
        memcpy(self.rows + self.row_count * self.width, values, self.width * sizeof(int64_t))
        self.row_count += 1
        return 0


cdef class KeyTexts:
    """Texts of the keys met last that are not str, such as ``('x', 0)``: showing one costs a microsecond."""

    cdef KeySlot slots[CACHED_KEYS]
    cdef object show

    def __cinit__(self, show):
        self.show = show
        memset(self.slots, 0, sizeof(self.slots))

    def __dealloc__(self):
        self.clear()

    cdef void clear(self):
        cdef int place
        cdef KeySlot old
        for place in range(CACHED_KEYS):
            old = self.slots[place]
            memset(&self.slots[place], 0, sizeof(KeySlot))
            if old.value != NULL:
                Py_DECREF(<object>old.value)
                Py_DECREF(<object>old.packed)

    cdef int packed(self, Block block, object key, int64_t* number) except -1:
        cdef size_t place = (<uintptr_t><PyObject*>key >> 4) % CACHED_KEYS
        cdef KeySlot old = self.slots[place]
        cdef char* data
        cdef Py_ssize_t size
        cdef size_t text_size
        if old.value == <PyObject*>key:
            packed = <object>old.packed
            text_size = old.text_size
        else:
            text = (<str?>self.show(key)).encode("utf-8", "backslashreplace")
            packed = text + type(key).__name__.encode("utf-8", "backslashreplace")
            text_size = len(text)
            old = self.slots[place]  # again: showing a key may have run anything
            Py_INCREF(key)
            Py_INCREF(packed)
            self.slots[place] = KeySlot(<PyObject*>key, <PyObject*>packed, <uint32_t>text_size)
            if old.value != NULL:
                Py_DECREF(<object>old.value)
                Py_DECREF(<object>old.packed)
        PyBytes_AsStringAndSize(packed, &data, &size)
        number[0] = block.add_entry(data, size, text_size)
        return 0


cdef class Rows:
    """The rows of one table that wait to be written.

    Parameters
    ----------
    kinds : bytes
        One letter per column: ``i`` int64, ``f`` float64, ``b`` bool, ``t`` text, ``c`` category, ``k`` key.
    key_texts : KeyTexts
        Of the spool.
    """

    cdef Block block
    cdef list full
    cdef KeyTexts key_texts
    cdef bytes kinds
    cdef const char* kind
    cdef Py_ssize_t width
    cdef Slot slots[CACHED_TEXTS]
    cdef uint32_t generation
    cdef long degraded_count

    def __cinit__(self, bytes kinds, KeyTexts key_texts):
        if len(kinds) > WIDEST:
            raise ValueError(f"{len(kinds)} columns: packed rows have at most {WIDEST}")
        self.kinds = kinds
        self.kind = self.kinds
        self.width = len(kinds)
        self.key_texts = key_texts
        self.block = Block(self.width)
        self.full = []
        self.generation = 1
        memset(self.slots, 0, sizeof(self.slots))

    def __dealloc__(self):
        self._clear_slots()

    cdef void _clear_slots(self):
        cdef int place
        cdef PyObject* old
        for place in range(CACHED_TEXTS):
            old = self.slots[place].value
            self.slots[place].value = NULL
            if old != NULL:
                Py_DECREF(<object>old)

    def __len__(self):
        return sum([len(each) for each in self.full]) + len(self.block)

    def put(self, object row):
        """Add one row, a tuple; a value of another type than its column's is converted as well as can be.

        Raises ValueError where it has not as many values as there are columns.
        """
        if not PyTuple_Check(row) or PyTuple_GET_SIZE(row) != self.width:
            raise ValueError(f"a row of {self.width} values is wanted, not {type(row).__name__} of {len(row)}")
        self.add((<PyTupleObject*>row).ob_item)

    cdef int add(self, PyObject** row) except -1:
        """Add one row of borrowed references."""
        cdef int64_t values[WIDEST]
        cdef Block block
        cdef Py_ssize_t column
        while True:
            block = self.block
            for column in range(self.width):
                self.pack(block, self.kind[column], <object>row[column], &values[column])
            # Converting a value may have run other code, which may have taken the block or filled it.
            if block is self.block:
                break
        block.add_row(values)
        if block.row_count >= ROWS_OF_A_BLOCK or block.heap_size >= BYTES_OF_A_BLOCK:
            self._next_block()
        return 0

    cdef int _next_block(self) except -1:
        if self.block.row_count:
            self.full.append(self.block)
            self.block = Block(self.width)
            self.generation += 1
        return 0

    cdef int pack(self, Block block, char kind, object value, int64_t* packed) except -1:
        cdef int overflow = 0
        cdef double number
        if value is None:
            packed[0] = NOTHING
            return 0
        if kind == c"i":
            if PyLong_CheckExact(value):
                packed[0] = PyLong_AsLongLongAndOverflow(value, &overflow)
                if not overflow and packed[0] != NOTHING:
                    return 0
        elif kind == c"c":
            if PyUnicode_CheckExact(value):
                return self.cached(block, value, packed)
        elif kind == c"k":
            if PyUnicode_CheckExact(value):
                return self.cached(block, value, packed)
            return self.key_texts.packed(block, value, packed)
        elif kind == c"f":
            if PyFloat_CheckExact(value):
                number = PyFloat_AS_DOUBLE(value)
                memcpy(packed, &number, 8)
                if packed[0] != NOTHING:
                    return 0
        elif kind == c"b":
            if value is True or value is False:
                packed[0] = value is True
                return 0
        elif PyUnicode_CheckExact(value):
            return block.add_text(value, packed)
        return self.pack_odd(block, kind, value, packed)

    cdef int pack_odd(self, Block block, char kind, object value, int64_t* packed) except -1:
        """Pack a value of an unexpected type: converted, as text, or as nothing where it cannot be."""
        cdef double number
        try:
            if kind == c"i":
                packed[0] = int(value)
                if packed[0] == NOTHING:
                    raise OverflowError
            elif kind == c"f":
                number = float(value)
                memcpy(packed, &number, 8)
                if packed[0] == NOTHING:
                    raise OverflowError
            elif kind == c"b":
                packed[0] = bool(value)
            else:
                if not isinstance(value, str):
                    self.degraded_count += 1
                block.add_text(_as_text(value), packed)
        except Exception:
            self.degraded_count += 1
            packed[0] = NOTHING
        return 0

    cdef int cached(self, Block block, object text, int64_t* packed) except -1:
        """Pack a text that is likely to be the very object that was packed a moment ago."""
        cdef size_t place = (<uintptr_t><PyObject*>text >> 4) % CACHED_TEXTS
        cdef Slot old = self.slots[place]
        if old.value == <PyObject*>text and old.generation == self.generation and block is self.block:
            packed[0] = old.entry
            return 0
        block.add_text(text, packed)
        if block is self.block:
            Py_INCREF(text)
            self.slots[place] = Slot(<PyObject*>text, <uint32_t>packed[0], self.generation)
            if old.value != NULL:
                Py_DECREF(<object>old.value)
        return 0

    def take(self):
        """Return the oldest block of rows that wait, or None; they wait no longer."""
        if not self.full:
            self._next_block()
        return self.full.pop(0) if self.full else None

    def drop_oldest(self, Py_ssize_t value_limit):
        """Drop blocks until at most that many values wait; returns the number of rows dropped."""
        cdef Py_ssize_t dropped = 0
        while len(self) * self.width > value_limit:
            dropped += len(self.take())
        return dropped

    def take_degraded_count(self):
        """Return how many values were not of their column's type since the last call."""
        count, self.degraded_count = self.degraded_count, 0
        return count

    def clear(self):
        """Forget all that waits."""
        while self.take() is not None:
            pass


def _as_text(value):
    """Return `str(value)`, or a text that says why there is none; never raises."""
    try:
        return str.__str__(value) if isinstance(value, str) else str(value)
    except Exception as reason:
        return f"<{type(value).__name__} whose str() raised {type(reason).__name__}>"


# ---------------------------------------------------------------- texts to numbers


cdef uint32_t hashed(const char* data, size_t size, size_t text_size) noexcept nogil:
    cdef uint64_t state = 0x9E3779B97F4A7C15ULL ^ size ^ (text_size << 32), word
    while size >= 8:
        memcpy(&word, data, 8)
        state = (state ^ word) * 0xFF51AFD7ED558CCDULL
        state ^= state >> 32
        data += 8
        size -= 8
    if size:
        word = 0
        memcpy(&word, data, size)
        state = (state ^ word) * 0xFF51AFD7ED558CCDULL
        state ^= state >> 32
    state *= 0xC4CEB9FE1A85EC53ULL
    return <uint32_t>(state >> 32)


cdef class Texts:
    """Distinct texts, numbered from 0 as they come."""

    cdef char* heap
    cdef Entry* entries
    cdef uint32_t* hashes
    cdef uint32_t* table        # number of a text plus one, by hash; 0 is free
    cdef size_t heap_size, heap_capacity, count, entry_capacity, hash_capacity, table_size

    def __dealloc__(self):
        free(self.heap)
        free(self.entries)
        free(self.hashes)
        free(self.table)

    cdef void clear(self) noexcept nogil:
        self.count = self.heap_size = 0
        if self.table_size:
            memset(self.table, 0, self.table_size * sizeof(uint32_t))

    cdef int reserve(self, size_t more, size_t more_bytes) except -1:
        """Make room, so that `number` needs none while others hold the GIL."""
        cdef size_t size = self.table_size if self.table_size else 64
        cdef size_t place
        cdef uint32_t each
        if self.heap_size + more_bytes > 0xFFFFFFFF:
            raise MemoryError("more text than 4 GiB at a time")
        if self.heap_size + more_bytes > self.heap_capacity:
            self.heap = <char*>grown(self.heap, &self.heap_capacity, self.heap_size + more_bytes, 1)
        if self.count + more > self.entry_capacity:
            self.entries = <Entry*>grown(self.entries, &self.entry_capacity, self.count + more, sizeof(Entry))
        if self.count + more > self.hash_capacity:
            self.hashes = <uint32_t*>grown(self.hashes, &self.hash_capacity, self.count + more, sizeof(uint32_t))
        while size < 2 * (self.count + more):
            size *= 2
        if size != self.table_size:
            free(self.table)
            self.table_size = 0
            self.table = <uint32_t*>calloc(size, sizeof(uint32_t))
            if self.table == NULL:
                raise MemoryError()
            self.table_size = size
            for each in range(<uint32_t>self.count):
                place = self.hashes[each] & (size - 1)
                while self.table[place]:
                    place = (place + 1) & (size - 1)
                self.table[place] = each + 1
        return 0

    cdef int32_t number(self, const char* data, Entry* entry) noexcept nogil:
        """Return the number of a text; there has to be room for it."""
        cdef uint32_t key = hashed(data, entry.size, entry.text_size)
        cdef size_t place = key & (self.table_size - 1)
        cdef uint32_t found
        cdef Entry* other
        while self.table[place]:
            found = self.table[place] - 1
            other = &self.entries[found]
            if (
                self.hashes[found] == key and other.size == entry.size and other.text_size == entry.text_size
                and memcmp(self.heap + other.offset, data, entry.size) == 0
            ):
                return <int32_t>found
            place = (place + 1) & (self.table_size - 1)
        memcpy(self.heap + self.heap_size, data, entry.size)
        self.entries[self.count] = Entry(<uint32_t>self.heap_size, entry.size, entry.text_size)
        self.hashes[self.count] = key
        self.heap_size += entry.size
        self.count += 1
        self.table[place] = <uint32_t>self.count
        return <int32_t>(self.count - 1)

    cdef tuple columns(self, size_t first):
        """Return Arrow's offsets and data of the texts from that number on."""
        cdef size_t number, total = 0, rows = self.count - first
        for number in range(first, self.count):
            total += self.entries[number].text_size
        offsets = PyBytes_FromStringAndSize(NULL, (rows + 1) * 4)
        data = PyBytes_FromStringAndSize(NULL, total)
        cdef int32_t* places = <int32_t*>PyBytes_AS_STRING(offsets)
        cdef char* out = PyBytes_AS_STRING(data)
        cdef Entry* entry
        cdef int32_t position = 0
        places[0] = 0
        for number in range(first, self.count):
            entry = &self.entries[number]
            memcpy(out + position, self.heap + entry.offset, entry.text_size)
            position += entry.text_size
            places[number - first + 1] = position
        return offsets, data


cdef class KeyNumbers:
    """Numbers of the keys of one spool."""

    cdef Texts texts
    cdef int64_t base
    cdef size_t told

    def __cinit__(self):
        self.texts = Texts()

    def __len__(self):
        return self.texts.count

    @property
    def new_count(self):
        """Keys numbered since `new` was called."""
        return self.texts.count - self.told

    def new(self):
        """Return what was numbered since the last call: first number, count, offsets, data and names of types."""
        cdef size_t first = self.told, number
        cdef Entry* entry
        offsets, data = self.texts.columns(first)
        types = []
        for number in range(first, self.texts.count):
            entry = &self.texts.entries[number]
            types.append(
                "str" if entry.size == entry.text_size else
                self.texts.heap[entry.offset + entry.text_size : entry.offset + entry.size].decode("utf-8")
            )
        self.told = self.texts.count
        return self.base + <int64_t>first, len(types), offsets, data, types

    def forget(self):
        """Number every key anew when it is met again."""
        self.base += <int64_t>self.texts.count
        self.told = 0
        self.texts.clear()


# ---------------------------------------------------------------- columns of a batch


cdef tuple validity(const uint8_t* is_null, size_t count):
    """Return Arrow's bitmap of the values that are not null, empty where none is, and the number of nulls."""
    cdef size_t nulls = 0, row
    for row in range(count):
        nulls += is_null[row]
    if not nulls:
        return b"", 0
    bitmap = PyBytes_FromStringAndSize(NULL, (count + 7) // 8)
    cdef uint8_t* bits = <uint8_t*>PyBytes_AS_STRING(bitmap)
    memset(bits, 0, (count + 7) // 8)
    for row in range(count):
        bits[row >> 3] |= (not is_null[row]) << (row & 7)
    return bitmap, nulls


cdef class Encoder:
    """Makes columns of blocks, and keeps the dictionaries of one stream.

    Parameters
    ----------
    kinds : bytes
        As for `Rows`.
    null_values : list of int or None
        Integer that stands for null, by column.
    """

    cdef bytes kinds
    cdef list null_values
    cdef dict dictionaries
    cdef dict written

    def __cinit__(self, bytes kinds, list null_values):
        self.kinds = kinds
        self.null_values = null_values
        self.dictionaries = {number: Texts() for number, kind in enumerate(kinds) if kind == c"c"}
        self.written = {}

    def forget(self):
        """Repeat every dictionary with the next block."""
        for texts in self.dictionaries.values():
            (<Texts>texts).clear()
        self.written.clear()

    def columns(self, Block block, KeyNumbers keys):
        """Return nodes and buffers of the block, and the dictionaries to write before it.

        A node is (rows, nulls); a dictionary is (column, texts, offsets, data).
        """
        cdef size_t width = block.width, count = block.row_count, row
        cdef size_t number
        cdef char kind
        cdef uint8_t* is_null = <uint8_t*>malloc(count + 1)
        cdef int32_t* codes = <int32_t*>malloc((block.entry_count + 1) * sizeof(int32_t))
        cdef int64_t null_value
        cdef int64_t* packed
        cdef int64_t* wide
        cdef int32_t* narrow
        cdef uint8_t* bits
        cdef Texts texts
        nodes, buffers, dictionaries = [], [], []
        try:
            if is_null == NULL or codes == NULL:
                raise MemoryError()
            for number in range(width):
                kind = self.kinds[number]
                packed = block.rows + number
                if kind == c"i" or kind == c"f":
                    null_value = NOTHING if self.null_values[number] is None else self.null_values[number]
                    data = PyBytes_FromStringAndSize(NULL, count * 8)
                    wide = <int64_t*>PyBytes_AS_STRING(data)
                    with nogil:
                        for row in range(count):
                            wide[row] = packed[row * width]
                            is_null[row] = wide[row] == NOTHING or wide[row] == null_value
                            if wide[row] == NOTHING:
                                wide[row] = 0
                    own = [data]
                elif kind == c"b":
                    data = PyBytes_FromStringAndSize(NULL, (count + 7) // 8)
                    bits = <uint8_t*>PyBytes_AS_STRING(data)
                    memset(bits, 0, (count + 7) // 8)
                    for row in range(count):
                        is_null[row] = packed[row * width] == NOTHING
                        bits[row >> 3] |= (packed[row * width] == 1) << (row & 7)
                    own = [data]
                elif kind == c"t":
                    own = list(self.texts(block, packed, is_null))
                else:
                    texts = keys.texts if kind == c"k" else <Texts>self.dictionaries[number]
                    if kind == c"c" and texts.count > DICTIONARY_LIMIT:
                        texts.clear()
                        self.written.pop(number, None)
                    texts.reserve(block.entry_count, block.heap_size)
                    data = PyBytes_FromStringAndSize(NULL, count * 4)
                    narrow = <int32_t*>PyBytes_AS_STRING(data)
                    with nogil:
                        self.number(block, packed, codes, texts, narrow, is_null)
                    if kind == c"k":
                        for row in range(count):
                            if not is_null[row]:
                                narrow[row] += <int32_t>keys.base
                    elif self.written.get(number, -1) != <long>texts.count:
                        self.written[number] = texts.count
                        dictionaries.append((number, texts.count, *texts.columns(0)))
                    own = [data]
                bitmap, nulls = validity(is_null, count)
                nodes += (count, nulls)
                buffers.append(bitmap)
                buffers += own
        finally:
            free(is_null)
            free(codes)
        return nodes, buffers, dictionaries

    cdef void number(
        self, Block block, int64_t* packed, int32_t* codes, Texts texts, int32_t* narrow, uint8_t* is_null
    ) noexcept nogil:
        cdef size_t row, entry
        memset(codes, 0xFF, block.entry_count * sizeof(int32_t))
        for row in range(block.row_count):
            is_null[row] = packed[row * block.width] == NOTHING
            if is_null[row]:
                narrow[row] = -1
                continue
            entry = <size_t>packed[row * block.width]
            if codes[entry] < 0:
                codes[entry] = texts.number(block.heap + block.entries[entry].offset, &block.entries[entry])
            narrow[row] = codes[entry]

    cdef tuple texts(self, Block block, int64_t* packed, uint8_t* is_null):
        cdef size_t row, total = 0
        cdef int64_t entry
        for row in range(block.row_count):
            entry = packed[row * block.width]
            is_null[row] = entry == NOTHING
            if entry != NOTHING:
                total += block.entries[entry].text_size
        offsets = PyBytes_FromStringAndSize(NULL, (block.row_count + 1) * 4)
        data = PyBytes_FromStringAndSize(NULL, total)
        cdef int32_t* places = <int32_t*>PyBytes_AS_STRING(offsets)
        cdef char* out = PyBytes_AS_STRING(data)
        cdef int32_t position = 0
        places[0] = 0
        for row in range(block.row_count):
            entry = packed[row * block.width]
            if entry != NOTHING:
                memcpy(out + position, block.heap + block.entries[entry].offset, block.entries[entry].text_size)
                position += block.entries[entry].text_size
            places[row + 1] = position
        return offsets, data
