// io_uring's three system calls. Queues are mapped by memory.cc and driven from TypeScript.
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "addon.h"

namespace blockwire {
namespace {

constexpr unsigned kEnterGetEvents = 1U << 0;
constexpr unsigned kEnterExtArg = 1U << 3;

// Where this thread's enters leave the time of their return, or null.
thread_local double* enter_clock = nullptr;

struct GetEventsArg {
  uint64_t sigmask;
  uint32_t sigmask_size;
  uint32_t min_wait_usec;
  uint64_t timespec;
};

// ioUringSetup(entries, params): fills params (struct io_uring_params), returns the ring's descriptor.
Napi::Value Setup(const Napi::CallbackInfo& info) {
  Bytes params = ViewBytes(info[1]);
  if (params.length != sizeof(io_uring_params)) throw Napi::RangeError::New(info.Env(), "params must be 120 bytes");
  long fd = syscall(__NR_io_uring_setup, Uint(info, 0), params.data);
  if (fd < 0) throw SystemError(info.Env(), "io_uring_setup", errno);
  return Napi::Number::New(info.Env(), static_cast<double>(fd));
}

// ioUringEnter(fd, toSubmit, minComplete, timeoutUs): SQEs consumed, or the negative errno. timeoutUs < 0 waits
// without a bound. Never throws: this is the data path's only call.
Napi::Value Enter(const Napi::CallbackInfo& info) {
  const uint32_t min_complete = Uint(info, 2);
  const int32_t timeout_us = Int(info, 3);
  __kernel_timespec timeout = {timeout_us / 1000000, (timeout_us % 1000000) * 1000LL};
  GetEventsArg arg = {0, 8, 0, reinterpret_cast<uint64_t>(&timeout)};
  unsigned flags = kEnterGetEvents;
  const bool bounded = min_complete > 0 && timeout_us >= 0;
  if (bounded) flags |= kEnterExtArg;
  long result = syscall(__NR_io_uring_enter, Int(info, 0), Uint(info, 1), min_complete, flags,
                        bounded ? &arg : nullptr, bounded ? sizeof(arg) : 0);
  if (result < 0) result = -errno;
  if (enter_clock != nullptr) {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *enter_clock = static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
  }
  return Napi::Number::New(info.Env(), static_cast<double>(result));
}

// ioUringClock(address): from now on every return from Enter on this thread stores CLOCK_MONOTONIC there, as a double in
// microseconds; 0 ends it. The memory must stay mapped.
void Clock(const Napi::CallbackInfo& info) { enter_clock = reinterpret_cast<double*>(Address(info, 0)); }

// ioUringRegister(fd, opcode, argument, count): the call's result; throws on failure.
Napi::Value Register(const Napi::CallbackInfo& info) {
  long result = syscall(__NR_io_uring_register, Int(info, 0), Uint(info, 1), ViewBytes(info[2]).data, Uint(info, 3));
  if (result < 0) throw SystemError(info.Env(), "io_uring_register", errno);
  return Napi::Number::New(info.Env(), static_cast<double>(result));
}

}  // namespace

void RegisterRing(Napi::Env env, Napi::Object exports) {
  exports.Set("ioUringSetup", Napi::Function::New(env, Setup));
  exports.Set("ioUringEnter", Napi::Function::New(env, Enter));
  exports.Set("ioUringClock", Napi::Function::New(env, Clock));
  exports.Set("ioUringRegister", Napi::Function::New(env, Register));
}

}  // namespace blockwire
