// What is done with memory on the device itself.
#pragma once
#include <cstdint>

namespace rnnfast::device_check {

// how many of so many bytes (a multiple of 4, from such a place on) differ, in words
int64_t differing_words(const void* a, const void* b, int64_t bytes);
// NaN in the shared memory of every multiprocessor
void poison_shared_memory();

}  // namespace rnnfast::device_check
