// The compression function of SHA-256.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tensorwright {

// Updates the state by blocks of 64 bytes, with the processor's instructions for it where there are some.
void HashBlocks(uint32_t* state, const uint8_t* blocks, size_t count);

// The same without them.
void HashBlocksPortably(uint32_t* state, const uint8_t* blocks, size_t count);

}  // namespace tensorwright
