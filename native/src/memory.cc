// Memory that the kernel and TypeScript share: mmap as ArrayBuffers, with their addresses.
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include <atomic>
#include <mutex>

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

// From this size on anonymous memory asks for huge pages: the kernel's copies to and from it miss the TLB less.
constexpr size_t kHugeBytes = 2 << 20;

// map(fd, length, offset, writable, populate): {buffer, address, handle}. fd -1 maps anonymous memory. The mapping goes
// with the garbage collector, or at once with unmap(buffer, handle).
Napi::Value Map(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int fd = Int(info, 0);
  const size_t length = Address(info, 1);
  const off_t offset = static_cast<off_t>(Address(info, 2));
  const bool writable = info[3].As<Napi::Boolean>().Value();
  const bool populate = info[4].As<Napi::Boolean>().Value();
  const bool huge = fd < 0 && length >= kHugeBytes;
  const int flags = (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | (populate && !huge ? MAP_POPULATE : 0);
  void* address = mmap(nullptr, length, PROT_READ | (writable ? PROT_WRITE : 0), flags, fd, offset);
  if (address == MAP_FAILED) throw SystemError(env, "mmap", errno);
  if (huge) {
    // Only a wish: a kernel without huge pages refuses it. Pages are made present after it, not by mmap before.
    madvise(address, length, MADV_HUGEPAGE);
    if (populate && madvise(address, length, MADV_POPULATE_WRITE) != 0) {
      const int error = errno;
      munmap(address, length);
      throw SystemError(env, "madvise", error);
    }
  }
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

// A mapped file that is cut, on a disk that fails, or on a full one ends in SIGBUS at the next touch of a page. For
// mappings that asked for it (surviveFaults) the page is replaced by one of zeroes, private to the process.
constexpr int kGuardedMax = 4096;
struct Guarded {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<uint32_t> faults{0};
};
Guarded guarded[kGuardedMax];

// Async-signal-safe: atomics and mmap only.
void OnBusError(int signal, siginfo_t* info, void*) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Guarded& range : guarded) {
    const uintptr_t begin = range.begin.load();
    if (begin == 0 || at < begin || at >= range.end.load()) continue;
    void* page = reinterpret_cast<void*>(at & ~static_cast<uintptr_t>(4095));
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (mmap(page, 4096, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) break;
    range.faults.fetch_add(1);
    return;
  }
  // Not ours: as if there were no handler, when the instruction is tried again.
  struct sigaction standard = {};
  standard.sa_handler = SIG_DFL;
  sigaction(signal, &standard, nullptr);
}

// surviveFaults(address, length): a number to ask faultCount with, or -1 when there are too many.
Napi::Value SurviveFaults(const Napi::CallbackInfo& info) {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = OnBusError;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaction(SIGBUS, &action, nullptr);
  });
  const uintptr_t begin = Address(info, 0);
  for (int i = 0; i < kGuardedMax; i++) {
    uintptr_t expected = 0;
    // The end before the begin: a range is in use once its begin is set.
    if (!guarded[i].begin.compare_exchange_strong(expected, 1)) continue;
    guarded[i].faults = 0;
    guarded[i].end = begin + Address(info, 1);
    guarded[i].begin = begin;
    return Napi::Number::New(info.Env(), i);
  }
  return Napi::Number::New(info.Env(), -1);
}

// faultCount(number): pages replaced so far.
Napi::Value FaultCount(const Napi::CallbackInfo& info) {
  const int number = Int(info, 0);
  return Napi::Number::New(info.Env(), number < 0 ? 0 : guarded[number].faults.load());
}

// endSurvival(number): before the memory is unmapped.
void EndSurvival(const Napi::CallbackInfo& info) {
  if (Int(info, 0) >= 0) guarded[Int(info, 0)].begin = 0;
}

// becomeIoFlusher(): the calling thread and those it makes from now on, also after execve (prctl(2)).
void BecomeIoFlusher(const Napi::CallbackInfo& info) {
  constexpr int kSetIoFlusher = 57;  // PR_SET_IO_FLUSHER, linux/prctl.h
  if (prctl(kSetIoFlusher, 1, 0, 0, 0) != 0) throw SystemError(info.Env(), "prctl", errno);
}

}  // namespace

void RegisterMemory(Napi::Env env, Napi::Object exports) {
  exports.Set("map", Napi::Function::New(env, Map));
  exports.Set("unmap", Napi::Function::New(env, Unmap));
  exports.Set("surviveFaults", Napi::Function::New(env, SurviveFaults));
  exports.Set("faultCount", Napi::Function::New(env, FaultCount));
  exports.Set("endSurvival", Napi::Function::New(env, EndSurvival));
  exports.Set("becomeIoFlusher", Napi::Function::New(env, BecomeIoFlusher));
}

}  // namespace blockwire
