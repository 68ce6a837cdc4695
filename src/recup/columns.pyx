# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Rows of Python values to the columns of an Arrow batch: the compiled half of `recup.arrow_stream`.

The writer thread shares the GIL and the processor's caches with the event loop it records,
so what it costs counts: here it is half of what it is in Python.  `recup.rows` does without
this module where it could not be built; the result is the same.

Covers the buffers of a batch, the numbers of keys and categories, and putting buffers into a
message.  It does not cover files, nor how a message is made (`recup.arrow_stream`).

Nothing here trusts a value: what is not of the exact built-in type its column wants is
converted as well as can be, and counted where something was lost.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_AsStringAndSize, PyBytes_FromStringAndSize
from cpython.list cimport PyList_GET_ITEM
from cpython.unicode cimport PyUnicode_CheckExact
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.sequence cimport PySequence_Fast_ITEMS
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memmove, memset

from recup.arrow_stream import DICTIONARY_LIMIT, SMALLEST_COMPRESSED, as_text

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object)
    void* PyUnicode_DATA(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    object PyUnicode_AsEncodedString(object, const char*, const char*)

DEF CACHED = 1024
DEF CACHED_KEYS = 4096      # a power of two: twelve bits
DEF KEPT_ROWS = 16384       # room for waiting rows that is kept when all have been taken
DEF TAKEN_ROWS = 8192       # rows taken at a time: the event loop may go on in between

cdef int64_t NO_FLOAT = 0x7FF85EC000000001    # a NaN that nothing computes


cdef struct Entry:
    uint32_t offset
    uint32_t size       # of the text and, for a key that is no str, of its type's name behind it
    uint32_t text_size


cdef struct Slot:       # the number of an object that something keeps
    PyObject* value
    int32_t number


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

    cdef void clear(self) noexcept:
        self.count = self.heap_size = 0
        if self.table_size:
            memset(self.table, 0, self.table_size * sizeof(uint32_t))

    cdef int reserve(self, size_t size) except -1:
        """Make room for one more text of that many bytes."""
        cdef size_t place, table_size = self.table_size if self.table_size else 64
        cdef uint32_t each
        if self.heap_size + size > 0xFFFFFFFF:
            raise MemoryError("more text than 4 GiB at a time")
        if self.heap_size + size > self.heap_capacity:
            self.heap = <char*>grown(self.heap, &self.heap_capacity, self.heap_size + size, 1)
        if self.count == self.entry_capacity:
            self.entries = <Entry*>grown(self.entries, &self.entry_capacity, self.count + 1, sizeof(Entry))
        if self.count == self.hash_capacity:
            self.hashes = <uint32_t*>grown(self.hashes, &self.hash_capacity, self.count + 1, sizeof(uint32_t))
        while table_size < 2 * (self.count + 1):
            table_size *= 2
        if table_size != self.table_size:
            free(self.table)
            self.table_size = 0
            self.table = <uint32_t*>calloc(table_size, sizeof(uint32_t))
            if self.table == NULL:
                raise MemoryError()
            self.table_size = table_size
            for each in range(<uint32_t>self.count):
                place = self.hashes[each] & (table_size - 1)
                while self.table[place]:
                    place = (place + 1) & (table_size - 1)
                self.table[place] = each + 1
        return 0

    cdef int32_t number(self, const char* data, size_t size, size_t text_size) except -1:
        """Return the number of a text."""
        self.reserve(size)
        cdef uint32_t key = hashed(data, size, text_size)
        cdef size_t place = key & (self.table_size - 1)
        cdef uint32_t found
        cdef Entry* other
        while self.table[place]:
            found = self.table[place] - 1
            other = &self.entries[found]
            if (
                self.hashes[found] == key and other.size == size and other.text_size == text_size
                and memcmp(self.heap + other.offset, data, size) == 0
            ):
                return <int32_t>found
            place = (place + 1) & (self.table_size - 1)
        memcpy(self.heap + self.heap_size, data, size)
        self.entries[self.count] = Entry(<uint32_t>self.heap_size, <uint32_t>size, <uint32_t>text_size)
        self.hashes[self.count] = key
        self.heap_size += size
        self.count += 1
        self.table[place] = <uint32_t>self.count
        return <int32_t>(self.count - 1)

    cdef int32_t number_of(self, object text) except -1:
        """Return the number of a str."""
        cdef char* data
        cdef Py_ssize_t size
        if PyUnicode_IS_ASCII(text):
            size = PyUnicode_GET_LENGTH(text)
            return self.number(<const char*>PyUnicode_DATA(text), size, size)
        encoded = PyUnicode_AsEncodedString(text, "utf-8", "backslashreplace")
        PyBytes_AsStringAndSize(encoded, &data, &size)
        return self.number(data, size, size)

    cdef tuple columns(self):
        """Return Arrow's offsets and data of all texts."""
        cdef size_t number, total = 0
        for number in range(self.count):
            total += self.entries[number].text_size
        offsets = PyBytes_FromStringAndSize(NULL, (self.count + 1) * 4)
        data = PyBytes_FromStringAndSize(NULL, total)
        cdef int32_t* places = <int32_t*>PyBytes_AS_STRING(offsets)
        cdef char* out = PyBytes_AS_STRING(data)
        cdef Entry* entry
        cdef int32_t position = 0
        places[0] = 0
        for number in range(self.count):
            entry = &self.entries[number]
            memcpy(out + position, self.heap + entry.offset, entry.text_size)
            position += entry.text_size
            places[number + 1] = position
        return offsets, data


cdef class KeyNumbers:
    """Numbers of the keys of one spool.

    A key is met in several tables of one flush, mostly as the same object: its number is kept
    with the object until `let_go`, as looking a text up reads memory that nothing else uses.

    Parameters
    ----------
    show : callable
        Returns the text of a key that is no str.
    """

    cdef Texts texts
    cdef dict others    # keys that are no str, by themselves: showing one costs a microsecond
    cdef object show
    cdef int64_t base
    cdef size_t told
    cdef Slot met[CACHED_KEYS]      # with a reference to each object

    def __cinit__(self, show):
        self.texts = Texts()
        self.others = {}
        self.show = show

    def __len__(self):
        return self.texts.count

    @property
    def new_count(self):
        """Keys numbered since `new` was called."""
        return self.texts.count - self.told

    def __dealloc__(self):
        self.let_go()

    cpdef let_go(self):
        """Let go of the keys of this flush."""
        cdef size_t place
        cdef PyObject* value
        for place in range(CACHED_KEYS):
            value = self.met[place].value
            self.met[place].value = NULL
            Py_XDECREF(value)

    cdef int32_t number_of(self, PyObject* key) except -1:
        cdef PyObject* other
        cdef Slot* slot = &self.met[<uint32_t>((<uintptr_t>key >> 4) * 0x9E3779B1U) >> 20]
        cdef int32_t number
        if slot.value == key:
            return slot.number
        number = self.number_looked_up(<object>key)
        other = slot.value
        Py_INCREF(<object>key)
        slot.value, slot.number = key, number
        Py_XDECREF(other)
        return number

    cdef int32_t number_looked_up(self, object key) except -1:
        if PyUnicode_CheckExact(key):
            return self.texts.number_of(key)
        try:
            found = self.others.get(key)
        except Exception:  # no key can be unhashable, but nothing keeps a hook from being told one
            return self.number_shown(key)
        if found is None:
            found = self.number_shown(key)
            self.others[key] = found
        return found

    cdef int32_t number_shown(self, object key) except -1:
        text = as_text(self.show(key)).encode("utf-8", "backslashreplace")
        whole = text + type(key).__name__.encode("utf-8", "backslashreplace")
        return self.texts.number(PyBytes_AS_STRING(whole), len(whole), len(text))

    def new(self):
        """Return rows of the keys numbered since the last call, as one list: number, text and name of the type of each."""
        cdef size_t number
        cdef Entry* entry
        cdef char* text
        values = []
        for number in range(self.told, self.texts.count):
            entry = &self.texts.entries[number]
            text = self.texts.heap + entry.offset
            values.append(self.base + <int64_t>number)
            values.append(text[: entry.text_size].decode("utf-8"))
            values.append("str" if entry.size == entry.text_size else text[entry.text_size : entry.size].decode("utf-8"))
        self.told = self.texts.count
        return values

    def forget(self):
        """Number every key anew when it is met again."""
        self.let_go()
        self.base += <int64_t>self.texts.count
        self.told = 0
        self.texts.clear()
        self.others.clear()


# ---------------------------------------------------------------- rows of compiled hooks


cdef class Slots:
    """Rows of one table that compiled hooks put and the writer thread takes, both under the GIL.

    A row is eight bytes per column: a number as it is, or a reference; no object but texts
    and keys has to be met again when the row is written.

    Parameters
    ----------
    kinds : bytes
        As of `Encoder`.
    null_values : list of int or None
        As of `Encoder`; a whole number that is null is kept as this one.
    """

    def __cinit__(self, bytes kinds, list null_values):
        self.kinds = kinds
        self.width = len(kinds)
        self.null_values = null_values

    def __dealloc__(self):
        self.clear()
        free(self.slots)
        free(self.taken)

    def __len__(self):
        return self.count + self.taken_count - self.place

    cdef int grow(self) except -1:
        self.slots = <int64_t*>grown(self.slots, &self.capacity, self.count + 256, self.width * 8)
        return 0

    cdef int64_t other_whole(self, Py_ssize_t column, object value) except? -1:
        """Do what `whole` does for what is no int, or too large a one."""
        if value is None:
            return self.null_values[column]
        if not PyLong_CheckExact(value):
            try:
                return int(value)
            except Exception:
                pass
        self.degraded_count += 1
        return self.null_values[column]

    cdef int64_t other_real(self, object value) except? -1:
        """Do what `real` does for what is no float."""
        cdef double number
        cdef int64_t bits
        if value is None:
            return NO_FLOAT
        try:
            number = float(value)
        except Exception:
            self.degraded_count += 1
            return NO_FLOAT
        memcpy(&bits, &number, 8)
        return bits

    def take(self):
        """Have the oldest rows ready for `Encoder.columns`, some thousand at most, and return their number.

        Those that were ready before are let go.
        """
        self.let_go()
        if self.place == self.taken_count:
            if self.taken_capacity > KEPT_ROWS:
                free(self.taken)
                self.taken, self.taken_capacity = NULL, 0
            self.slots, self.taken = self.taken, self.slots
            self.capacity, self.taken_capacity = self.taken_capacity, self.capacity
            self.taken_count, self.count, self.place = self.count, 0, 0
        self.ready = self.taken + self.place * self.width
        self.ready_count = min(self.taken_count - self.place, TAKEN_ROWS)
        self.place += self.ready_count
        return self.ready_count

    def let_go(self):
        """Let go of the rows that are ready: they have been written."""
        cdef size_t count = self.ready_count
        self.ready_count = 0
        self.release(self.ready, count)

    def drop_oldest(self, size_t row_limit):
        """Drop rows down to half the limit when more wait that no one takes yet; returns the number of rows dropped."""
        if self.count <= row_limit:
            return 0
        cdef size_t dropped = self.count - row_limit // 2
        cdef size_t size = dropped * self.width * 8
        cdef int64_t* old = <int64_t*>malloc(size)
        if old == NULL:
            raise MemoryError()
        memcpy(old, self.slots, size)
        self.count -= dropped
        memmove(self.slots, self.slots + dropped * self.width, self.count * self.width * 8)
        self.release(old, dropped)
        free(old)
        return dropped

    def clear(self):
        """Let go of all rows."""
        self.take()
        while self.take():
            pass

    cdef int release(self, int64_t* rows, size_t count) except -1:
        cdef size_t row
        cdef Py_ssize_t column
        for column in range(self.width):
            if self.kinds[column] in b"tck":
                for row in range(count):
                    Py_XDECREF(<PyObject*><intptr_t>rows[row * self.width + column])
        return 0


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
    """Makes columns of rows, and keeps the dictionaries of one stream.

    Parameters
    ----------
    kinds : bytes
        One letter per column: ``i`` int64, ``f`` float64, ``b`` bool, ``t`` text, ``c`` category, ``k`` key.
    null_values : list of int or None
        Integer that stands for null, by column.

    Attributes
    ----------
    degraded_count : int
        Values so far that were not of their column's type and lost something by that.
    """

    cdef bytes kinds
    cdef list null_values
    cdef dict dictionaries
    cdef dict written
    cdef Slot slots[CACHED]
    cdef readonly long degraded_count

    def __cinit__(self, bytes kinds, list null_values):
        self.kinds = kinds
        self.null_values = null_values
        self.dictionaries = {number: Texts() for number, kind in enumerate(kinds) if kind == c"c"}
        self.written = {}

    def forget(self):
        """Repeat every dictionary with the next batch."""
        for texts in self.dictionaries.values():
            (<Texts>texts).clear()
        self.written.clear()

    def columns(self, values, KeyNumbers keys not None):
        """Return nodes and buffers of rows, and the dictionaries to write before them.

        Nodes are rows and nulls of each column; a dictionary is (column, texts, offsets, data).

        Parameters
        ----------
        values : list or Slots
            Values of the rows one after the other, in a list that must not change meanwhile; or
            the rows taken last.
        """
        if isinstance(values, Slots):
            self.degraded_count += (<Slots>values).degraded_count
            (<Slots>values).degraded_count = 0
            return self.encoded(None, <Slots>values, (<Slots>values).ready_count, keys)
        return self.encoded(values, None, len(values) // len(self.kinds), keys)

    cdef tuple encoded(self, list values, Slots slots, Py_ssize_t count, KeyNumbers keys):
        cdef Py_ssize_t width = len(self.kinds), number
        cdef PyObject** cells = PySequence_Fast_ITEMS(values) if slots is None else <PyObject**>slots.ready
        cdef char kind
        cdef Texts texts
        nulls_of = bytearray(count)
        cdef uint8_t* is_null = nulls_of
        nodes, buffers, dictionaries = [], [], []
        for number in range(width):
            kind = self.kinds[number]
            memset(is_null, 0, count)
            if slots is not None and kind in b"if":
                own = self.raw(<int64_t*>cells, number, width, count, is_null)
            elif kind == c"i":
                own = self.integers(values, number, width, count, is_null)
            elif kind == c"f":
                own = self.floats(values, number, width, count, is_null)
            elif kind == c"b":
                own = self.booleans(cells, number, width, count, is_null)
            elif kind == c"t":
                own = self.texts(cells, number, width, count, is_null)
            elif kind == c"k":
                own = self.numbers(cells, number, width, count, is_null, None, keys)
            else:
                texts = self.dictionaries[number]
                if texts.count > DICTIONARY_LIMIT:
                    texts.clear()
                    self.written.pop(number, None)
                own = self.numbers(cells, number, width, count, is_null, texts, None)
                if self.written.get(number, -1) != <long>texts.count:
                    self.written[number] = texts.count
                    dictionaries.append((number, texts.count, *texts.columns()))
            bitmap, nulls = validity(is_null, count)
            nodes += (count, nulls)
            buffers.append(bitmap)
            buffers += own
        return nodes, buffers, dictionaries

    cdef list raw(self, int64_t* cells, Py_ssize_t first, Py_ssize_t width, Py_ssize_t count, uint8_t* is_null):
        """Return numbers that are there as they are to be written."""
        cdef Py_ssize_t row
        cdef bint is_float = self.kinds[first] == c"f"
        cdef bint has_null_value = is_float or self.null_values[first] is not None
        cdef int64_t null_value = NO_FLOAT if is_float else self.null_values[first] if has_null_value else 0
        data = PyBytes_FromStringAndSize(NULL, count * 8)
        cdef int64_t* out = <int64_t*>PyBytes_AS_STRING(data)
        for row in range(count):
            out[row] = cells[first + row * width]
            if has_null_value and out[row] == null_value:
                is_null[row] = 1
                if is_float:
                    out[row] = 0
        return [data]

    cdef list integers(self, list values, Py_ssize_t first, Py_ssize_t width, Py_ssize_t count, uint8_t* is_null):
        cdef Py_ssize_t row
        cdef int overflow = 0
        cdef bint has_null_value = self.null_values[first] is not None
        cdef int64_t null_value = self.null_values[first] if has_null_value else 0
        data = PyBytes_FromStringAndSize(NULL, count * 8)
        cdef int64_t* out = <int64_t*>PyBytes_AS_STRING(data)
        for row in range(count):
            value = <object>PyList_GET_ITEM(values, first + row * width)
            if PyLong_CheckExact(value):
                out[row] = PyLong_AsLongLongAndOverflow(value, &overflow)
                if overflow:
                    self.degraded_count += 1
            elif value is None:
                overflow = 1
            else:
                try:
                    out[row] = int(value)
                    overflow = 0
                except Exception:
                    self.degraded_count += 1
                    overflow = 1
            if overflow:
                out[row] = 0
                is_null[row] = 1
            elif has_null_value and out[row] == null_value:
                is_null[row] = 1
        return [data]

    cdef list floats(self, list values, Py_ssize_t first, Py_ssize_t width, Py_ssize_t count, uint8_t* is_null):
        cdef Py_ssize_t row
        data = PyBytes_FromStringAndSize(NULL, count * 8)
        cdef double* out = <double*>PyBytes_AS_STRING(data)
        for row in range(count):
            value = <object>PyList_GET_ITEM(values, first + row * width)
            if PyFloat_CheckExact(value):
                out[row] = PyFloat_AS_DOUBLE(value)
                continue
            out[row] = 0.0
            if value is None:
                is_null[row] = 1
                continue
            try:
                out[row] = float(value)
            except Exception:
                self.degraded_count += 1
                is_null[row] = 1
        return [data]

    cdef list booleans(self, PyObject** cells, Py_ssize_t first, Py_ssize_t width, Py_ssize_t count, uint8_t* is_null):
        cdef Py_ssize_t row
        cdef bint is_true
        data = PyBytes_FromStringAndSize(NULL, (count + 7) // 8)
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(data)
        memset(out, 0, (count + 7) // 8)
        for row in range(count):
            value = <object>cells[first + row * width]
            if value is None:
                is_null[row] = 1
                continue
            try:
                is_true = bool(value)
            except Exception:
                self.degraded_count += 1
                is_null[row] = 1
                continue
            out[row >> 3] |= is_true << (row & 7)
        return [data]

    cdef list texts(self, PyObject** cells, Py_ssize_t first, Py_ssize_t width, Py_ssize_t count, uint8_t* is_null):
        cdef Py_ssize_t row
        offsets = PyBytes_FromStringAndSize(NULL, (count + 1) * 4)
        cdef int32_t* places = <int32_t*>PyBytes_AS_STRING(offsets)
        pieces = []
        places[0] = 0
        for row in range(count):
            value = <object>cells[first + row * width]
            places[row + 1] = places[row]
            if value is None:
                is_null[row] = 1
                continue
            piece = PyUnicode_AsEncodedString(self.text_of(value), "utf-8", "backslashreplace")
            if len(piece) > 0x7FFFFFFF - places[row]:
                raise MemoryError("more text than 2 GiB in a batch")
            places[row + 1] += <int32_t>len(piece)
            pieces.append(piece)
        return [offsets, b"".join(pieces)]

    cdef object text_of(self, object value):
        if PyUnicode_CheckExact(value):
            return value
        if not isinstance(value, str):
            self.degraded_count += 1
        return as_text(value)

    cdef list numbers(
        self, PyObject** cells, Py_ssize_t first, Py_ssize_t width, Py_ssize_t count, uint8_t* is_null,
        Texts texts, KeyNumbers keys,
    ):
        """Return the numbers of texts, or of keys where `texts` is None."""
        cdef Py_ssize_t row
        cdef PyObject* value
        cdef Slot* slot
        cdef bint are_keys = texts is None
        data = PyBytes_FromStringAndSize(NULL, count * 4)
        cdef int32_t* out = <int32_t*>PyBytes_AS_STRING(data)
        if not are_keys:
            memset(self.slots, 0, sizeof(self.slots))
        for row in range(count):
            value = cells[first + row * width]
            if <object>value is None:
                out[row] = -1
                is_null[row] = 1
                continue
            if are_keys:
                out[row] = keys.number_of(value) + <int32_t>keys.base
                continue
            slot = &self.slots[(<uintptr_t>value >> 4) % CACHED]
            if slot.value != value:
                slot.number = texts.number_of(self.text_of(<object>value))
                slot.value = value
            out[row] = slot.number
        return [data]


def framed(template, row_count, list nodes, buffers, compress):
    """Return what `recup.arrow_stream.framed` returns."""
    cdef bytes opened = template.open, places_of = template.places, each, result
    cdef const int32_t* places = <int32_t*>PyBytes_AS_STRING(places_of)
    cdef Py_ssize_t smallest = SMALLEST_COMPRESSED, head = len(opened), total = 0, position = 0, size
    cdef int64_t* message
    cdef char* body
    cdef list packed = [], sizes = []
    for buffer in buffers:
        size = len(buffer)
        each = compress(buffer) if size >= smallest else bytes(buffer)
        sizes.append(size if size >= smallest else -1)
        packed.append(each)
        total += (len(each) + 15) & ~7 if size else 0
    result = PyBytes_FromStringAndSize(NULL, head + total)
    message = <int64_t*>PyBytes_AS_STRING(result)
    body = PyBytes_AS_STRING(result) + head
    memcpy(message, PyBytes_AS_STRING(opened), head)
    message[places[0]], message[places[1]] = total, row_count
    places += 2
    for number in nodes:
        message[places[0]] = number
        places += 1
    for each, whole in zip(packed, sizes):
        size = len(each)
        message[places[0]], message[places[1]] = position, size + 8 if size else 0
        places += 2
        if size:
            (<int64_t*>(body + position))[0] = whole
            memcpy(body + position + 8, PyBytes_AS_STRING(each), size)
            position += 8 + size
            memset(body + position, 0, -position & 7)
            position += -position & 7
    return result
