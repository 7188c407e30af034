// CRC32C (Castagnoli): by table, with the CPU's instruction, or blocks by folding where the CPU multiplies polynomials.
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "addon.h"

namespace blockwire {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected, RFC 3720 appendix B.4

struct Table {
  uint32_t rows[8][256];
  Table() {
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >> 1) ^ kPolynomial : crc >> 1;
      rows[0][i] = crc;
    }
    for (int row = 1; row < 8; row++) {
      for (uint32_t i = 0; i < 256; i++) rows[row][i] = (rows[row - 1][i] >> 8) ^ rows[0][rows[row - 1][i] & 255];
    }
  }
};

uint32_t Software(uint32_t crc, const uint8_t* data, size_t length) {
  static const Table table;
  for (; length >= 8; data += 8, length -= 8) {
    uint64_t word;
    memcpy(&word, data, 8);
    word ^= crc;
    crc = 0;
    for (int i = 0; i < 8; i++) crc ^= table.rows[7 - i][(word >> (8 * i)) & 255];
  }
  for (; length > 0; data++, length--) crc = (crc >> 8) ^ table.rows[0][(crc ^ *data) & 255];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t Hardware(uint32_t crc, const uint8_t* data, size_t length) {
  uint64_t wide = crc;
  for (; length >= 8; data += 8, length -= 8) {
    uint64_t word;
    memcpy(&word, data, 8);
    wide = __builtin_ia32_crc32di(wide, word);
  }
  crc = static_cast<uint32_t>(wide);
  for (; length > 0; data++, length--) crc = __builtin_ia32_crc32qi(crc, *data);
  return crc;
}

// The instruction has a latency of three cycles and a throughput of one: three blocks go side by side.
__attribute__((target("sse4.2"))) void HardwareThree(const uint8_t* a, const uint8_t* b, const uint8_t* c,
                                                     size_t length, uint32_t* out) {
  uint64_t crc_a = ~0U, crc_b = ~0U, crc_c = ~0U;
  for (size_t i = 0; i + 8 <= length; i += 8) {
    uint64_t word_a, word_b, word_c;
    memcpy(&word_a, a + i, 8);
    memcpy(&word_b, b + i, 8);
    memcpy(&word_c, c + i, 8);
    crc_a = __builtin_ia32_crc32di(crc_a, word_a);
    crc_b = __builtin_ia32_crc32di(crc_b, word_b);
    crc_c = __builtin_ia32_crc32di(crc_c, word_c);
  }
  out[0] = ~static_cast<uint32_t>(crc_a);
  out[1] = ~static_cast<uint32_t>(crc_b);
  out[2] = ~static_cast<uint32_t>(crc_c);
}

// One block alone goes as three pieces side by side, whose registers are joined: bytes that follow shift a register as if
// they were zeroes, and add their own.
constexpr size_t kBlock = 4096;
constexpr size_t kPiece = 1360;                  // the second and the third piece
constexpr size_t kFirst = kBlock - 2 * kPiece;  // 16 bytes more

struct Shift {
  uint32_t rows[4][256];
  __attribute__((target("sse4.2"))) Shift() {
    uint32_t basis[32];
    for (int bit = 0; bit < 32; bit++) {
      uint64_t state = 1U << bit;
      for (size_t i = 0; i < kPiece; i += 8) state = __builtin_ia32_crc32di(state, 0);
      basis[bit] = static_cast<uint32_t>(state);
    }
    for (int row = 0; row < 4; row++) {
      for (uint32_t value = 0; value < 256; value++) {
        uint32_t sum = 0;
        for (int bit = 0; bit < 8; bit++) sum ^= value >> bit & 1 ? basis[row * 8 + bit] : 0;
        rows[row][value] = sum;
      }
    }
  }
  // A register as kPiece zero bytes leave it.
  uint32_t operator()(uint32_t state) const {
    return rows[0][state & 255] ^ rows[1][state >> 8 & 255] ^ rows[2][state >> 16 & 255] ^ rows[3][state >> 24];
  }
};

__attribute__((target("sse4.2"))) uint32_t HardwareBlock(const uint8_t* data) {
  static const Shift shift;
  uint64_t words[2];
  memcpy(words, data, sizeof(words));
  uint64_t crc_a = __builtin_ia32_crc32di(__builtin_ia32_crc32di(~0U, words[0]), words[1]);
  uint64_t crc_b = 0, crc_c = 0;
  const uint8_t* a = data + kFirst - kPiece;
  const uint8_t* b = data + kFirst;
  const uint8_t* c = data + kFirst + kPiece;
  for (size_t i = 0; i < kPiece; i += 8) {
    uint64_t word_a, word_b, word_c;
    memcpy(&word_a, a + i, 8);
    memcpy(&word_b, b + i, 8);
    memcpy(&word_c, c + i, 8);
    crc_a = __builtin_ia32_crc32di(crc_a, word_a);
    crc_b = __builtin_ia32_crc32di(crc_b, word_b);
    crc_c = __builtin_ia32_crc32di(crc_c, word_c);
  }
  return ~(shift(shift(static_cast<uint32_t>(crc_a)) ^ static_cast<uint32_t>(crc_b)) ^ static_cast<uint32_t>(crc_c));
}

bool HasInstruction() {
  static const bool has = __builtin_cpu_supports("sse4.2");
  return has;
}

// Folding ("Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009): 16 bytes may be replaced by
// any that are congruent to them modulo the polynomial, some distance further on. Four vectors of four such lanes go side by side.
constexpr size_t kVector = 64;
constexpr size_t kStride = 4 * kVector;
static_assert(kBlock % kStride == 0);

// x^exponent modulo the polynomial, reflected like a checksum: bit 31 is x^0.
uint64_t Power(size_t exponent) {
  uint32_t value = 0x80000000;
  for (; exponent > 0; exponent--) value = value & 1 ? (value >> 1) ^ kPolynomial : value >> 1;
  return value;
}

// What moves all lanes of a vector on by so many bytes: a factor for each half, the lower being 64 bits further from there. A
// factor in the lower half of 64 reflected bits is times x^32, and a product of two reflected numbers is times x.
struct Factors {
  alignas(kVector) uint64_t halves[8];
  explicit Factors(size_t bytes) {
    const uint64_t low = Power(8 * bytes + 64 - 33), high = Power(8 * bytes - 33);
    for (int i = 0; i < 8; i += 2) halves[i] = low, halves[i + 1] = high;
  }
};

#define FOLDING __attribute__((target("avx512f,vpclmulqdq,sse4.2")))

FOLDING inline __m512i Fold(__m512i value, __m512i factors, __m512i next) {
  const __m512i low = _mm512_clmulepi64_epi128(value, factors, 0x00);
  const __m512i high = _mm512_clmulepi64_epi128(value, factors, 0x11);
  return _mm512_ternarylogic_epi64(low, high, next, 0x96);  // the exclusive or of the three
}

FOLDING inline uint32_t FoldedBlock(__m512i stride, __m512i vector, const uint8_t* data) {
  // A register of ones before the first byte is the same as its first four bytes inverted.
  __m512i a = _mm512_xor_si512(_mm512_loadu_si512(data), _mm512_set_epi64(0, 0, 0, 0, 0, 0, 0, 0xffffffff));
  __m512i b = _mm512_loadu_si512(data + kVector);
  __m512i c = _mm512_loadu_si512(data + 2 * kVector);
  __m512i d = _mm512_loadu_si512(data + 3 * kVector);
  for (const uint8_t* next = data + kStride; next < data + kBlock; next += kStride) {
    a = Fold(a, stride, _mm512_loadu_si512(next));
    b = Fold(b, stride, _mm512_loadu_si512(next + kVector));
    c = Fold(c, stride, _mm512_loadu_si512(next + 2 * kVector));
    d = Fold(d, stride, _mm512_loadu_si512(next + 3 * kVector));
  }
  alignas(kVector) uint64_t last[kVector / 8];
  _mm512_store_si512(last, Fold(Fold(Fold(a, vector, b), vector, c), vector, d));
  uint64_t crc = 0;
  for (const uint64_t word : last) crc = __builtin_ia32_crc32di(crc, word);
  return ~static_cast<uint32_t>(crc);
}

bool HasFolding() {
  static const bool has =
      HasInstruction() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
  return has;
}
#else
uint32_t Hardware(uint32_t crc, const uint8_t* data, size_t length) { return Software(crc, data, length); }
bool HasInstruction() { return false; }
#endif

uint32_t Update(uint32_t crc, const uint8_t* data, size_t length) {
  return HasInstruction() ? Hardware(crc, data, length) : Software(crc, data, length);
}

struct Blocks {
  const double* addresses;
  uint32_t count;
  size_t size;
  uint32_t* out;
  const uint8_t* operator[](uint32_t i) const {
    return reinterpret_cast<const uint8_t*>(static_cast<uint64_t>(addresses[i]));
  }
};

void BlocksBySoftware(const Blocks& blocks) {
  for (uint32_t i = 0; i < blocks.count; i++) blocks.out[i] = ~Software(~0U, blocks[i], blocks.size);
}

#if defined(__x86_64__)
void BlocksByInstruction(const Blocks& blocks) {
  uint32_t i = 0;
  for (; i + 3 <= blocks.count; i += 3) HardwareThree(blocks[i], blocks[i + 1], blocks[i + 2], blocks.size, blocks.out + i);
  for (; i < blocks.count; i++) {
    blocks.out[i] = blocks.size == kBlock ? HardwareBlock(blocks[i]) : ~Hardware(~0U, blocks[i], blocks.size);
  }
}

FOLDING void BlocksByFolding(const Blocks& blocks) {
  static const Factors by_stride(kStride), by_vector(kVector);
  const __m512i stride = _mm512_load_si512(by_stride.halves);
  const __m512i vector = _mm512_load_si512(by_vector.halves);
  for (uint32_t i = 0; i < blocks.count; i++) blocks.out[i] = FoldedBlock(stride, vector, blocks[i]);
}
#endif

// Numbered as native.ts says, the best first; null: not on this CPU, or not for this size.
using BlocksFunction = void (*)(const Blocks&);
constexpr uint32_t kMethods = 3;

BlocksFunction Method(uint32_t method, size_t size) {
#if defined(__x86_64__)
  if (method == 0) return HasFolding() && size == kBlock ? BlocksByFolding : nullptr;
  if (method == 1) return HasInstruction() ? BlocksByInstruction : nullptr;
#endif
  return method == kMethods - 1 ? BlocksBySoftware : nullptr;
}

Blocks BlocksOf(const Napi::CallbackInfo& info) {
  return {reinterpret_cast<const double*>(ViewBytes(info[0]).data), Uint(info, 1), Uint(info, 2),
          reinterpret_cast<uint32_t*>(ViewBytes(info[3]).data)};
}

// crc32c(data, seed): the checksum of a typed array; seed 0, or the checksum of what came before.
Napi::Value Crc32c(const Napi::CallbackInfo& info) {
  Bytes data = ViewBytes(info[0]);
  return Napi::Number::New(info.Env(), ~Update(~Uint(info, 1), data.data, data.length));
}

// crc32cSoftware(data, seed): the same by table, to test the two against each other.
Napi::Value Crc32cSoftware(const Napi::CallbackInfo& info) {
  Bytes data = ViewBytes(info[0]);
  return Napi::Number::New(info.Env(), ~Software(~Uint(info, 1), data.data, data.length));
}

// crc32cBlocks(addresses, count, blockSizeBytes, out): one checksum for each block of memory; block size a multiple
// of 8. One call for a whole batch, by the first method there is.
void Crc32cBlocks(const Napi::CallbackInfo& info) {
  const Blocks blocks = BlocksOf(info);
  BlocksFunction compute = nullptr;
  for (uint32_t method = 0; compute == nullptr; method++) compute = Method(method, blocks.size);
  compute(blocks);
}

// crc32cBlocksBy(addresses, count, blockSizeBytes, out, method): the same by one method, to test and measure them; false
// where it does not exist.
Napi::Value Crc32cBlocksBy(const Napi::CallbackInfo& info) {
  const Blocks blocks = BlocksOf(info);
  const BlocksFunction compute = Method(Uint(info, 4), blocks.size);
  if (compute != nullptr) compute(blocks);
  return Napi::Boolean::New(info.Env(), compute != nullptr);
}

}  // namespace

void RegisterChecksum(Napi::Env env, Napi::Object exports) {
  exports.Set("crc32c", Napi::Function::New(env, Crc32c));
  exports.Set("crc32cSoftware", Napi::Function::New(env, Crc32cSoftware));
  exports.Set("crc32cBlocks", Napi::Function::New(env, Crc32cBlocks));
  exports.Set("crc32cBlocksBy", Napi::Function::New(env, Crc32cBlocksBy));
}

}  // namespace blockwire
