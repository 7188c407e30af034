// ublk control commands: 128-byte SQEs on /dev/ublk-control, each on a thread and a ring of its own, because some
// of them (START_DEV, DEL_DEV, END_USER_RECOVERY) block until other threads have done their part.
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "addon.h"

namespace blockwire {
namespace {

constexpr unsigned kSetupSqe128 = 1U << 10;
constexpr uint8_t kOpUringCmd = 46;
constexpr size_t kCommandBytes = 32;  // struct ublksrv_ctrl_cmd

// One command on a one-entry ring. Returns the CQE's result, or the negative errno of what failed before.
int SubmitAndWait(uint32_t operation, const uint8_t* command) {
  int control = open("/dev/ublk-control", O_RDWR | O_CLOEXEC);
  if (control < 0) return -errno;
  io_uring_params params = {};
  params.flags = kSetupSqe128;
  int ring = static_cast<int>(syscall(__NR_io_uring_setup, 1, &params));
  if (ring < 0) {
    int error = errno;
    close(control);
    return -error;
  }
  const size_t queue_bytes = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe) + 64;
  uint8_t* queues = static_cast<uint8_t*>(
      mmap(nullptr, queue_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING));
  uint8_t* sqe = static_cast<uint8_t*>(
      mmap(nullptr, 128, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES));
  int result = -ENOMEM;
  if (queues != MAP_FAILED && sqe != MAP_FAILED) {
    memset(sqe, 0, 128);
    sqe[0] = kOpUringCmd;
    memcpy(sqe + 4, &control, 4);
    memcpy(sqe + 8, &operation, 4);
    memcpy(sqe + 48, command, kCommandBytes);
    reinterpret_cast<uint32_t*>(queues + params.sq_off.array)[0] = 0;
    __atomic_store_n(reinterpret_cast<uint32_t*>(queues + params.sq_off.tail), 1U, __ATOMIC_RELEASE);
    long entered;
    unsigned to_submit = 1;
    do {
      entered = syscall(__NR_io_uring_enter, ring, to_submit, 1, IORING_ENTER_GETEVENTS, nullptr, 0);
      if (entered > 0) to_submit = 0;
    } while ((entered < 0 && errno == EINTR) ||
             (entered >= 0 && __atomic_load_n(reinterpret_cast<uint32_t*>(queues + params.cq_off.tail),
                                              __ATOMIC_ACQUIRE) == 0));
    result = entered < 0 ? -errno : reinterpret_cast<io_uring_cqe*>(queues + params.cq_off.cqes)[0].res;
  }
  if (queues != MAP_FAILED) munmap(queues, queue_bytes);
  if (sqe != MAP_FAILED) munmap(sqe, 128);
  close(ring);
  close(control);
  return result;
}

struct Call {
  Napi::Promise::Deferred deferred;
  Napi::ThreadSafeFunction done;
  Napi::Reference<Napi::Value> data;  // keeps the command's buffer alive while the kernel may use it
  uint32_t operation;
  uint8_t command[kCommandBytes];
};

// ublkControl(operation, command, data): a promise of the command's result (negative errno on failure). `command`
// is struct ublksrv_ctrl_cmd; its address and length fields are filled here from `data`, which may be null.
Napi::Value Control(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Bytes command = ViewBytes(info[1]);
  if (command.length != kCommandBytes) throw Napi::RangeError::New(env, "command must be 32 bytes");
  Bytes data = ViewBytes(info[2]);
  Call* call = new Call{Napi::Promise::Deferred::New(env), {}, {}, Uint(info, 0), {}};
  memcpy(call->command, command.data, kCommandBytes);
  if (data.data != nullptr) {
    const uint16_t length = static_cast<uint16_t>(data.length);
    const uint64_t address = reinterpret_cast<uint64_t>(data.data);
    memcpy(call->command + 6, &length, sizeof(length));
    memcpy(call->command + 8, &address, sizeof(address));
    call->data = Napi::Reference<Napi::Value>::New(info[2], 1);
  }
  Napi::Promise promise = call->deferred.Promise();
  call->done = Napi::ThreadSafeFunction::New(env, Napi::Function(), "ublkControl", 0, 1);
  std::thread([call] {
    int result = SubmitAndWait(call->operation, call->command);
    Napi::ThreadSafeFunction done = call->done;
    done.BlockingCall(call, [result](Napi::Env env, Napi::Function, Call* finished) {
      finished->deferred.Resolve(Napi::Number::New(env, result));
      delete finished;
    });
    done.Release();
  }).detach();
  return promise;
}

}  // namespace

void RegisterUblk(Napi::Env env, Napi::Object exports) {
  exports.Set("ublkControl", Napi::Function::New(env, Control));
}

}  // namespace blockwire
