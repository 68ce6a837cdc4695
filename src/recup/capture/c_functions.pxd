"""What CPython wants to know of a function written for it in C, which Cython has no declarations of."""

from cpython.object cimport PyObject

cdef extern from "Python.h":
    ctypedef PyObject* (*PyCFunction)(PyObject*, PyObject*)
    # NULL, with the exception set, is given back: Cython does not look at it.
    ctypedef PyObject* (*PyCFunctionWithKeywords)(PyObject*, PyObject*, PyObject*) noexcept
    ctypedef struct PyMethodDef:
        const char* ml_name
        PyCFunction ml_meth
        int ml_flags
        const char* ml_doc
    const int METH_VARARGS, METH_KEYWORDS


cdef inline int raise_again() except -1:
    """Have Cython see the exception that is set."""
    return -1
