// The Python function of step.cpp, for the module to list.
#pragma once
#include <Python.h>

namespace rnnfast {

extern PyMethodDef step_methods[];  // ends with nulls

}  // namespace rnnfast
