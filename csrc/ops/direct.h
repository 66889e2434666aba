// The Python functions of direct.cpp, for the module to list.
#pragma once
#include <Python.h>

namespace rnnfast {

extern PyMethodDef direct_methods[];  // ends with nulls

}  // namespace rnnfast
