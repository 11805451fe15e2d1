// Copies that go past the caches: for what will have left them before anyone reads it, and would only push out the rest. A plain
// store reads each line of memory before it writes it; these do not, which is a third of a copy's traffic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define FEDERATION_STREAMS 1
#endif

namespace federation {

// Bytes from which an array goes past the caches: as many as a large one of all cores together.
constexpr std::size_t streams_from = std::size_t{32} << 20;

// memcpy, past the caches where the machine can.
inline void stream(void* out, const void* from, std::size_t nbytes) {
#ifdef FEDERATION_STREAMS
    auto* to = static_cast<char*>(out);
    const auto* source = static_cast<const char*>(from);
    std::size_t head = (16 - reinterpret_cast<std::uintptr_t>(to) % 16) % 16;
    if (head > nbytes) head = nbytes;
    std::memcpy(to, source, head);
    std::size_t i = head;
    const auto word = [source](std::size_t at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + at)); };
    const auto put = [to](std::size_t at, __m128i value) { _mm_stream_si128(reinterpret_cast<__m128i*>(to + at), value); };
    for (; i + 64 <= nbytes; i += 64) {
        const __m128i a = word(i), b = word(i + 16), c = word(i + 32), d = word(i + 48);
        put(i, a), put(i + 16, b), put(i + 32, c), put(i + 48, d);
    }
    std::memcpy(to + i, source + i, nbytes - i);
    _mm_sfence();  // before another thread may read it
#else
    std::memcpy(out, from, nbytes);
#endif
}

}  // namespace federation
