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

bool HasInstruction() {
  static const bool has = __builtin_cpu_supports("sse4.2");
  return has;
}
#else
uint32_t Hardware(uint32_t crc, const uint8_t* data, size_t length) { return Software(crc, data, length); }
void HardwareThree(const uint8_t*, const uint8_t*, const uint8_t*, size_t, uint32_t*) {}
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
