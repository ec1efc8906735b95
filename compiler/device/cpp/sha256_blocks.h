// The compression function of SHA-256.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tensorwright {

// Updates the state with blocks of 64 bytes, using the processor's SHA instructions if it has them.
void HashBlocks(uint32_t* state, const uint8_t* blocks, size_t count);

// The same without these instructions.
void HashBlocksPortably(uint32_t* state, const uint8_t* blocks, size_t count);

}  // namespace tensorwright
