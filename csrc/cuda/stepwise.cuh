// The stepwise kernels of one dtype; each .cu compiles one.
#pragma once
#include "cuda/deep.cuh"
#include "cuda/steps.cuh"

#define RNNFAST_STEPWISE(E)                                                                      \
  template const char* forward_step(Mode, const ForwardLayer<E>&, const ForwardStep&,            \
                                    const ComputeType<E>::type*, void*);                         \
  template const char* backward_step(Mode, const BackwardLayer<E>&, const BackwardStep&, void*); \
  template const char* deep_layer(const DeepLayer<E>&, void*);                                   \
  template const char* deep_inner_backward(const DeepInnerBackward<E>&, void*);                  \
  template const char* deep_state_backward(const DeepStateBackward<E>&, void*);
