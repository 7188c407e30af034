// Memory that the kernel and TypeScript share: mmap as ArrayBuffers, with their addresses.
#include <sys/mman.h>

#include "addon.h"

namespace blockwire {
namespace {

struct Mapping {
  void* address;
  size_t length;
};

void Release(Napi::Env, void*, Mapping* mapping) {
  if (mapping->address != nullptr) munmap(mapping->address, mapping->length);
  delete mapping;
}

// map(fd, length, offset, writable, populate): {buffer, address, handle}. fd -1 maps anonymous memory. The mapping goes
// with the garbage collector, or at once with unmap(buffer, handle).
Napi::Value Map(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int fd = Int(info, 0);
  const size_t length = Address(info, 1);
  const off_t offset = static_cast<off_t>(Address(info, 2));
  const bool writable = info[3].As<Napi::Boolean>().Value();
  const int populate = info[4].As<Napi::Boolean>().Value() ? MAP_POPULATE : 0;
  const int flags = (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | populate;
  void* address = mmap(nullptr, length, PROT_READ | (writable ? PROT_WRITE : 0), flags, fd, offset);
  if (address == MAP_FAILED) throw SystemError(env, "mmap", errno);
  Mapping* mapping = new Mapping{address, length};
  Napi::Object result = Napi::Object::New(env);
  result.Set("buffer", Napi::ArrayBuffer::New(env, address, length, Release, mapping));
  result.Set("address", Napi::Number::New(env, static_cast<double>(reinterpret_cast<uint64_t>(address))));
  result.Set("handle", Napi::External<Mapping>::New(env, mapping));
  return result;
}

// unmap(buffer, handle): detaches the buffer, so that no view can touch the memory afterwards, and unmaps it.
void Unmap(const Napi::CallbackInfo& info) {
  Napi::ArrayBuffer buffer = info[0].As<Napi::ArrayBuffer>();
  if (buffer.IsDetached()) return;
  // The finalizer may run inside Detach and free the mapping's record: take what is needed before.
  Mapping* mapping = info[1].As<Napi::External<Mapping>>().Data();
  void* address = mapping->address;
  const size_t length = mapping->length;
  mapping->address = nullptr;
  buffer.Detach();
  munmap(address, length);
}

// syncRange(address, length): msync(MS_SYNC) of whole pages.
void SyncRange(const Napi::CallbackInfo& info) {
  if (msync(reinterpret_cast<void*>(Address(info, 0)), Address(info, 1), MS_SYNC) != 0) {
    throw SystemError(info.Env(), "msync", errno);
  }
}

// lockAll(): keeps the process's pages, present and future, in memory.
void LockAll(const Napi::CallbackInfo& info) {
  if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) throw SystemError(info.Env(), "mlockall", errno);
}

}  // namespace

void RegisterMemory(Napi::Env env, Napi::Object exports) {
  exports.Set("map", Napi::Function::New(env, Map));
  exports.Set("unmap", Napi::Function::New(env, Unmap));
  exports.Set("syncRange", Napi::Function::New(env, SyncRange));
  exports.Set("lockAll", Napi::Function::New(env, LockAll));
}

}  // namespace blockwire
