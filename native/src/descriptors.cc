// File descriptors that Node.js has no call for: sockets by number, eventfd, flock.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "addon.h"

namespace blockwire {
namespace {

// close(fd)
void Close(const Napi::CallbackInfo& info) {
  if (close(Int(info, 0)) != 0) throw SystemError(info.Env(), "close", errno);
}

// eventfd(): a non-semaphore counter at zero, blocking.
Napi::Value EventFd(const Napi::CallbackInfo& info) {
  int fd = eventfd(0, EFD_CLOEXEC);
  if (fd < 0) throw SystemError(info.Env(), "eventfd", errno);
  return Napi::Number::New(info.Env(), fd);
}

// eventfdSignal(fd): adds one.
void EventFdSignal(const Napi::CallbackInfo& info) {
  if (eventfd_write(Int(info, 0), 1) != 0) throw SystemError(info.Env(), "eventfd_write", errno);
}

// flock(fd, exclusive): true if the lock was taken, false if another open file holds it.
Napi::Value Flock(const Napi::CallbackInfo& info) {
  if (flock(Int(info, 0), LOCK_EX | LOCK_NB) == 0) return Napi::Boolean::New(info.Env(), true);
  if (errno == EWOULDBLOCK) return Napi::Boolean::New(info.Env(), false);
  throw SystemError(info.Env(), "flock", errno);
}

Napi::Value Seek(const Napi::CallbackInfo& info, int whence) {
  off_t found = lseek(Int(info, 0), static_cast<off_t>(Address(info, 1)), whence);
  return Napi::Number::New(info.Env(), static_cast<double>(found < 0 ? -errno : found));
}

// seekData(fd, offset): where data begins at or behind offset, or the negative errno (ENXIO: nowhere).
Napi::Value SeekData(const Napi::CallbackInfo& info) { return Seek(info, SEEK_DATA); }

// seekHole(fd, offset): where a hole begins at or behind offset; the end of the file is one.
Napi::Value SeekHole(const Napi::CallbackInfo& info) { return Seek(info, SEEK_HOLE); }

// fallocate(fd, mode, offset, length): 0, or the negative errno.
Napi::Value Fallocate(const Napi::CallbackInfo& info) {
  const off_t offset = static_cast<off_t>(Address(info, 2));
  const int result = fallocate(Int(info, 0), Int(info, 1), offset, static_cast<off_t>(Address(info, 3)));
  return Napi::Number::New(info.Env(), result == 0 ? 0 : -errno);
}

// socket(domain, type): a close-on-exec socket.
Napi::Value Socket(const Napi::CallbackInfo& info) {
  int fd = socket(Int(info, 0), Int(info, 1) | SOCK_CLOEXEC, 0);
  if (fd < 0) throw SystemError(info.Env(), "socket", errno);
  return Napi::Number::New(info.Env(), fd);
}

// socketPair(): two connected stream sockets.
Napi::Value SocketPair(const Napi::CallbackInfo& info) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) throw SystemError(info.Env(), "socketpair", errno);
  Napi::Array pair = Napi::Array::New(info.Env(), 2);
  pair.Set(0U, Napi::Number::New(info.Env(), fds[0]));
  pair.Set(1U, Napi::Number::New(info.Env(), fds[1]));
  return pair;
}

// bind(fd, sockaddr)
void Bind(const Napi::CallbackInfo& info) {
  Bytes address = ViewBytes(info[1]);
  if (bind(Int(info, 0), reinterpret_cast<sockaddr*>(address.data), address.length) != 0) {
    throw SystemError(info.Env(), "bind", errno);
  }
}

// listen(fd, backlog)
void Listen(const Napi::CallbackInfo& info) {
  if (listen(Int(info, 0), Int(info, 1)) != 0) throw SystemError(info.Env(), "listen", errno);
}

// boundPort(fd): the local TCP port.
Napi::Value BoundPort(const Napi::CallbackInfo& info) {
  sockaddr_storage address = {};
  socklen_t length = sizeof(address);
  if (getsockname(Int(info, 0), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    throw SystemError(info.Env(), "getsockname", errno);
  }
  // sin_port and sin6_port share their place.
  return Napi::Number::New(info.Env(), ntohs(reinterpret_cast<sockaddr_in*>(&address)->sin_port));
}

// setSocketOption(fd, level, name, value)
void SetSocketOption(const Napi::CallbackInfo& info) {
  Bytes value = ViewBytes(info[3]);
  if (setsockopt(Int(info, 0), Int(info, 1), Int(info, 2), value.data, value.length) != 0) {
    throw SystemError(info.Env(), "setsockopt", errno);
  }
}

// shutdown(fd): both directions; a peer that is gone already is no error.
void Shutdown(const Napi::CallbackInfo& info) {
  if (shutdown(Int(info, 0), SHUT_RDWR) != 0 && errno != ENOTCONN) throw SystemError(info.Env(), "shutdown", errno);
}

}  // namespace

void RegisterDescriptors(Napi::Env env, Napi::Object exports) {
  exports.Set("close", Napi::Function::New(env, Close));
  exports.Set("eventfd", Napi::Function::New(env, EventFd));
  exports.Set("eventfdSignal", Napi::Function::New(env, EventFdSignal));
  exports.Set("flock", Napi::Function::New(env, Flock));
  exports.Set("seekData", Napi::Function::New(env, SeekData));
  exports.Set("seekHole", Napi::Function::New(env, SeekHole));
  exports.Set("fallocate", Napi::Function::New(env, Fallocate));
  exports.Set("socket", Napi::Function::New(env, Socket));
  exports.Set("socketPair", Napi::Function::New(env, SocketPair));
  exports.Set("bind", Napi::Function::New(env, Bind));
  exports.Set("listen", Napi::Function::New(env, Listen));
  exports.Set("boundPort", Napi::Function::New(env, BoundPort));
  exports.Set("setSocketOption", Napi::Function::New(env, SetSocketOption));
  exports.Set("shutdown", Napi::Function::New(env, Shutdown));
}

}  // namespace blockwire
