// CRC32C (Castagnoli), with the CPU's instruction where there is one.
#include <cstring>

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
#else
uint32_t Hardware(uint32_t crc, const uint8_t* data, size_t length) { return Software(crc, data, length); }
void HardwareThree(const uint8_t*, const uint8_t*, const uint8_t*, size_t, uint32_t*) {}
constexpr size_t kBlock = 0;
uint32_t HardwareBlock(const uint8_t*) { return 0; }
bool HasInstruction() { return false; }
#endif

uint32_t Update(uint32_t crc, const uint8_t* data, size_t length) {
  return HasInstruction() ? Hardware(crc, data, length) : Software(crc, data, length);
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
// of 8. One call for a whole batch.
void Crc32cBlocks(const Napi::CallbackInfo& info) {
  const double* addresses = reinterpret_cast<const double*>(ViewBytes(info[0]).data);
  const uint32_t count = Uint(info, 1);
  const size_t block = Uint(info, 2);
  uint32_t* out = reinterpret_cast<uint32_t*>(ViewBytes(info[3]).data);
  auto at = [addresses](uint32_t i) { return reinterpret_cast<const uint8_t*>(static_cast<uint64_t>(addresses[i])); };
  uint32_t i = 0;
  if (HasInstruction()) {
    for (; i + 3 <= count; i += 3) HardwareThree(at(i), at(i + 1), at(i + 2), block, out + i);
    if (block == kBlock) {
      for (; i < count; i++) out[i] = HardwareBlock(at(i));
    }
  }
  for (; i < count; i++) out[i] = ~Update(~0U, at(i), block);
}

}  // namespace

void RegisterChecksum(Napi::Env env, Napi::Object exports) {
  exports.Set("crc32c", Napi::Function::New(env, Crc32c));
  exports.Set("crc32cSoftware", Napi::Function::New(env, Crc32cSoftware));
  exports.Set("crc32cBlocks", Napi::Function::New(env, Crc32cBlocks));
}

}  // namespace blockwire
