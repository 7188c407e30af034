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

// <linux/io_uring.h> of older systems has it, under the same value.
constexpr uint32_t kSqTaskrun = 1U << 2;
// Longer waits are told as this: a small integer in JavaScript on every build of V8.
constexpr int64_t kWaitedUsMax = (1 << 30) - 1;

// What this thread's enters tell about themselves, and what they need for polling; the layout is ring.ts's.
struct EnterRecord {
  // CLOCK_MONOTONIC of the last return, in microseconds.
  double returned_us;
  // How long the last one that was to wait has waited.
  uint32_t waited_us;
  // System calls of the last one.
  uint32_t calls;
  // Of the ring that may be polled: addresses of the completion queue's head and tail and of the submission queue's flags.
  uint64_t cq_head;
  uint64_t cq_tail;
  uint64_t sq_flags;
};
thread_local EnterRecord* enter_record = nullptr;

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

int64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1000000000} + now.tv_nsec;
}

uint32_t Peek(uint64_t address) { return __atomic_load_n(reinterpret_cast<uint32_t*>(address), __ATOMIC_ACQUIRE); }

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Looks for a completion until `until_ns`, without sleeping. The kernel makes completions only inside of enter
// (DEFER_TASKRUN) and flags that there is something to make them of. Returns whether there is one.
bool Poll(int fd, int64_t until_ns, EnterRecord* record) {
  do {
    if (Peek(record->cq_head) != Peek(record->cq_tail)) return true;
    if ((Peek(record->sq_flags) & kSqTaskrun) != 0) {
      syscall(__NR_io_uring_enter, fd, 0, 0, kEnterGetEvents, nullptr, 0);
      record->calls++;
    } else {
      Pause();
    }
  } while (NowNs() < until_ns);
  return false;
}

// ioUringEnter(fd, toSubmit, minComplete, timeoutUs, pollUs): SQEs consumed, or the negative errno. timeoutUs < 0 waits
// without a bound. Never throws: this is the data path's only call.
Napi::Value Enter(const Napi::CallbackInfo& info) {
  const int fd = Int(info, 0);
  uint32_t to_submit = Uint(info, 1);
  const uint32_t min_complete = Uint(info, 2);
  const int32_t timeout_us = Int(info, 3);
  const int32_t poll_us = Int(info, 4);
  EnterRecord* record = enter_record;
  int64_t began_ns = record == nullptr ? 0 : NowNs();
  if (record != nullptr) record->calls = 1;
  long result = 0;
  bool done = false;
  if (poll_us > 0 && min_complete > 0 && record != nullptr && record->cq_head != 0) {
    result = syscall(__NR_io_uring_enter, fd, to_submit, 0, kEnterGetEvents, nullptr, 0);
    began_ns = NowNs();
    to_submit = 0;
    done = result < 0 || Poll(fd, began_ns + poll_us * int64_t{1000}, record);
    if (!done) record->calls++;
  }
  if (!done) {
    __kernel_timespec timeout = {timeout_us / 1000000, (timeout_us % 1000000) * 1000LL};
    GetEventsArg arg = {0, 8, 0, reinterpret_cast<uint64_t>(&timeout)};
    unsigned flags = kEnterGetEvents;
    const bool bounded = min_complete > 0 && timeout_us >= 0;
    if (bounded) flags |= kEnterExtArg;
    const long submitted = result;
    result = syscall(__NR_io_uring_enter, fd, to_submit, min_complete, flags, bounded ? &arg : nullptr,
                     bounded ? sizeof(arg) : 0);
    if (result >= 0) result += submitted;
  }
  if (result < 0) result = -errno;
  if (record != nullptr) {
    const int64_t now_ns = NowNs();
    record->returned_us = static_cast<double>(now_ns) / 1e3;
    if (min_complete > 0) {
      const int64_t waited_us = (now_ns - began_ns) / 1000;
      record->waited_us = static_cast<uint32_t>(waited_us < kWaitedUsMax ? waited_us : kWaitedUsMax);
    }
  }
  return Napi::Number::New(info.Env(), static_cast<double>(result));
}

// ioUringRecord(address): from now on every Enter on this thread fills the record there; 0 ends it. The memory must stay
// mapped.
void Record(const Napi::CallbackInfo& info) { enter_record = reinterpret_cast<EnterRecord*>(Address(info, 0)); }

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
  exports.Set("ioUringRecord", Napi::Function::New(env, Record));
  exports.Set("ioUringRegister", Napi::Function::New(env, Register));
}

}  // namespace blockwire
