"""Attributes that a class keeps in slots, read and put as Python's own specialised instructions do.

What is no slot, or of another class than the first that was met, goes Python's usual way.
"""

from cpython.object cimport Py_TYPE, PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF, Py_XDECREF

cdef extern from "Python.h":
    ctypedef struct PyMemberDef:
        int type
        Py_ssize_t offset
    ctypedef struct PyMemberDescrObject:
        PyMemberDef* d_member
    PyTypeObject PyMemberDescr_Type

cdef extern from "structmember.h":
    const int T_OBJECT_EX


cdef struct Place:      # of an attribute in objects of one type
    PyTypeObject* type
    Py_ssize_t offset


cdef inline int learn(Place* place, object value, str name) except -1:
    """Note where the attribute is, if it is a slot and no place was noted before."""
    cdef PyMemberDef* member
    if place.type == NULL:
        descriptor = getattr(type(value), name, None)
        if Py_TYPE(descriptor) == &PyMemberDescr_Type:
            member = (<PyMemberDescrObject*><PyObject*>descriptor).d_member
            if member.type == T_OBJECT_EX:      # one of `__slots__`
                Py_INCREF(type(value))          # for good: another type must never be there
                place.offset, place.type = member.offset, Py_TYPE(value)
    return 0


cdef inline object slot(Place* place, object value, str name):
    """Return an attribute, without asking the type for it."""
    cdef PyObject* found
    if Py_TYPE(value) == place.type:
        found = (<PyObject**>(<char*><PyObject*>value + place.offset))[0]
        if found != NULL:
            return <object>found
    learn(place, value, name)
    return getattr(value, name)


cdef inline int put_slot(Place* place, object value, str name, object content) except -1:
    """Set an attribute."""
    cdef PyObject** found
    cdef PyObject* old
    if Py_TYPE(value) == place.type:
        found = <PyObject**>(<char*><PyObject*>value + place.offset)
        old = found[0]
        Py_INCREF(content)
        found[0] = <PyObject*>content
        Py_XDECREF(old)
        return 0
    learn(place, value, name)
    setattr(value, name, content)
    return 0
