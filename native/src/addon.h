// Shared by the door's files: one registration function each, and how a failed system call is thrown.
#pragma once
#include <napi.h>

#include <cerrno>
#include <cstdint>

namespace blockwire {

void RegisterRing(Napi::Env env, Napi::Object exports);
void RegisterMemory(Napi::Env env, Napi::Object exports);
void RegisterDescriptors(Napi::Env env, Napi::Object exports);
void RegisterUblk(Napi::Env env, Napi::Object exports);
void RegisterTransfer(Napi::Env env, Napi::Object exports);
void RegisterChecksum(Napi::Env env, Napi::Object exports);

// errors.ts turns this into a KernelError: it reads `errno` and `syscall`.
inline Napi::Error SystemError(Napi::Env env, const char* syscall, int error) {
  Napi::Error thrown = Napi::Error::New(env, syscall);
  thrown.Value().Set("errno", Napi::Number::New(env, error));
  thrown.Value().Set("syscall", Napi::String::New(env, syscall));
  return thrown;
}

struct Bytes {
  uint8_t* data;
  size_t length;
};

// The memory behind any ArrayBufferView; {nullptr, 0} for null.
inline Bytes ViewBytes(const Napi::Value& value) {
  if (value.IsNull() || value.IsUndefined()) return {nullptr, 0};
  if (value.IsTypedArray()) {
    Napi::TypedArray view = value.As<Napi::TypedArray>();
    return {static_cast<uint8_t*>(view.ArrayBuffer().Data()) + view.ByteOffset(), view.ByteLength()};
  }
  throw Napi::TypeError::New(value.Env(), "expected a typed array or null");
}

inline int Int(const Napi::CallbackInfo& info, size_t index) { return info[index].As<Napi::Number>().Int32Value(); }
inline uint32_t Uint(const Napi::CallbackInfo& info, size_t index) {
  return info[index].As<Napi::Number>().Uint32Value();
}
inline uint64_t Address(const Napi::CallbackInfo& info, size_t index) {
  return static_cast<uint64_t>(info[index].As<Napi::Number>().DoubleValue());
}

}  // namespace blockwire
